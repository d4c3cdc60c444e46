"""Hedging: a latent that stands for one feature also writes, and reads, what goes along with it.

Chanin, Dulka & Garriga-Alonso 2025 (arXiv 2505.11756): where a dictionary is narrower than the
truth, squared error makes it merge correlated features, with the sign of their correlation and in
encoder and decoder alike; a child that writes its parent is absorption and not meant. They read
it off toy models by eye and give a degree for networks of unknown truth, `growth_hedging` here.
Where truth is known it has a number for each latent w (unit length, nearest to f) and each feature
g whose presence is correlated with that of f and which is not f's parent:

    g'  = unit(d_g - (d_g . d_f) d_f)        what g has beyond f
    writes = sign(phi_fg) w . g'             0 for w = d_f; a / sqrt(1 + a^2) for w = d_f + a g'
    reads  = sign(phi_fg) c_g / sqrt(c_f^2 + c_g^2)

with c the least-squares coefficients of the latent's value on the true strengths of f and g (and
an offset) over the rows in which it fires. Interference between features that are not orthogonal
comes with both signs; the same for features that are *not* correlated with f is its mean.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.errors import UserError
from unweave.validate.protocols.protocol import Refused
from unweave.validate.recovery import SPURIOUS

LEAST_PHI = 0.1
"""Presences are correlated from this phi coefficient on, if it is five times what chance gives."""
LEAST_TOGETHER = 10
"""Rows in which both are present, or would be if they were independent: rare features are taken for
correlated by one coincidence otherwise."""
LEAST_ROWS = 20
"""Rows with the latent and g in them without which nothing is said of what it reads."""


class Pairs(NamedTuple):
    """Features f, features g beside them, and the sign of their correlation."""

    f: Int[Tensor, " pairs"]
    g: Int[Tensor, " pairs"]
    sign: Float[Tensor, " pairs"]


class Hedging(NamedTuple):
    """Means over pairs of a feature that has a latent and a feature correlated with it."""

    pairs: int
    """How many."""
    writes: float
    """In the decoder: 0 clean, up to 1; below 0 one that writes the opposite of its company."""
    reads: float
    """In the encoder; nan where no pair has enough rows."""
    writes_uncorrelated: float
    """The same for as many features that are not correlated: what interference gives."""
    reads_uncorrelated: float
    """The same for what is read."""


@torch.no_grad()
def measure_hedging(
    coder: Coder,
    directions: Float[Tensor, "features d"],
    x: Float[Tensor, "rows d"],
    truth: SparseCode,
    *,
    parents: Int[Tensor, " features"] | None = None,
    seed: int = 0,
    batch: int = 4096,
) -> Hedging:
    """Hold a coder to planted correlations; each feature's latent is the one closest to it.

    Raises:
        Refused: no two features are correlated, or none that is has a latent.
    """
    correlated, free = correlated_pairs(truth, parents, seed=seed)
    if not len(correlated.f):
        raise Refused("hedging means nothing here: no two features of this world are correlated")
    code = SparseCode.cat([coder.encode(rows) for rows in x.split(batch)])
    latent_of, unit = _latents(coder, code, directions)
    kept = [_with_latent(pairs, latent_of) for pairs in (correlated, free)]
    if not len(kept[0].f):
        raise Refused(
            "hedging cannot be measured: no correlated feature is the nearest of any latent, at a"
            f" cosine above {SPURIOUS}"
        )
    strengths, values = truth.dense(), code.dense()
    writes = [_written(unit, directions, pairs, latent_of) for pairs in kept]
    reads = [_read(values * unit.sign, strengths, pairs, latent_of) for pairs in kept]
    return Hedging(len(kept[0].f), writes[0], reads[0], writes[1], reads[1])


def correlated_pairs(
    truth: SparseCode, parents: Int[Tensor, " features"] | None, *, seed: int
) -> tuple[Pairs, Pairs]:
    """Ordered pairs whose presences are correlated, and as many at random that are not.

    A pair of a feature and its own parent is in neither.
    """
    there = (truth.dense() != 0).double()
    rows, n = there.shape
    rate = there.mean(0)
    spread = (rate * (1 - rate)).sqrt().clamp_min(1e-12)
    together, expected = there.T @ there, rows * rate[:, None] * rate
    phi = (together - expected) / (rows * spread[:, None] * spread)
    strong = (phi.abs() >= LEAST_PHI) & (phi.abs() * rows**0.5 > 5)
    strong &= torch.maximum(together, expected) >= LEAST_TOGETHER
    apart = ~torch.eye(n, dtype=torch.bool)
    if parents is not None:
        child = (parents >= 0).nonzero()[:, 0]
        apart[child, parents[child]] = False
    f, g = (strong & apart).nonzero(as_tuple=True)
    # Their signs are kept, so that what has a sign by chance alone cancels alike.
    others = (~strong & apart).nonzero()
    generator = torch.Generator().manual_seed(seed)
    drawn = others[torch.randperm(len(others), generator=generator)[: max(len(f), 1) * 4]]
    sign = torch.randint(0, 2, (len(drawn),), generator=generator).float() * 2 - 1
    return Pairs(f, g, phi[f, g].sign().float()), Pairs(drawn[:, 0], drawn[:, 1], sign)


def growth_hedging(
    before: Float[Tensor, "latents d"],
    after: Float[Tensor, "grown d"],
    *,
    seed: int = 0,
    draws: int = 50,
) -> float:
    """The degree of hedging of Chanin et al. 2025, for networks whose truth nobody knows.

    `after` is the decoder of the same dictionary trained on with latents added, the old ones first.
    What old rows lose is held to the span of the new ones: p is the mean length of its projection
    there, b the same for random spans, in units of the rows' mean length; the degree is
    max(0, (p - b) / (1 - b)).

    Raises:
        UserError: nothing was added.
    """
    old, added = len(before), len(after) - len(before)
    if added < 1 or before.shape[1] != after.shape[1]:
        raise UserError(
            f"A dictionary grown from {old} latents has more than {old} of the same width, not"
            f" {tuple(after.shape)}: give the decoder before and after latents were added"
        )
    unit, grown = F.normalize(before, dim=1), F.normalize(after, dim=1)
    moved = grown[:old] - unit
    generator = torch.Generator().manual_seed(seed)
    spans = [torch.randn(added, before.shape[1], generator=generator) for _ in range(draws)]
    by_chance = torch.stack([_length_within(moved, span.to(moved)) for span in spans]).mean()
    found = _length_within(moved, grown[old:])
    return ((found - by_chance) / (1 - by_chance)).clamp_min(0).item()


def _length_within(rows: Tensor, span: Tensor) -> Tensor:
    _, size, basis = torch.linalg.svd(span, full_matrices=False)
    return (rows @ basis[size > 1e-6 * size.max()].T).norm(dim=1).mean()


class _Unit(NamedTuple):
    rows: Float[Tensor, "latents d"]
    sign: Float[Tensor, " latents"]


def _latents(
    coder: Coder, code: SparseCode, directions: Tensor
) -> tuple[Int[Tensor, " features"], _Unit]:
    """Each feature's latent among those nearest to it, -1 for none, and all directions, turned."""
    rows = F.normalize(coder.directions(), dim=1)
    cosine = directions @ rows.T
    signed = bool((code.value < 0).any())
    closeness = cosine.abs() if signed else cosine
    closeness = torch.where(code.fired() > 0, closeness, -1.0)
    best, nearest = closeness.max(0)
    own = torch.full_like(closeness, -1.0)
    own[nearest, torch.arange(len(nearest))] = best
    value, latent = own.max(1)
    sign = torch.where(cosine[nearest, torch.arange(len(nearest))] < 0, -1.0, 1.0)
    turned = _Unit(rows * sign[:, None], sign * coder.directions().norm(dim=1))
    return torch.where(value > SPURIOUS, latent, -1), turned


def _with_latent(pairs: Pairs, latent_of: Tensor) -> Pairs:
    kept = latent_of[pairs.f] >= 0
    return Pairs(pairs.f[kept], pairs.g[kept], pairs.sign[kept])


def _written(unit: _Unit, directions: Tensor, pairs: Pairs, latent_of: Tensor) -> float:
    f, g = directions[pairs.f], directions[pairs.g]
    beyond = F.normalize(g - (g * f).sum(1, keepdim=True) * f, dim=1)
    return (pairs.sign * (unit.rows[latent_of[pairs.f]] * beyond).sum(1)).mean().item()


def _read(values: Tensor, strengths: Tensor, pairs: Pairs, latent_of: Tensor) -> float:
    found = []
    for f, g, sign in zip(*(column.tolist() for column in pairs), strict=True):
        value = values[:, latent_of[f]]
        rows = (value != 0).nonzero()[:, 0]
        beside = strengths[rows][:, [f, g]]
        if min((beside > 0).sum(0)) < LEAST_ROWS:
            continue
        table = torch.cat([beside, torch.ones(len(rows), 1)], 1).double()
        c_f, c_g, _ = torch.linalg.lstsq(table, value[rows, None].double()).solution[:, 0].tolist()
        found.append(sign * c_g / max((c_f**2 + c_g**2) ** 0.5, 1e-12))
    return sum(found) / len(found) if found else float("nan")
