"""A trainable dictionary: encode, activate, decode, as its spec composes them.

    latents = activation(encoder(s_in x))
    y = (W_dec^T latents + b_dec + W_skip s_in x) / s_out

`run` works on scaled vectors and is differentiable; `encode`, `decode` and calling the dictionary
work on raw ones. Where latents are chosen (TopK and its kin) nothing dense but a tile of scores
exists; elsewhere `[rows, latents]` is unavoidable while training.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.code import SparseCode, Support
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.encoder.glu import GLUEncoder
from unweave.dictionaries.encoder.linear import LinearEncoder
from unweave.dictionaries.encoder.pursuit import PursuitEncoder
from unweave.dictionaries.kernels.fit import fit
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.ragged import inner, over_latents, write
from unweave.dictionaries.kernels.select import TILE_ROWS, Selection, above
from unweave.dictionaries.kernels.sparse import product_dtype
from unweave.errors import UserError

_FEW = 0.1
"""Share of latents up to which working on them alone costs less than on all."""
_SAMPLE_ROWS = 128
_ROUNDING = 2.0**-7
"""How far a score in bfloat16 may lie from what it stands for, relative to it."""


class Pass(NamedTuple):
    """One differentiable pass over scaled vectors."""

    y: Float[Tensor, "rows d_out"]
    """What was written, in scaled units."""
    code: SparseCode | None
    """The latents, where they are chosen."""
    latents: Float[Tensor, "rows latents"] | None
    """The latents, where all are computed."""
    pre: Float[Tensor, "rows latents"] | None
    """Their pre-activations."""
    prefixes: Float[Tensor, "rows prefixes d_out"] | None
    """With nesting: what each prefix of the latents reconstructs."""
    picked: Float[Tensor, " active"] | None = None
    """Pre-activations at the code's entries, where they exceed what latents need rather than each
    other; entries below their threshold have the value zero."""
    misfit: Float[Tensor, ""] | None = None
    """Mean squared distance of y from the target that was given, in the place of y's gradient."""

    @property
    def sparse_code(self) -> SparseCode:
        """The latents as a code, whichever way they were computed."""
        if self.code is not None:
            return self.code
        assert self.latents is not None
        return SparseCode.from_dense(self.latents)


class Dictionary(nn.Module):
    """One dictionary; call it with raw vectors of the sites it reads, concatenated."""

    whole: ClassVar[bool] = True
    """Whether all latents are here; a part of a dictionary writes a part of the output."""
    encoder: Any
    activation: Any
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None
    input_scale: Tensor
    output_scale: Tensor

    def __init__(self, spec: DictionarySpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = spec.encoder.build(spec.d_in, spec.n_latents)
        self.activation = spec.activation.build(spec.n_latents)
        self.W_dec = nn.Parameter(torch.zeros(spec.n_latents, spec.d_out))
        self.b_dec = nn.Parameter(torch.zeros(spec.d_out))
        skip = nn.Parameter(torch.zeros(spec.d_out, spec.d_in)) if spec.skip else None
        self.register_parameter("W_skip", skip)
        self.register_buffer("input_scale", _per_column(spec.reads), persistent=False)
        self.register_buffer("output_scale", _per_column(spec.writes), persistent=False)

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.spec.n_latents

    @property
    def W_enc(self) -> Tensor:
        """The encoder's matrix [latents, d_in], where it has one."""
        return self.encoder.W_enc

    @property
    def b_enc(self) -> Tensor:
        """The encoder's bias [latents], where it has one."""
        return self.encoder.b_enc

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Raw vectors in, raw vectors out; differentiable."""
        rows = self._rows(x)
        normed, back = self.normalise(rows * self.input_scale)
        y = back(self.run(normed).y) / self.output_scale
        return y.view(*x.shape[:-1], self.spec.d_out)

    def run(
        self,
        x: Float[Tensor, "rows d_in"],
        chosen: Selection | None = None,
        target: Float[Tensor, "rows d_out"] | None = None,
        all_latents: bool = True,
    ) -> Pass:
        """One pass over scaled vectors (and normalised, where the spec says so).

        `chosen` holds the active latents where somebody else has selected them, as happens when
        several dictionaries share out a batch's latents (`dictionaries.cross_layer`). Where
        latents are chosen and nothing but their output is written, a `target` is compared with it
        on the way: see `Pass.misfit`. Without `all_latents` a ReLU or JumpReLU dictionary is
        trained on the latents that can have a value or a gradient, as soon as they are few.
        """
        read = x - self.b_dec if self.spec.pre_bias else x
        W_dec = self.decoder()
        if self.spec.sparse:
            return self._pass(self._chosen(read, W_dec, chosen), None, W_dec, x, target)
        if not all_latents and (few := self._reaching(read)) is not None:
            return self._pass(few.code, few.picked, W_dec, x, target)
        pre = self.encoder.dense(read)
        latents = self.activation(pre, getattr(self.encoder, "b_enc", None))
        if not self.spec.nesting:
            return Pass(self._offset(latents @ W_dec, x), None, latents, pre, None)
        starts = (0, *self.spec.nesting[:-1])
        steps = [latents[:, a:b] @ W_dec[a:b] for a, b in zip(starts, self.spec.nesting)]  # noqa: B905
        prefixes = torch.stack(steps, 1).cumsum(1)
        y = self._offset(prefixes[:, -1], x)
        return Pass(y, None, latents, pre, self._shifted(prefixes, x))

    def decoder(self) -> Float[Tensor, "latents d_out"]:
        """The decoder rows as they are used."""
        if self.spec.decoder == "normalised":
            return nn.functional.normalize(self.W_dec, dim=1)
        return self.W_dec

    def beside(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """What is written whatever the latents say: the offset [d_out], or with a skip a row each.

        Works on scaled vectors, as `run` does.
        """
        return self.b_dec if self.W_skip is None else torch.addmm(self.b_dec, x, self.W_skip.T)

    def lengths(self) -> Float[Tensor, " latents"]:
        """Length of what one unit of each latent writes: what penalties weigh activations by."""
        if self.spec.decoder != "free":
            return torch.ones_like(self.W_dec[:, 0])
        if self.spec.norm == "joint":
            return self.W_dec.norm(dim=1)
        widths = [port.width for port in self.spec.writes]
        return torch.stack([part.norm(dim=1) for part in self.W_dec.split(widths, dim=1)]).sum(0)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """Code of raw vectors, as after training: thresholds in the place of batches."""
        training = self.training
        self.eval()
        try:
            rows, _ = self.normalise(self._rows(x) * self.input_scale)
            return self._code_of(rows - self.b_dec if self.spec.pre_bias else rows)
        finally:
            self.train(training)

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What a code stands for, in raw units.

        Raises:
            UserError: a dictionary with `skip` or `layer_norm`, whose output needs the input too.
        """
        if self.spec.skip or self.spec.layer_norm:
            raise UserError(
                f"{self.spec.name} needs its input as well as the code to decode (it has "
                f"{'a skip' if self.spec.skip else 'a layer norm'}): call it with the vectors"
            )
        return (over_latents(code.value, self.decoder(), code.support) + self.b_dec) / (
            self.output_scale
        )

    @torch.no_grad()
    def directions(self) -> Float[Tensor, "latents d_out"]:
        """What one unit of each latent writes, in raw units."""
        return self.decoder().detach() / self.output_scale

    def normalise(
        self, x: Float[Tensor, "rows d_in"]
    ) -> tuple[Float[Tensor, "rows d_in"], Callable[[Tensor], Tensor]]:
        """Scaled rows as `run` expects them, and the way back for what it returns."""
        if not self.spec.layer_norm:
            return x, lambda y: y
        mean = x.mean(1, keepdim=True)
        size = (x - mean).square().mean(1, keepdim=True).sqrt() + 1e-5
        return (x - mean) / size, lambda y: y * size + mean

    def rescale_(self, reads: list[float], writes: list[float]) -> None:
        """Set the scales of the ports, before training."""
        ports = {
            name: tuple(p.model_copy(update={"scale": s}) for p, s in zip(old, new, strict=True))
            for name, old, new in (
                ("reads", self.spec.reads, reads),
                ("writes", self.spec.writes, writes),
            )
        }
        self.spec = self.spec.model_copy(update=ports)
        self.input_scale = _per_column(self.spec.reads).to(self.W_dec)
        self.output_scale = _per_column(self.spec.writes).to(self.W_dec)

    @torch.no_grad()
    def unit_decoder_(self) -> None:
        """Bring every decoder row to unit norm."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def fold_lengths_(self) -> None:
        """Unit decoder rows for the same function: lengths move to the encoder (Anthropic 2024).

        Raises:
            UserError: latents that are not homogeneous in `W_enc`, `b_enc` (all but ReLU).
        """
        if self.spec.activation.kind != "relu" or self.spec.encoder.kind != "linear":
            raise UserError(f"{self.spec.name}: only linear encoders with ReLU can be folded")
        length = self.W_dec.norm(dim=1).clamp_min(1e-12)
        self.W_dec /= length[:, None]
        if self.spec.decoder == "normalised":
            return  # its lengths were never used
        self.encoder.W_enc *= length[:, None]
        self.encoder.b_enc *= length

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.spec.d_in:
            raise UserError(
                f"{self.spec.name} reads vectors of width {self.spec.d_in} "
                f"({', '.join(p.site for p in self.spec.reads)}), not {x.shape[-1]}"
            )
        return x.reshape(-1, self.spec.d_in).to(self.W_dec.dtype)

    def _chosen(self, read: Tensor, W_dec: Tensor, chosen: Selection | None = None) -> SparseCode:
        if isinstance(self.encoder, PursuitEncoder):
            return self.encoder.pursue(read, W_dec, self.activation.k)
        dtype = self.product_dtype(read)
        scorer = self.encoder.scorer(dtype)
        if not isinstance(self.encoder, GLUEncoder):
            low = read.detach().to(dtype)  # once, for the scores and for the gradient
            support, score = chosen or self.activation.select(scorer, low, self.n_latents)
            picked = self.encoder.at(read, support, score, low)
        else:
            support, score = chosen or self.activation.select(scorer, read.detach(), self.n_latents)
            picked = self.encoder.at(read, support, score)
        value = self.activation.value(picked)
        return SparseCode(support, value)

    def _pass(
        self, code: SparseCode, picked: Tensor | None, W_dec: Tensor, x: Tensor, to: Tensor | None
    ) -> Pass:
        """What a code writes, compared with a target if that can be done on the way."""
        dtype = self.product_dtype(x)
        if self.spec.nesting:
            prefixes = self._prefixes(code, W_dec)
            y = self._offset(prefixes[:, -1], x)
            return Pass(y, code, None, None, self._shifted(prefixes, x), picked)
        if to is not None and self.whole and self.W_skip is None:
            loss, y = fit(code.value, W_dec, self.b_dec, to, code.support, dtype=dtype)
            return Pass(y, code, None, None, None, picked, loss)
        y = self._offset(write(code.value, W_dec, code.support, dtype=dtype), x)
        return Pass(y, code, None, None, None, picked)

    def _reaching(self, read: Tensor) -> "_Few | None":
        """The latents whose pre-activations reach far enough to matter, if they are few.

        Who they are is told by rounded scores; their pre-activations are then computed exactly,
        since a jump's window is narrower than rounding.
        """
        able = isinstance(self.encoder, LinearEncoder) and hasattr(self.activation, "reach")
        if not (self.training and able and len(read)):
            return None
        dtype = self.product_dtype(read)
        low, scorer = read.detach().to(dtype), self.encoder.scorer(dtype)
        reach = self.activation.reach(0.0 if dtype == read.dtype else _ROUNDING).to(read.device)
        some = scorer(low[:: -(-len(low) // _SAMPLE_ROWS)])
        if (some > reach).float().mean() > _FEW:
            return None
        support = above(scorer, low, reach).support
        with torch.no_grad():
            known = inner(read, self.W_enc, support) + self.b_enc[support.latent]
        picked = self.encoder.at(read, support, known, low)
        return _Few(SparseCode(support, self.activation.at(picked, support.latent)), picked)

    def product_dtype(self, like: Float[Tensor, "*shape"]) -> torch.dtype:
        """What products with tensors like this one are taken in."""
        # Training does not notice bfloat16; what is measured after it is exact.
        if not self.training or like.dtype != torch.float32:
            return like.dtype
        here = like.device.type == "cpu"
        return product_dtype() if here else gpu.number_format(like.device)

    def _code_of(self, read: Tensor) -> SparseCode:
        if self.spec.sparse:
            return self._chosen(read, self.decoder())
        bias = getattr(self.encoder, "b_enc", None)
        codes = [
            SparseCode.from_dense(self.activation(self.encoder.dense(tile), bias))
            for tile in read.split(TILE_ROWS)
        ]
        counts = torch.cat([code.support.offsets.diff() for code in codes])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        latent = torch.cat([code.support.latent for code in codes])
        value = torch.cat([code.value for code in codes])
        return SparseCode(Support(offsets, latent, self.n_latents), value)

    def _prefixes(self, code: SparseCode, W_dec: Tensor) -> Tensor:
        """Reconstructions from nested prefixes, each entry of the code read once.

        A row and a group of latents make one bag; groups are then summed up in order.
        """
        ends = torch.tensor(self.spec.nesting, device=code.value.device)
        groups, support = len(ends), code.support
        group = torch.searchsorted(ends, support.latent, right=True)
        bag = support.row * groups + group
        order = bag.argsort(stable=True)
        counts = torch.bincount(bag, minlength=support.rows * groups)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        bags = Support(offsets, support.latent[order], support.n_latents)
        written = write(code.value[order], W_dec, bags, dtype=self.product_dtype(W_dec))
        return written.view(support.rows, groups, W_dec.shape[1]).cumsum(1)

    def _offset(self, y: Tensor, x: Tensor) -> Tensor:
        y = y + self.b_dec
        return y if self.W_skip is None else torch.addmm(y, x, self.W_skip.T)

    def _shifted(self, prefixes: Tensor | None, x: Tensor) -> Tensor | None:
        if prefixes is None:
            return None
        beside = self.b_dec if self.W_skip is None else self.b_dec + (x @ self.W_skip.T)[:, None]
        return prefixes + beside


class _Few(NamedTuple):
    code: SparseCode
    picked: Tensor


def _per_column(ports: tuple[Port, ...]) -> Float[Tensor, " width"]:
    return torch.cat([torch.full((port.width,), port.scale) for port in ports])
