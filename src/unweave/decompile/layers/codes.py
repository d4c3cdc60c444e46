"""Codes of a layer: latents and two constants behind them.

The offset is on everywhere but at the first position; there, at the start token, nothing is on but
the second constant. Tokens are the code of layer 0: one of them is on, so what is read of them is
a row.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unweave.decompile.layers.spec import CONSTANTS
from unweave.dictionaries.dictionary import Dictionary


def with_constants(
    latents: Float[Tensor, "batch pos latents"],
) -> Float[Tensor, "batch pos features"]:
    """Nothing but the second constant at the first position, the first one everywhere else."""
    later = latents.new_ones(*latents.shape[:2], 1)
    later[:, 0] = 0
    return torch.cat([latents * later, later, 1 - later], -1)


def activate(pre: Float[Tensor, "batch pos latents"], k: int) -> Float[Tensor, "batch pos feats"]:
    """The k largest pre-activations of each token through a ReLU, and the constants."""
    value, latent = pre.relu().topk(k, dim=-1, sorted=False)
    return with_constants(torch.zeros_like(pre).scatter(-1, latent, value))


def product(
    features: Shaped[Tensor, "batch pos *features"],
    weight: Float[Tensor, "features readers"],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch pos readers"]:
    """What readers read of a code, or of tokens; multiplied in `dtype`."""
    return times(features, weight, dtype) if features.is_floating_point() else weight[features]


def times(
    left: Float[Tensor, "... rows inner"],
    right: Float[Tensor, "... inner columns"],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "... rows columns"]:
    """A product of matrices, multiplied in `dtype` and held in that of the first."""
    if dtype is None or dtype == left.dtype:
        return left @ right
    return (left.to(dtype) @ right.to(dtype)).to(left.dtype)


def square(
    features: Shaped[Tensor, "batch pos *features"],
    gram: Float[Tensor, "features *features"],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch pos 1"]:
    """Mean square of the stream that a code stands for; of tokens, their own entry."""
    if not features.is_floating_point():
        return gram[features][..., None]
    return (product(features, gram, dtype) * features).sum(-1, keepdim=True)


@torch.no_grad()
def code_stream(
    dictionary: Dictionary, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos features"]:
    """What an autoencoder of the stream makes of it, with the constants."""
    code = dictionary.encode(stream.flatten(0, 1))
    return with_constants(code.dense().unflatten(0, stream.shape[:2]))


def decode_stream(
    dictionary: Dictionary,
    features: Float[Tensor, "batch pos features"],
    first: Float[Tensor, " d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """The stream that a code stands for; `first` is what stands at the start token."""
    return features @ written(dictionary, first)


def written(
    dictionary: Dictionary, first: Float[Tensor, " d_model"]
) -> Float[Tensor, "features d_model"]:
    """What one unit of each feature puts on the stream, the constants at the end."""
    offset = dictionary.b_dec.detach() / dictionary.output_scale
    return torch.cat([dictionary.directions(), offset[None], first[None]])


def n_features(latents: int) -> int:
    """How many features a layer of so many latents has."""
    return latents + CONSTANTS
