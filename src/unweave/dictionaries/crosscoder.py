"""Crosscoders (Lindsey et al. 2024): one set of latents for several layers, checkpoints or models.

    f = activation(sum over sites of W_enc^s x^s + b_enc)
    y_hat^s = W_dec^s f + b_dec^s

The length of a latent's decoder at each site says where the concept lives; between two models,

    Delta = 1/2 ((||d_B|| - ||d_A||) / max(||d_A||, ||d_B||) + 1)

is 0 for what only A has, 1 for what only B has and 1/2 for what they share alike. A length of zero
may be an artefact of training: `validate.diffing` asks the data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Activation, DictionarySpec, Port
from unweave.errors import UserError

EXCLUSIVE, SHARED = 0.1, (0.4, 0.6)
"""Delta within `EXCLUSIVE` of an end: one model's own; within `SHARED`: both models' alike."""


def crosscoder(
    widths: Mapping[str, int], n_latents: int, activation: Activation, **changes: Any
) -> DictionarySpec:
    """A dictionary that reads and writes several sites, given with their widths.

    Decoder rows are free, and penalties add up their lengths at the sites (L1-of-norms).
    """
    ports = tuple(Port(site=site, width=width) for site, width in widths.items())
    return DictionarySpec(
        reads=ports,
        writes=ports,
        n_latents=n_latents,
        activation=activation,
        **{"decoder": "free", "norm": "sum", **changes},
    )


def beside(
    dictionary: Dictionary, vectors: Mapping[str, Float[Tensor, "rows _"]]
) -> Float[Tensor, "rows d_in"]:
    """Raw vectors of the sites that a dictionary reads, beside each other, as it takes them."""
    missing = [p.site for p in dictionary.spec.reads if p.site not in vectors]
    if missing:
        raise UserError(f"{dictionary.spec.name} reads {missing[0]}: there are no vectors of it")
    return torch.cat([vectors[port.site] for port in dictionary.spec.reads], dim=1)


@torch.no_grad()
def site_lengths(dictionary: Dictionary) -> Float[Tensor, "latents sites"]:
    """Length of each latent's decoder at each site written, in scaled units.

    Scaled units make a site with large vectors no more important than one with small ones.
    """
    widths = [port.width for port in dictionary.spec.writes]
    parts = dictionary.decoder().split(widths, dim=1)
    return torch.stack([part.norm(dim=1) for part in parts], dim=1)


def relative_lengths(dictionary: Dictionary) -> Float[Tensor, "latents sites"]:
    """The same over the largest of each latent: 1 where it writes most, 0 where it does not."""
    lengths = site_lengths(dictionary)
    return lengths / lengths.amax(1, keepdim=True).clamp_min(1e-12)


def length_difference(
    dictionary: Dictionary, first: str | None = None, second: str | None = None
) -> Float[Tensor, " latents"]:
    """Delta between two sites written: 0 the first's alone, 1/2 both alike, 1 the second's alone.

    Raises:
        UserError: no two sites, or a site that is not written.
    """
    a, b = pair_of_sites(dictionary, first, second)
    lengths = site_lengths(dictionary)
    difference = lengths[:, b] - lengths[:, a]
    return 0.5 * (difference / lengths[:, [a, b]].amax(1).clamp_min(1e-12) + 1)


def pair_of_sites(
    dictionary: Dictionary, first: str | None = None, second: str | None = None
) -> tuple[int, int]:
    """Places of two sites among those written; the only two where none are named.

    Raises:
        UserError: no two sites, or a site that is not written.
    """
    sites = [port.site for port in dictionary.spec.writes]
    if first is None and second is None and len(sites) == 2:
        return 0, 1
    for site in (first, second):
        if site not in sites:
            raise UserError(
                f"{dictionary.spec.name} writes {', '.join(sites)}: name two of them to compare, "
                f"not {site}"
            )
    return sites.index(str(first)), sites.index(str(second))


class Classes(NamedTuple):
    """Which latents belong to whom, by the lengths of their decoders."""

    only_first: Bool[Tensor, " latents"]
    """Delta at most `EXCLUSIVE`."""
    only_second: Bool[Tensor, " latents"]
    """Delta at least 1 - `EXCLUSIVE`."""
    shared: Bool[Tensor, " latents"]
    """Delta within `SHARED`."""
    between: Bool[Tensor, " latents"]
    """The others."""

    def counts(self, among: Bool[Tensor, " latents"] | None = None) -> dict[str, int]:
        """How many of each, among those given."""
        fields: Sequence[str] = self._fields
        masks = {name: getattr(self, name) for name in fields}
        if among is not None:
            masks = {name: mask & among for name, mask in masks.items()}
        return {name: int(mask.sum()) for name, mask in masks.items()}


def classes(delta: Float[Tensor, " latents"]) -> Classes:
    """Sort latents by Delta (bounds of Minder et al. 2025)."""
    first, second = delta <= EXCLUSIVE, delta >= 1 - EXCLUSIVE
    shared = (delta >= SHARED[0]) & (delta <= SHARED[1])
    return Classes(first, second, shared, ~(first | second | shared))
