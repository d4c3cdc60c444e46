"""The network under study, with one set of names for its places, parts and weights."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.families import Family, find_family
from unweave.subject.running import Onlooker, Replacement, Run, run_model
from unweave.subject.sites import Geometry, Place, find_place, list_sites
from unweave.subject.swapping import find_slot, swapped_modules
from unweave.subject.tokenizer import Tokenizer
from unweave.subject.weights import AttentionWeights, MLPWeights, Table

NOTHING: Mapping[str, Replacement] = MappingProxyType({})
NOBODY: Mapping[str, Onlooker] = MappingProxyType({})


@runtime_checkable
class Config(Protocol):
    """What is read of a Hugging Face config."""

    num_attention_heads: int
    max_position_embeddings: int


class Subject:
    """A trained network that can be looked into and changed while it runs.

    Make one with `load_subject` or `wrap_module`. Its parameters are frozen and dropout is off.

    ```python
    subject = load_subject("wren")
    run = subject.run(tokens, capture=["blocks.2.mlp.out"], logits=False)
    run.sites["blocks.2.mlp.out"]  # [batch, pos, d_model]
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        tokenizer: Tokenizer | None,
        fingerprint: Callable[[], str],
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.tokenizer = tokenizer
        self._fingerprint = fingerprint
        self.config: Config | None = config_of(model)
        self._row: Family | None = find_family(getattr(self.config, "model_type", None))
        self._geometry: Geometry | None = measure(model, self._row) if self._row else None
        self._places: dict[str, Place] = {}
        self._swapped: list[str] = []
        # No key-value cache is built in a single pass: nobody would read it.
        self._options = {"use_cache": False} if hasattr(self.config, "use_cache") else {}

    def __repr__(self) -> str:
        return f"Subject({self.name}, {self.family}, {self.parameters:,} parameters)"

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the weights: names, dtypes, shapes and bytes in the order of names."""
        return self._fingerprint()

    @property
    def family(self) -> str:
        """Name of the table's row, or the `model_type` that no row knows, or `module`."""
        if self._row:
            return self._row.name
        return getattr(self.config, "model_type", None) or "module"

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored as."""
        return next(self.model.parameters()).dtype

    @property
    def geometry(self) -> Geometry:
        """Sizes; a `UserError` where no table row knows the architecture."""
        if self._geometry is None:
            raise UserError(
                f"{self.name} is a {self.family}, which no row of the table of architectures "
                "knows, so its sizes and weights have no common names; use module paths as "
                "sites, or describe it with unweave.subject.register_family"
            )
        return self._geometry

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.geometry.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.geometry.d_model

    @property
    def d_mlp(self) -> int:
        """Neurons of one MLP."""
        return self.geometry.d_mlp

    @property
    def n_heads(self) -> int:
        """Query heads of one block."""
        return self.geometry.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key and value heads."""
        return self.geometry.n_kv_heads

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.geometry.d_head

    @property
    def vocab_size(self) -> int:
        """Rows of the unembedding."""
        return self.geometry.vocab_size

    @property
    def context(self) -> int:
        """Longest row of tokens."""
        return self.geometry.context

    @cached_property
    def start_token(self) -> int | None:
        """The token that every row begins with: begin-of-text, else end-of-text."""
        known = [self.tokenizer.bos if self.tokenizer else None]
        known += [_first(getattr(self.config, "bos_token_id", None))]
        known += [self.tokenizer.eos if self.tokenizer else None]
        known += [_first(getattr(self.config, "eos_token_id", None))]
        size = self._geometry.vocab_size if self._geometry else None
        return next((t for t in known if t is not None and (size is None or t < size)), None)

    def sites(self) -> list[str]:
        """All sites in the order of computation; module paths where no table row knows better."""
        if self._geometry:
            return list_sites(self._geometry)
        return [path for path, _ in self.model.named_modules() if path]

    def place(self, site: str) -> Place:
        """Where a site is in the module tree; raises a `UserError` with near names otherwise."""
        if site not in self._places:
            self._places[site] = find_place(
                site,
                subject=self.name,
                model=self.model,
                family=self._row,
                geometry=self._geometry,
            )
        return self._places[site]

    def run(
        self,
        tokens: Shaped[Tensor, "..."],
        *,
        capture: Sequence[str] = (),
        replace: Mapping[str, Replacement] = NOTHING,
        show: Mapping[str, Onlooker] = NOBODY,
        logits: bool = True,
    ) -> Run:
        """Run once over `tokens` [batch, pos], looking at and changing sites on the way.

        A site that is both replaced and captured gives what it was replaced by. A replacement
        tensor may be smaller where it broadcasts to the site's shape (a mean, say). Gradients
        flow if they are enabled and a replacement asks for them. A function in `show` is given
        its site's tensor while it is fresh in the cache, and nothing is kept for it. With
        `logits=False` the pass ends right after the deepest site asked for.

        Shapes: residual stream, attn.in, attn.out, mlp.in, mlp.out [batch, pos, d_model];
        mlp.mid [batch, pos, d_mlp]; attn.z [batch, pos, n_heads * d_head]; attn.q, k, v (before
        rotary embedding and any norm of heads) [batch, pos, heads, d_head]; attn.pattern [batch,
        heads, query, key]; logits [batch, pos, vocab].

        Raises:
            UserError: an unknown site, a replacement that does not fit, tokens outside the
                vocabulary, rows longer than the subject's context.
        """
        if self._geometry:
            self._check(tokens, self._geometry)
            tokens = tokens.to(self.device)
        places = {name: self.place(name) for name in (*replace, *capture, *show)}
        return run_model(
            self.model,
            tokens,
            places,
            capture=capture,
            replace=replace,
            show=show,
            logits=logits,
            options=self._options,
        )

    def _check(self, tokens: Tensor, geometry: Geometry) -> None:
        if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
            raise UserError(
                f"{self.name} runs on token ids [batch, pos], not on {tokens.dtype} "
                f"{tuple(tokens.shape)}"
            )
        if tokens.shape[1] > geometry.context:
            raise UserError(
                f"rows of {tokens.shape[1]} tokens are longer than the context of {self.name}, "
                f"{geometry.context}"
            )
        if tokens.device.type == "cpu":  # elsewhere looking would stall the device
            low, high = tokens.aminmax()
            if low < 0 or high >= geometry.vocab_size:
                raise UserError(
                    f"token ids from {int(low)} to {int(high)} are outside the vocabulary of "
                    f"{self.name}, 0 to {geometry.vocab_size - 1}"
                )

    def swapped(self, parts: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
        """Put modules in the place of parts while the context lasts; the originals do not run.

        Keys are `L{i}.mlp` (called with `mlp.in`, returns `mlp.out`), `L{i}.attn` (called with
        `attn.z`, returns `attn.out`), `L{i}.q` and `L{i}.k` (called with `attn.in`, return
        `attn.q` and `attn.k` with heads side by side, from which the subject goes on) or module
        paths. Holds for `run` and `continue_text` alike.
        """
        slots = {
            find_slot(
                part,
                subject=self.name,
                model=self.model,
                family=self._row,
                geometry=self._geometry,
            ): module
            for part, module in parts.items()
        }
        return swapped_modules(self.model, slots, self._swapped)

    @property
    def changed(self) -> bool:
        """Whether parts are swapped in right now."""
        return bool(self._swapped)

    @property
    def _table(self) -> Table:
        geometry = self.geometry
        assert self._row is not None
        return Table(self.model, self._row, geometry)

    def _layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise UserError(f"{self.name} has blocks 0 to {self.n_layers - 1}, not {layer}")
        return layer

    def mlp_weights(self, layer: int) -> MLPWeights:
        """Weights of a block's MLP as it applies them to `mlp.in`."""
        names = ("hidden_activation", "hidden_act", "activation_function")
        activation = next(a for n in names if (a := getattr(self.config, n, None)))
        return self._table.mlp(self._layer(layer), activation)

    def attention_weights(self, layer: int) -> AttentionWeights:
        """Weights of a block's attention as it applies them to `attn.in`."""
        return self._table.attention(self._layer(layer))

    def norm_gain(self, layer: int, which: Literal["attn", "mlp"]) -> Float[Tensor, " d_model"]:
        """Elementwise gain of the norm before a block's attention or MLP."""
        return self._table.norm_gain(self._layer(layer), which)

    def write_gain(self, layer: int, which: Literal["attn", "mlp"]) -> Float[Tensor, " d_model"]:
        """Elementwise gain between what a block's attention or MLP writes and the stream.

        Ones, but for families that norm a block's output (Gemma 2 and 3).
        """
        return self._table.write_gain(self._layer(layer), which)

    @property
    def norms_writes(self) -> bool:
        """Whether what blocks write passes a norm on its way to the stream (Gemma 2 and 3)."""
        return self._table.norms_writes()

    def norm_bias(
        self, layer: int, which: Literal["attn", "mlp"]
    ) -> Float[Tensor, " d_model"] | None:
        """What the norm before a block's attention or MLP adds; None for those that add nothing."""
        return self._table.norm_bias(self._layer(layer), which)

    @property
    def norms_centre(self) -> bool:
        """Whether the norms take out the mean of what they read."""
        return self._table.centred()

    @property
    def norm_eps(self) -> float:
        """What the norms add to the mean square under the root, so that nothing divides by 0."""
        return self._table.norm_eps()

    def unembed(self) -> Float[Tensor, "vocab d_model"]:
        """Row t raises logit t; the gain of the final norm is folded in."""
        return self._table.unembed()

    def unembed_bias(self) -> Float[Tensor, " vocab"]:
        """What logits hold whatever the stream does: the last norm's bias, the head's own."""
        return self._table.unembed_bias()

    def positions(self) -> Float[Tensor, "context d_model"] | None:
        """Row p is what position p adds to the stream; None where heads turn by it instead."""
        return self._table.positions()

    def embed(self) -> Float[Tensor, "vocab d_model"]:
        """Row t is what token t puts on the stream (without positions)."""
        return self._table.embed()


def _first(value: int | list[int] | None) -> int | None:
    return value[0] if isinstance(value, list) else value


def config_of(model: nn.Module) -> Config | None:
    """The Hugging Face config of a model, or None for a plain module."""
    config = getattr(model, "config", None)
    return cast(Config, config) if hasattr(config, "model_type") else None


def measure(model: nn.Module, row: Family) -> Geometry:
    """Read the sizes of a network that a table row describes."""
    config = config_of(model)
    assert config is not None
    block = f"{row.blocks}.0"
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    inside = 0 if row.input_major else 1
    z, d_mlp = (
        model.get_parameter(f"{block}.{path}.weight").shape[inside]
        for path in (row.attn_out, row.mlp_down)
    )
    vocab, d_model = model.get_parameter(f"{row.embed}.weight").shape
    return Geometry(
        n_layers=len(list(model.get_submodule(row.blocks).children())),
        d_model=d_model,
        d_mlp=d_mlp,
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_head=z // heads,
        vocab_size=vocab,
        context=config.max_position_embeddings,
        parallel=bool(row.parallel and getattr(config, row.parallel)),
    )
