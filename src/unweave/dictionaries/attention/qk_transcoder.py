"""QK transcoders (Wynroe & Sharkey 2024): the features that a block's queries and keys consist of.

    c_Q = act(s W_enc_Q (x - b_in) + b_enc_Q)      q_h = sum_i c_Q[i] W_dec_Q[i, h] + b_dec_Q[h]
    c_K = act(s W_enc_K (x - b_in) + b_enc_K)      k_g = sum_j c_K[j] W_dec_K[j, g] + b_dec_K[g]

x is the block's `attn.in`, behind the norm and its gain. Queries and keys are the ones before
rotary positions, so that what a feature writes does not depend on where it stands; `pattern` turns
them into attention. They are trained on the pattern, not on q and k: most of a score's variance
drowns in the softmax.

Position 0 holds the start token, whose key is the same in every row and draws most of the attention
of many heads: that key is stored (`start_key`) and costs no features. The query there sees itself
alone, so its pattern is one whatever it is; it is given as the offset. Position 0 is never encoded.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.artifact.atomic import write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.attention.qk_spec import QKTranscoderSpec
from unweave.dictionaries.code import SparseCode, of_width
from unweave.dictionaries.encoder.linear import linear_scorer
from unweave.dictionaries.kernels.ragged import pick, write
from unweave.dictionaries.kernels.sparse import product_dtype

Which = Literal["Q", "K"]


class SidePass(NamedTuple):
    """One differentiable pass of the query or the key features."""

    y: Float[Tensor, "rows heads d_head"]
    """Queries or keys, before rotary positions."""
    code: SparseCode | None
    """The features, where they are chosen (TopK and its kin)."""
    latents: Float[Tensor, "rows latents"] | None
    """The features, where all are computed."""
    pre: Float[Tensor, "rows latents"] | None
    """Their pre-activations."""

    @property
    def sparse_code(self) -> SparseCode:
        """The features as a code, whichever way they were computed."""
        if self.code is not None:
            return self.code
        assert self.latents is not None
        return SparseCode.from_dense(self.latents)


class QKPass(NamedTuple):
    """One differentiable pass over whole rows."""

    q: Float[Tensor, "batch pos heads d_head"]
    """Queries, before rotary positions."""
    k: Float[Tensor, "batch pos kv_heads d_head"]
    """Keys, before rotary positions; the stored one at position 0."""
    query_side: SidePass
    """Query features of positions 1 and later."""
    key_side: SidePass
    """Key features of the same."""


class QKTranscoder(nn.Module):
    """See the module; a new one is all zeros (`qk_start` fills it) and in `eval` mode, exact."""

    W_enc_Q: Tensor
    b_enc_Q: Tensor
    W_dec_Q: Tensor
    b_dec_Q: Tensor
    W_enc_K: Tensor
    b_enc_K: Tensor
    W_dec_K: Tensor
    b_dec_K: Tensor
    b_in: Tensor
    start_key: Tensor

    def __init__(self, spec: QKTranscoderSpec) -> None:
        super().__init__()
        self.spec = spec
        for which, latents, heads in (
            ("Q", spec.n_queries, spec.heads),
            ("K", spec.n_keys, spec.kv_heads),
        ):
            shapes = {
                "W_enc": (latents, spec.d_in),
                "b_enc": (latents,),
                "W_dec": (latents, heads, spec.d_head),
                "b_dec": (heads, spec.d_head),
            }
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_{which}", nn.Parameter(torch.zeros(shape)))
        self.activation_Q = spec.query_activation.build(spec.n_queries)
        self.activation_K = spec.key_activation.build(spec.n_keys)
        # Learning it too would change nothing that the encoders' biases cannot.
        self.register_buffer("b_in", torch.zeros(spec.d_in))
        self.register_buffer("start_key", torch.zeros(spec.kv_heads, spec.d_head))
        self.eval()

    def side(self, which: Which) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`W_enc`, `b_enc`, `W_dec`, `b_dec` of the query or the key features."""
        parts = ("W_enc", "b_enc", "W_dec", "b_dec")
        W_enc, b_enc, W_dec, b_dec = (getattr(self, f"{part}_{which}") for part in parts)
        return W_enc, b_enc, W_dec, b_dec

    def lengths(self, which: Which) -> Float[Tensor, " latents"]:
        """Length of what one unit of each feature writes, over all heads."""
        return getattr(self, f"W_dec_{which}").flatten(1).norm(dim=1)

    def read(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """What encoders multiply: centred and scaled."""
        x = of_width(x, self.spec.d_in, f"The QK transcoder of {self.spec.site}")
        return (x.to(self.b_in.dtype) - self.b_in) * self.spec.input_scale

    def run_side(self, read: Float[Tensor, "rows d_in"], which: Which) -> SidePass:
        """Features and what they write, from what `read` gave; differentiable in both."""
        W_enc, b_enc, W_dec, b_dec = self.side(which)
        dtype = product_dtype() if self._rounds(read) else read.dtype
        if hasattr(getattr(self, f"activation_{which}"), "select"):
            code = self._chosen(read, which, dtype)
            y = write(code.value, W_dec.flatten(1), code.support, dtype=dtype)
            return SidePass(y.view(-1, *b_dec.shape) + b_dec, code, None, None)
        pre = (read.to(dtype) @ W_enc.to(dtype).T).to(read.dtype) + b_enc
        latents = getattr(self, f"activation_{which}")(pre)
        y = (latents.to(dtype) @ W_dec.flatten(1).to(dtype)).to(read.dtype)
        return SidePass(y.view(-1, *b_dec.shape) + b_dec, None, latents, pre)

    def run(self, x: Float[Tensor, "batch pos d_in"]) -> QKPass:
        """Queries and keys of whole rows, whose position 0 holds the start token."""
        read = self.read(x[:, 1:].flatten(0, 1))
        sides = {which: self.run_side(read, which) for which in ("Q", "K")}
        first = {"Q": self.b_dec_Q, "K": self.start_key}
        q, k = (
            torch.cat([first[w].expand(len(x), 1, -1, -1), side.y.unflatten(0, (len(x), -1))], 1)
            for w, side in sides.items()
        )
        return QKPass(q, k, sides["Q"], sides["K"])

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"], which: Which) -> SparseCode:
        """Features of raw site vectors, whatever their position; no gradients."""
        read = self.read(x)
        if hasattr(getattr(self, f"activation_{which}"), "select"):
            return self._chosen(read, which, read.dtype)
        return self.run_side(read, which).sparse_code

    def decode(self, code: SparseCode, which: Which) -> Float[Tensor, "rows heads d_head"]:
        """The queries or keys that a code stands for, offsets included."""
        _, _, W_dec, b_dec = self.side(which)
        return write(code.value, W_dec.flatten(1), code.support).view(-1, *b_dec.shape) + b_dec

    def _chosen(self, read: Tensor, which: Which, dtype: torch.dtype) -> SparseCode:
        W_enc, b_enc, _, _ = self.side(which)
        activation = getattr(self, f"activation_{which}")
        # Decoder rows are free, so those are chosen that write most, not those that fire most.
        length = self.lengths(which).detach().clamp_min(1e-12)
        scorer = linear_scorer(W_enc * length[:, None], b_enc * length, dtype)
        low = read.detach().to(dtype)
        support, score = activation.select(scorer, low, len(W_enc))
        known = score / length[support.latent]
        return SparseCode(support, activation.value(pick(known, read, W_enc, b_enc, support, low)))

    def _rounds(self, read: Tensor) -> bool:
        return self.training and read.dtype == torch.float32 and read.device.type == "cpu"

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `spec.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_tensors(folder / "weights.safetensors", state)
        write_json(folder / "spec.json", self.spec.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "QKTranscoder":
        """Read what `save` wrote.

        Raises:
            UserError: a missing file, a spec that is none, a tensor missing, misshapen or not
                finite.
        """
        transcoder = cls(spec_in(folder, QKTranscoderSpec, "a QK transcoder"))
        expect = {
            name: TensorForm(tuple(tensor.shape), torch.float32)
            for name, tensor in transcoder.state_dict().items()
        }
        transcoder.load_state_dict(load_tensors(folder / "weights.safetensors", expect))
        return transcoder
