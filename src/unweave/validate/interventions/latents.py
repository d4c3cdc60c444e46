"""Which latents are tested, what is done to one, and its matched partner for the control."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unweave.dictionaries.code import SparseCode, Support
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.placed import Edit, Placed

Kind = Literal["zero", "mean", "clamp", "patch"]


class Intervention(BaseModel):
    """What is done to a latent at every place of a row but position 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Kind = "zero"
    """Set to zero, to its mean, to a multiple of its maximum, or to what it is in another row."""
    multiple: float = 2.0
    """Multiple of the maximum (clamp)."""

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"clamp x{self.multiple:g}" if self.kind == "clamp" else self.kind


class Latents(NamedTuple):
    """A dictionary's latents on some rows, position 0 left out."""

    values: Float[Tensor, "rows places latents"]
    """Activations."""
    directions: Float[Tensor, "latents d_out"]
    """What one unit of each writes."""

    @property
    def mass(self) -> Float[Tensor, " latents"]:
        """Sum of the norms of what each writes, whatever units its activations are in."""
        return self.values.abs().sum((0, 1)) * self.directions.norm(dim=1)

    @property
    def frequency(self) -> Float[Tensor, " latents"]:
        """Share of places where each is active."""
        return (self.values != 0).float().mean((0, 1))

    @property
    def strength(self) -> Float[Tensor, " latents"]:
        """Mean norm of what each writes where it is active."""
        places = (self.values != 0).sum((0, 1)).clamp_min(1)
        return self.mass / places


@torch.no_grad()
def latents_on(
    subject: Subject, one: Placed, rows: Int[Tensor, "rows pos"], *, batch: int = 16
) -> Latents:
    """Codes of rows in the untouched network."""
    found = []
    for group in rows.split(batch):
        sites = subject.run(group, capture=list(one.reads), logits=False).sites
        x = torch.cat([sites[s][:, 1:].flatten(2).flatten(0, 1) for s in one.reads], 1).float()
        dense = one.coder.encode(x).dense().float()
        found.append(dense.view(len(group), -1, dense.shape[1]).cpu())
    return Latents(torch.cat(found), one.coder.directions().float().cpu())


def sample_by_mass(latents: Latents, count: int, *, seed: int) -> Int[Tensor, " some"]:
    """Latents drawn without replacement with a chance in proportion to their mass.

    Raises:
        UserError: no latent is ever active.
    """
    mass = latents.mass
    alive = int((mass > 0).sum())
    if not alive:
        raise UserError("No latent is active on these rows: there is nothing to intervene on")
    random = torch.Generator().manual_seed(seed)
    return torch.multinomial(mass, min(count, alive), generator=random)


def partners(latents: Latents, chosen: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
    """For each latent the other one nearest in log frequency and log strength.

    Raises:
        UserError: fewer than two latents are ever active.
    """
    return alike(latents.frequency, latents.strength, chosen)


def alike(
    frequency: Float[Tensor, " latents"],
    strength: Float[Tensor, " latents"],
    chosen: Int[Tensor, " some"],
) -> Int[Tensor, " some"]:
    """The other latents nearest to those chosen in log frequency and log strength.

    Raises:
        UserError: fewer than two latents are ever active.
    """
    alive = (frequency > 0).nonzero()[:, 0]
    if len(alive) < 2:
        raise UserError("Only one latent is active on these rows: it has no matched partner")
    at = torch.stack([frequency[alive].log(), strength[alive].log()], 1)
    place = torch.searchsorted(alive, chosen)
    apart = torch.cdist(at[place], at)
    apart[torch.arange(len(chosen)), place] = torch.inf
    return alive[apart.argmin(1)]


def targets(
    latents: Latents, latent: int, which: Int[Tensor, " some"], act: Intervention, *, seed: int
) -> Float[Tensor, "some places"]:
    """What a latent is set to in some of the rows; those it is patched from are always others."""
    values = latents.values[:, :, latent]
    here = values[which]
    if act.kind == "zero":
        return torch.zeros_like(here)
    if act.kind == "mean":
        return torch.full_like(here, values.mean().item())
    if act.kind == "clamp":
        return torch.full_like(here, act.multiple * values.max().item())
    random = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, max(2, len(values)), which.shape, generator=random)
    return values[(which + shift) % len(values)]


def setting(latent: int, value: Float[Tensor, "rows places"]) -> Edit:
    """The edit that sets one latent and leaves all others."""

    def edit(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        kept = code.support.latent != latent
        flat = value.reshape(-1).to(code.value)
        row = torch.cat([code.support.row[kept], torch.arange(len(flat), device=flat.device)])
        which = torch.cat(
            [code.support.latent[kept], torch.full((len(flat),), latent, device=flat.device)]
        )
        return from_entries(row, which, torch.cat([code.value[kept], flat]), code)

    return edit


def from_entries(
    row: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
    value: Float[Tensor, " active"],
    like: SparseCode,
) -> SparseCode:
    """A code of as many rows and latents as `like` from entries in any order."""
    order = row.argsort(stable=True)
    counts = torch.bincount(row, minlength=like.support.rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    support = Support(offsets, latent[order], like.n_latents)
    return SparseCode(support, value[order])


def one_writer(one: Placed) -> str:
    """The one site that a dictionary writes.

    Raises:
        UserError: it writes several.
    """
    sites: Sequence[str] = one.writes
    if len(sites) != 1:
        raise UserError(
            f"{one.name} writes {len(sites)} sites: effects are predicted for coders that write one"
        )
    return sites[0]
