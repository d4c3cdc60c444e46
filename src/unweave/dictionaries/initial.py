"""Where a dictionary starts: random or from data, encoder beside decoder, offset in the middle."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn

from unweave.dictionaries.coders.starts import atom_rows, cluster_rows, subspace_rows
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.encoder.switch import SwitchEncoder

_SOUGHT: dict[str, Callable[..., Tensor]] = {
    "subspace": subspace_rows,
    "clusters": cluster_rows,
    "atoms": atom_rows,
}
"""Starts whose directions are found in the data rather than drawn from it."""


DecoderStart = Literal["random", "uniform", "data", "subspace", "clusters", "atoms"]
"""Where decoder rows may start; `Start` says what each is."""


class Start(BaseModel):
    """How weights are set before training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    decoder: DecoderStart = "random"
    """Directions of decoder rows: random; U(-1, 1) / sqrt(width) per entry (Anthropic 2025,
    whose lengths are kept); data points from which the mean is taken; random ones in the span of
    99 % of the variance; centres of k-means; data points that those before do not make up. The
    last three are for sites that fill a part of their width, such as attention outputs, where most
    random directions are born dead (2508.16929); `clusters` needs a vector a latent to begin with.
    """
    decoder_norm: PositiveFloat = 1.0
    """Length of a decoder row where it is free."""
    encoder: PositiveFloat = 1.0
    """An autoencoder's encoder rows are its decoder rows times this; a transcoder's have this
    length, and point where its decoder rows' data came from when they start at data, or at what
    is read on average where a direction found in the data is written."""
    offset: Literal["zero", "mean", "median"] = "mean"
    """`b_dec`: zero, the mean or the geometric median of what is to be written."""
    skip: Literal["zero", "ridge"] = "zero"
    """`W_skip`, where there is one: zero (Paulo et al. 2025), or the linear map that fits best, in
    closed form; latents then start at what that leaves over."""
    fires: float | None = Field(default=None, gt=0, lt=1)
    """When given, each encoder bias is set so that its latent fires on this share of the data."""


def geometric_median(
    vectors: Float[Tensor, "vectors d"], *, steps: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d"]:
    """The point with the smallest sum of distances, by Weiszfeld's iteration."""
    guess = vectors.mean(0)
    for _ in range(steps):
        weight = 1 / (vectors - guess).norm(dim=1).clamp_min(1e-12)
        last, guess = guess, (weight[:, None] * vectors).sum(0) / weight.sum()
        if (guess - last).norm() <= tolerance * guess.norm():
            break
    return guess


def ridge_map(
    x: Float[Tensor, "vectors d_in"], y: Float[Tensor, "vectors d_out"], *, ridge: float = 1e-2
) -> Float[Tensor, "d_out d_in"]:
    """The linear map from x to y, both about their means, by ridge regression in closed form.

    `ridge` is taken relative to the mean variance of x.
    """
    left, right = x - x.mean(0), y - y.mean(0)
    gram = left.T @ left
    gram.diagonal().add_((ridge * gram.diagonal().mean()).clamp_min(1e-6))
    return torch.linalg.solve(gram, left.T @ right).T


@torch.no_grad()
def initialise_(
    dictionary: Dictionary,
    x: Float[Tensor, "vectors d_in"],
    y: Float[Tensor, "vectors d_out"],
    start: Start,
    *,
    seed: int,
) -> None:
    """Set every weight from scaled vectors that it reads (x) and should write (y)."""
    generator = torch.Generator().manual_seed(seed)
    spec = dictionary.spec
    if dictionary.W_skip is not None and start.skip == "ridge":
        dictionary.W_skip.copy_(ridge_map(x, y))
        y = y - x @ dictionary.W_skip.T
    dictionary.b_dec.copy_(_middle(y, start))
    # Chance comes from the processor, so that a run starts from the same weights on every device.
    drawn = torch.randint(len(y), (spec.n_latents,), generator=generator).to(y.device)
    if start.decoder in _SOUGHT:
        decoder = _SOUGHT[start.decoder](y, spec.n_latents, seed=seed) * start.decoder_norm
    else:
        decoder = _directions(dictionary.W_dec, y, drawn, start, generator)
    dictionary.W_dec.copy_(decoder)
    same = [p.site for p in spec.reads] == [p.site for p in spec.writes]
    read = x - dictionary.b_dec if spec.pre_bias else x
    if same:
        encoder = decoder * start.encoder
    elif start.decoder == "data":
        encoder = _unit(x[drawn] - x.mean(0)) * start.encoder
    elif start.decoder in _SOUGHT:
        encoder = _read_with(decoder, x[:8192], y[:8192]) * start.encoder
    else:
        encoder = _unit(torch.randn(spec.n_latents, spec.d_in, generator=generator)).to(x.device)
        encoder *= start.encoder
    _fill_encoder(dictionary, encoder, read.mean(0), generator)
    if start.fires is not None and hasattr(dictionary.encoder, "W_enc"):
        some = dictionary.W_enc @ read[:4096].T
        level = some.quantile(1 - start.fires, dim=1) if len(read) else some.new_zeros(())
        threshold = getattr(dictionary.activation, "threshold", 0.0)
        dictionary.b_enc.copy_(threshold - level)


def _middle(y: Tensor, start: Start) -> Tensor:
    if start.offset == "zero":
        return torch.zeros_like(y[0])
    return y.mean(0) if start.offset == "mean" else geometric_median(y[:8192])


def _directions(
    W_dec: Tensor, y: Tensor, drawn: Tensor, start: Start, generator: torch.Generator
) -> Tensor:
    if start.decoder == "uniform":
        bound = 1 / math.sqrt(W_dec.shape[1])
        return (2 * torch.rand(W_dec.shape, generator=generator) - 1).to(y.device) * bound
    if start.decoder == "data":
        return _unit(y[drawn] - y.mean(0)) * start.decoder_norm
    return _unit(torch.randn(W_dec.shape, generator=generator)).to(y.device) * start.decoder_norm


def _read_with(decoder: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Directions from the mean of what is read, weighted by how much of each row is written."""
    present = torch.relu((y - y.mean(0)) @ decoder.T)
    return _unit(present.T @ (x - x.mean(0)))


def _fill_encoder(
    dictionary: Dictionary, rows: Tensor, middle: Tensor, generator: torch.Generator
) -> None:
    encoder: nn.Module = dictionary.encoder
    d_in = dictionary.spec.d_in
    for name, weight in encoder.named_parameters():
        if name == "W_enc":
            weight.copy_(rows)
        elif name.startswith("W_"):
            weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(d_in))
    if isinstance(encoder, SwitchEncoder):
        encoder.b_router.copy_(middle)
    gate = getattr(encoder, "b_gate", None)
    if gate is not None:
        gate.fill_(1.0)  # open at first, or a latent and its gate would have to learn together


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
