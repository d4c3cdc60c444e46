"""What every decompilation is measured against: neurons, PCA, a random dictionary, the mean.

Neurons and PCA describe the block's true output: they keep the whole original computation and only
*say* it in few numbers, so they are favoured, and a decompilation that is no better has said
nothing. All have as many active numbers per token as the parts they are compared with.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.dictionaries.kernels.sparse import Code, decode
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.subject import AttentionWeights, MLPWeights

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
    """The subject's own MLP, from its weights by table."""

    def __init__(self, weights: MLPWeights) -> None:
        super().__init__()
        if weights.activation not in _ACTIVATIONS:
            raise UserError(
                f"The activation function {weights.activation} has no formula in "
                f"unweave.validate.baselines; known are {', '.join(_ACTIVATIONS)}"
            )
        self._weights, self._act = weights, _ACTIVATIONS[weights.activation]
        self.W_out = weights.W_out.float().contiguous()
        self.b_out = torch.zeros(self.W_out.shape[1]) if weights.b_out is None else weights.b_out

    def neurons(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_mlp"]:
        """Activations of the neurons."""
        w = self._weights
        up = F.linear(x, w.W_in, w.b_in)
        if w.W_gate is None:
            return self._act(up)
        return self._act(F.linear(x, w.W_gate, w.b_gate)) * up

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`mlp.in` to `mlp.out`."""
        return self.neurons(x) @ self.W_out + self.b_out


class ExactAttentionOutput(nn.Module):
    """The subject's own attention output projection; its neurons are the entries of z."""

    def __init__(self, weights: AttentionWeights) -> None:
        super().__init__()
        self.W_out = weights.W_O.flatten(0, 1).float().contiguous()
        self.b_out = torch.zeros(self.W_out.shape[1]) if weights.b_O is None else weights.b_O

    def neurons(self, z: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The entries of z."""
        return z

    def forward(self, z: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`attn.z` to `attn.out`."""
        return z @ self.W_out + self.b_out


class FewCoefficients(nn.Module):
    """A stand-in that writes the k strongest of some signed coefficients along fixed rows."""

    def __init__(
        self,
        coefficients: Callable[[Tensor], Tensor],
        W_dec: Float[Tensor, "n d_out"],
        offset: Float[Tensor, " d_out"],
        start_output: Float[Tensor, " d_out"],
        k: int,
    ) -> None:
        super().__init__()
        self._coefficients, self.W_dec, self._offset = coefficients, W_dec, offset
        self._start, self._k = start_output, min(k, len(W_dec))
        self._norm = W_dec.norm(dim=1)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Code:
        """The k coefficients that write most, with their signs."""
        all_of_them = self._coefficients(x.float())
        latent = (all_of_them.abs() * self._norm).topk(self._k, dim=1, sorted=False).indices
        return Code(latent, all_of_them.gather(1, latent))

    def forward(self, x: Tensor) -> Tensor:
        """Every vector's output; [batch, pos, d] starts with the constant of the start token."""
        rows = x.reshape(-1, x.shape[-1])
        y = (decode(self.encode(rows), self.W_dec) + self._offset).view(*x.shape[:-1], -1)
        if x.ndim == 3:
            y = torch.cat([self._start.expand(len(y), 1, -1), y[:, 1:]], dim=1)
        return y.to(x.dtype)


class SignedLatents:
    """A baseline's coefficients as latents that are never negative: +i is i, -i is i + n."""

    def __init__(self, few: FewCoefficients) -> None:
        self._few, self._n = few, len(few.W_dec)
        self.n_latents = 2 * self._n

    def encode(self, x: Float[Tensor, "rows d_in"]) -> Code:
        """The strongest coefficients' sizes, at the latent of their sign."""
        code = self._few.encode(x)
        return Code(code.latent + self._n * (code.value < 0), code.value.abs())


def top_neurons(
    block: ExactMLP | ExactAttentionOutput, start_output: Float[Tensor, " d_out"], k: int
) -> FewCoefficients:
    """The block's own k neurons that write most on a token; the others write nothing."""
    return FewCoefficients(block.neurons, block.W_out, block.b_out, start_output, k)


def top_pca(
    block: nn.Module,
    y: Float[Tensor, "vectors d_out"],
    start_output: Float[Tensor, " d_out"],
    k: int,
) -> FewCoefficients:
    """The k largest coordinates of the block's true output in its principal directions."""
    mean = y.mean(0)
    directions = torch.linalg.eigh((y - mean).T @ (y - mean)).eigenvectors.T.flip(0).contiguous()
    return FewCoefficients(
        lambda x: (block(x) - mean) @ directions.T, directions, mean, start_output, k
    )


class MeanOutput(nn.Module):
    """Mean ablation: the same output whatever comes in, but for the start token's constant."""

    def __init__(self, y: Float[Tensor, "vectors d_out"], start: Tensor) -> None:
        super().__init__()
        self._mean, self._start = y.mean(0), start

    def forward(self, x: Tensor) -> Tensor:
        """[batch, pos, d_in] to [batch, pos, d_out]."""
        y = self._mean.expand(*x.shape[:-1], -1).clone()
        y[:, 0] = self._start
        return y.to(x.dtype)


def random_part(part: Part, y: Float[Tensor, "vectors d_out"], *, seed: int) -> Part:
    """A dictionary of random directions with the norms, sparsity and offset of a fitted one.

    A control that must fail: encoder rows keep their norms, decoder rows are unit vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    control = Part(part.spec.model_copy(update={"skip": False}))
    for name in ("W_enc", "W_dec"):
        trained = getattr(part, name).detach()
        drawn = torch.randn(trained.shape, generator=generator)
        norm = trained.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
        getattr(control, name).data.copy_(drawn * norm)
    control.b_enc.data.copy_(part.b_enc.detach())
    control.b_dec.data.copy_(y.mean(0) * part.spec.output_scale)
    control.start_output.copy_(part.start_output)
    return control
