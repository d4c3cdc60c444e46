"""Is a latent really one model's own? Latent scaling (Minder, Dumas et al. 2025, 2504.02922).

A crosscoder may call a shared concept exclusive: the penalty shrinks a weak decoder to nothing
(complete shrinkage), or the other model has the concept from latents of its own (decoupling). So
one asks the data how much of d, the latent's direction in its own model, the other model holds
when the latent is active:

    beta = argmin sum over rows |t - beta f d|^2 = sum f <d, t> / (|d|^2 sum f^2)

with t the error of each model's reconstruction (the own latent's part put back) or the
reconstruction itself, less its offset. nu = beta_other / beta_own is near 0 for what is truly
exclusive; nu_err tells shrinkage, nu_rec decoupling.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.crosscoder import (
    Classes,
    beside,
    classes,
    length_difference,
    pair_of_sites,
    site_lengths,
)
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.kernels.ragged import inner
from unweave.errors import UserError

MAX_NU_ERR, MAX_NU_REC = 0.2, 0.5
"""A latent is truly exclusive when both nu are below these (Minder et al. 2025)."""


class Scaling(NamedTuple):
    """Latent scaling of every latent between two sites; nan where a latent never fired."""

    nu_err: Float[Tensor, " latents"]
    """beta of the other model's error over that of the own model's; high: complete shrinkage."""
    nu_rec: Float[Tensor, " latents"]
    """The same for reconstructions; high: the other model has it from other latents."""
    beta: Float[Tensor, "latents targets"]
    """beta for own error, other's error, own reconstruction, other's reconstruction."""
    fired: Float[Tensor, " latents"]
    """In how many rows each latent was active."""

    @property
    def genuine(self) -> Bool[Tensor, " latents"]:
        """Where the data bear an exclusive latent out."""
        return (self.nu_err.abs() < MAX_NU_ERR) & (self.nu_rec.abs() < MAX_NU_REC)


class Diff(NamedTuple):
    """Two models compared through a crosscoder, among the latents that fired."""

    counts: dict[str, int]
    """Latents by class of their decoders' lengths."""
    genuine: dict[str, int]
    """Of the exclusive ones, those that latent scaling bears out."""
    classes: Classes
    """The classes themselves."""
    delta: Float[Tensor, " latents"]
    """0 the first model's alone, 1 the second's."""
    scaling: Scaling
    """What the data say."""


@torch.no_grad()
def latent_scaling(
    dictionary: Dictionary,
    vectors: Mapping[str, Float[Tensor, "rows _"]],
    *,
    first: str | None = None,
    second: str | None = None,
    batch: int = 4096,
) -> Scaling:
    """Latent scaling on held-out raw vectors; a latent's own model is where its decoder is longer.

    Sites need equal width, as a direction of one is looked for in the other; vectors are compared
    in the crosscoder's scaled units. No gradients.

    Raises:
        UserError: sites that the crosscoder does not write, or of different widths.
    """
    a, b = pair_of_sites(dictionary, first, second)
    lengths = site_lengths(dictionary)
    _check_widths(dictionary, a, b)
    own_is_b = lengths[:, b] > lengths[:, a]
    parts = dictionary.decoder().split([p.width for p in dictionary.spec.writes], dim=1)
    direction = torch.where(own_is_b[:, None], parts[b], parts[a])
    sums = torch.zeros(dictionary.n_latents, 5, dtype=torch.float64)
    fired = torch.zeros(dictionary.n_latents, dtype=torch.long)
    x = beside(dictionary, vectors)
    for rows in x.split(batch):
        code = dictionary.encode(rows)
        fired += code.fired().cpu()
        sums += _sums(dictionary, rows, code, direction, (a, b)).cpu()
    square = direction.square().sum(1).double().cpu() * sums[:, 4]
    beta = sums[:, :4] / square[:, None]  # error of a, of b, reconstruction of a, of b
    at_b = own_is_b.cpu()[:, None]
    own = torch.where(at_b, beta[:, [1, 3]], beta[:, [0, 2]])
    other = torch.where(at_b, beta[:, [0, 2]], beta[:, [1, 3]])
    own[:, 0] += 1.0  # the latent's own part, put back into its model's error
    ordered = torch.stack([own[:, 0], other[:, 0], own[:, 1], other[:, 1]], dim=1)
    return Scaling(other[:, 0] / own[:, 0], other[:, 1] / own[:, 1], ordered, fired.double())


def _check_widths(dictionary: Dictionary, a: int, b: int) -> None:
    ports = dictionary.spec.writes
    if ports[a].width != ports[b].width:
        raise UserError(
            f"{ports[a].site} and {ports[b].site} have widths {ports[a].width} and "
            f"{ports[b].width}: a direction of one cannot be looked for in the other"
        )


def _sums(
    dictionary: Dictionary,
    rows: Tensor,
    code: SparseCode,
    direction: Tensor,
    pair: tuple[int, int],
) -> Float[Tensor, "latents sums"]:
    """Per latent the sums of f <d, t> for four targets t, and of f^2; entries of the code only."""
    widths = [port.width for port in dictionary.spec.writes]
    written = dictionary.decode(code) * dictionary.output_scale
    y = rows * dictionary.output_scale
    offset = dictionary.b_dec.split(widths)
    said, true = written.split(widths, dim=1), y.split(widths, dim=1)
    errors = [true[place] - said[place] for place in pair]
    reconstructions = [said[place] - offset[place] for place in pair]
    found = []
    for target in (*errors, *reconstructions):
        dot = inner(target.contiguous(), direction.contiguous(), code.support)
        found.append(code.value * dot)
    found.append(code.value.square())
    entries = torch.stack(found, dim=1).double()
    sums = entries.new_zeros(dictionary.n_latents, len(found))
    return sums.index_add_(0, code.support.latent, entries)


def diff_sites(
    dictionary: Dictionary,
    vectors: Mapping[str, Float[Tensor, "rows _"]],
    *,
    first: str | None = None,
    second: str | None = None,
) -> Diff:
    """Which latents are one model's own, by their decoders and by held-out data.

    Raises:
        UserError: sites that the crosscoder does not write.
    """
    scaling = latent_scaling(dictionary, vectors, first=first, second=second)
    delta = length_difference(dictionary, first, second).cpu()
    found = classes(delta)
    alive = scaling.fired > 0
    genuine = {
        name: int((getattr(found, name) & alive & scaling.genuine).sum())
        for name in ("only_first", "only_second")
    }
    return Diff(found.counts(alive), genuine, found, delta, scaling)
