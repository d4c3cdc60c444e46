"""How long a description is, in bits: of the mathematics, and of what is said about it.

After MDL-SAE (Ayonrinde, Pearce, Sharkey, arXiv:2410.11179). Lengths are per token unless the
name says otherwise; B is the number of bits a real number is sent with.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from unweave.validate.bootstrap import BootstrapSettings, Interval, ratio_interval
from unweave.validate.semantic import PartScores

VALUE_BITS = 7
"""B of the paper's GPT-2 example."""


def dense_bits(width: int, value_bits: int = VALUE_BITS) -> float:
    """A dense vector: every coordinate.

    >>> dense_bits(768)
    5376.0
    """
    return float(width * value_bits)


def sparse_bits(l0: float | int, n_latents: int, value_bits: int = VALUE_BITS) -> float:
    """A sparse code: which latents, each by its index, and how strongly; L0 (B + log2 F)."""
    return l0 * (value_bits + float(np.log2(n_latents)))


def one_hot_bits(n_latents: int) -> float:
    """One latent per token, always of strength 1: its index alone.

    With a latent for each of GPT-2's contexts of 128 tokens, 50,257^128, an index takes 1,999 bits.
    The paper's 13,993 bits a token for one-hot codes is seven times that to the digit: its B bits
    multiply the index there, where strengths are all one (a reading: the text was not at hand).
    """
    return math.log2(n_latents)


def entropy_bits(frequency: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Entropy of firing or not at each frequency; 0 at 0 and 1."""
    inside = np.clip(frequency, 1e-300, 1.0)
    outside = np.clip(1.0 - frequency, 1e-300, 1.0)
    return -(frequency * np.log2(inside) + (1 - frequency) * np.log2(outside))


def frequency_bits(frequency: Float[np.ndarray, " latents"], value_bits: int = VALUE_BITS) -> float:
    """A sparse code with frequent latents cheap: sum of the entropies of firing, plus L0 B."""
    return float(entropy_bits(frequency).sum() + frequency.sum() * value_bits)


def dictionary_bits(
    n_latents: int, d_in: int, d_out: int, tokens: int, value_bits: int = VALUE_BITS
) -> float:
    """The dictionary's numbers, F (d_in + d_out + 2), amortised over the tokens it is used for.

    The two more are a latent's encoder bias and threshold.
    """
    return n_latents * (d_in + d_out + 2) * value_bits / tokens


def edge_bits(n_edges: int, n_nodes: int, value_bits: int = VALUE_BITS) -> float:
    """An interaction graph in all: for each edge both its ends and its weight."""
    return n_edges * (2 * float(np.log2(n_nodes)) + value_bits)


def mathematical_length(
    parts: Sequence[PartScores],
    settings: BootstrapSettings | None = None,
    *,
    value_bits: int = VALUE_BITS,
    amortised: float = 0.0,
) -> Interval:
    """Bits per held-out token to say which latents of all parts fire and how strongly.

    The frequency code, with the frequencies of the rows for explaining; the interval is over
    held-out rows. `amortised` (dictionaries, edges; bits per token) is added to all three.
    """
    bits = np.sum([part.row_bits_total + value_bits * part.row_firings for part in parts], axis=0)
    places = np.full(len(bits), float(parts[0].places_per_row))
    found = ratio_interval(bits, places, settings)
    return Interval(*(end + amortised for end in found))


def semantic_length(
    bits: Float[np.ndarray, " latents"], alive: Bool[np.ndarray, " latents"]
) -> float:
    """Bits of the descriptions of the latents alive, in all; a dead latent needs none."""
    return float(bits[alive].sum())
