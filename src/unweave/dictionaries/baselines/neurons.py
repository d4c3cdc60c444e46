"""The network's own neurons as a dictionary: the baseline that every other must beat.

A site's coordinates are its neurons where it lies behind a nonlinearity; a block's neurons are
read at its input and write along its output matrix. Nothing is learned, so nothing can be wrong
with them but that they are not what the network computes with.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.dictionaries.baselines.linear import Coefficients, read_by
from unweave.dictionaries.code import of_width
from unweave.dictionaries.part_names import place_of
from unweave.errors import UserError
from unweave.subject import AttentionWeights, MLPWeights, Subject

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class ExactMLP(nn.Module):
    """The subject's own MLP, from its weights by table; in float32 whatever theirs is."""

    def __init__(self, weights: MLPWeights) -> None:
        super().__init__()
        if weights.activation not in _ACTIVATIONS:
            raise UserError(
                f"The activation function {weights.activation} has no formula in "
                f"unweave.dictionaries.baselines.neurons; known are {', '.join(_ACTIVATIONS)}"
            )
        self._act, self.d_in = _ACTIVATIONS[weights.activation], weights.W_in.shape[1]
        self._read = _in_float32(weights.W_in, weights.b_in)
        gate = weights.W_gate
        self._gate = None if gate is None else _in_float32(gate, weights.b_gate)
        self.W_out = weights.W_out.float().contiguous()
        self.b_out = _offset(weights.b_out, self.W_out)

    def neurons(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_mlp"]:
        """Activations of the neurons."""
        up = F.linear(x, *self._read)
        return self._act(up) if self._gate is None else self._act(F.linear(x, *self._gate)) * up

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`mlp.in` to `mlp.out`."""
        return (self.neurons(x.float()) @ self.W_out + self.b_out).to(x.dtype)


class ExactAttentionOutput(nn.Module):
    """The subject's own attention output projection, in float32; z's entries are its neurons."""

    def __init__(self, weights: AttentionWeights) -> None:
        super().__init__()
        self.W_out = weights.W_O.flatten(0, 1).float().contiguous()
        self.d_in = len(self.W_out)
        self.b_out = _offset(weights.b_O, self.W_out)

    def neurons(self, z: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The entries of z."""
        return z

    def forward(self, z: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`attn.z` to `attn.out`."""
        return (z.float() @ self.W_out + self.b_out).to(z.dtype)


class ExactProjection(nn.Module):
    """The subject's own queries or keys, in float32; their entries are its neurons."""

    def __init__(
        self, W: Float[Tensor, "heads d_in d_head"], bias: Float[Tensor, "heads d_head"] | None
    ) -> None:
        super().__init__()
        self._read = W.transpose(1, 2).flatten(0, 1).float()
        self.d_in = W.shape[1]
        self.W_out = torch.eye(len(self._read), device=W.device)
        self.b_out = _offset(None if bias is None else bias.flatten(), self.W_out)

    def neurons(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The entries of all heads' queries or keys, without their bias."""
        return F.linear(x, self._read)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`attn.in` to `attn.q` or `attn.k`, heads side by side."""
        return (self.neurons(x.float()) + self.b_out).to(x.dtype)


Block = ExactMLP | ExactAttentionOutput | ExactProjection
"""What a part stands in for, exactly."""


def exact_block(subject: Subject, part: str) -> Block:
    """What a part of this name, such as `L7.k`, stands in for."""
    layer, kind = place_of(part)
    if kind == "mlp":
        return ExactMLP(subject.mlp_weights(layer))
    weights = subject.attention_weights(layer)
    if kind == "attn":
        return ExactAttentionOutput(weights)
    if kind == "q":
        return ExactProjection(weights.W_Q, weights.b_Q)
    groups = subject.n_heads // subject.n_kv_heads
    bias = None if weights.b_K is None else weights.b_K[::groups]
    return ExactProjection(weights.W_K[::groups], bias)


def _in_float32(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.float(), None if bias is None else bias.float()


def _offset(bias: Tensor | None, W_out: Tensor) -> Tensor:
    return W_out.new_zeros(W_out.shape[1]) if bias is None else bias.float()


def coordinates(
    d: int, *, k: int | None = None, b_dec: Float[Tensor, " d"] | None = None
) -> Coefficients:
    """The coordinates of a site of width d as latents, seen from `b_dec` or from zero."""
    offset = torch.zeros(d) if b_dec is None else b_dec
    rows = torch.eye(d).to(offset)
    return Coefficients(read_by(rows, offset), rows, b_dec=offset, k=k)


def neurons(block: Block, *, k: int | None = None) -> Coefficients:
    """A block's own neurons, from its input to its output; of them the k that write most."""

    def read(x: Tensor) -> Tensor:
        return block.neurons(of_width(x, block.d_in, "A block"))

    return Coefficients(read, block.W_out, b_dec=block.b_out, k=k)
