"""What every decompilation is measured against: neurons, PCA, a random dictionary, the mean.

Neurons and PCA describe the block's true output: they keep the whole original computation and only
*say* it in few numbers, so they are favoured, and a decompilation that is no better has said
nothing. All have as many active numbers per token as the parts they are compared with.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.baselines.linear import strongest
from unweave.dictionaries.baselines.neurons import (
    Block,
    ExactAttentionOutput,
    ExactMLP,
    ExactProjection,
)
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.dictionaries.kernels.sparse import Code, decode
from unweave.dictionaries.part import Part

__all__ = [
    "Block",
    "ExactAttentionOutput",
    "ExactMLP",
    "ExactProjection",
    "FewCoefficients",
    "MeanOutput",
    "SignedLatents",
    "random_part",
    "top_neurons",
    "top_pca",
]


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
        return Code(*strongest(self._coefficients(x.float()), self._norm, self._k))

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


def top_neurons(block: Block, start_output: Float[Tensor, " d_out"], k: int) -> FewCoefficients:
    """The block's own k neurons that write most on a token; the others write nothing."""
    return FewCoefficients(block.neurons, block.W_out, block.b_out, start_output, k)


def top_pca(
    block: nn.Module,
    y: Float[Tensor, "vectors d_out"],
    start_output: Float[Tensor, " d_out"],
    k: int,
) -> FewCoefficients:
    """The k largest coordinates of the block's true output in its principal directions."""
    mean, directions, _ = principal_directions(y)
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
    control = Part(part.spec.model_copy(update={"skip": False})).to(y.device)
    for name in ("W_enc", "W_dec", *(["W_gate"] if part.spec.gated else [])):
        trained = getattr(part, name).detach()
        drawn = torch.randn(trained.shape, generator=generator).to(trained.device)
        norm = trained.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
        getattr(control, name).data.copy_(drawn * norm)
    control.b_enc.data.copy_(part.b_enc.detach())
    if part.b_gate is not None and control.b_gate is not None:
        control.b_gate.data.copy_(part.b_gate.detach())
    control.b_dec.data.copy_(y.mean(0) * part.spec.output_scale)
    control.start_output.copy_(part.start_output)
    return control
