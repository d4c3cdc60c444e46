"""How much of a planted dictionary was found again, and what was found besides.

Only latents that fire on the held-out rows count as learned, so a dictionary gains nothing by what
it never uses. A dictionary whose strengths take both signs is matched by |cosine|.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.errors import UserError

BAR = 0.9
"""A latent has found a feature when the cosine of their directions is above this."""
SPURIOUS = 0.5
"""A latent has found nothing when no cosine is above this."""


class Recovery(NamedTuple):
    """A dictionary beside the truth; means over nothing are nan."""

    features: int
    """Planted features."""
    alive: int
    """Latents that fired on the held-out rows; all that follows is about these."""
    mmcs: float
    """Mean over features of the best cosine among the latents (Sharkey, Braun & Millidge 2022)."""
    mmcs_reverse: float
    """Mean over latents of the best cosine among the features."""
    found: float
    """Share of features with a latent above the bar (greedy recall)."""
    learned_true: float
    """Share of latents above the bar for some feature (greedy precision)."""
    recall: float
    """Share of features in the best one-to-one matching above the bar."""
    precision: float
    """Share of latents in that matching."""
    duplicates: int
    """Latents above the bar beyond the first for the same feature."""
    spurious: int
    """Latents whose best cosine is below `SPURIOUS`."""
    f1: float
    """Mean over matched pairs of the F1 of when the latent fires against when the feature does."""
    slope: float
    """Median over matched pairs of the slope, through the origin, of what the latent writes against
    the feature's true strength where both are present; below 1 is suppression."""
    absorption: float
    """Share of places with a parent and a child of it at which the parent's matched latent is
    silent, averaged over the parents that are matched."""
    parent_missed: float
    """The same at places with a parent and none of its children. The excess is silence, of which
    absorption is one cause and too small an L0 another: `truth.absorption` tells them apart."""


@torch.no_grad()
def measure_recovery(
    coder: Coder,
    directions: Float[Tensor, "features d"],
    x: Float[Tensor, "rows d"],
    truth: SparseCode,
    *,
    parents: Int[Tensor, " features"] | None = None,
    batch: int = 4096,
) -> Recovery:
    """Hold a coder to planted directions on held-out rows `x`, whose true code is `truth`.

    `parents` names each feature's parent, -1 for none.
    """
    written = coder.directions()
    if written.shape[1] != directions.shape[1] or truth.support.rows != len(x):
        raise UserError(
            f"Recovery needs a dictionary that writes vectors of {directions.shape[1]} numbers and"
            f" a truth for {len(x)} rows; this one writes {written.shape[1]} and the truth has"
            f" {truth.support.rows} rows"
        )
    code = SparseCode.cat([coder.encode(rows) for rows in x.split(batch)])
    length = written.norm(dim=1)
    alive = ((code.fired() > 0) & (length > 0)).nonzero()[:, 0]
    cosine = F.normalize(directions, dim=1) @ (written[alive] / length[alive, None]).T
    signed = bool((code.value < 0).any())
    closeness = cosine.abs() if signed else cosine
    feature, column = one_to_one(closeness)
    latent = alive[column]
    sign = torch.where(cosine[feature, column] < 0, -1.0, 1.0)
    follow = _Followed(truth, code, feature, latent, length[latent] * sign)
    best = closeness.amax(0) if len(alive) else closeness.new_zeros(0)
    hits = closeness > BAR
    absorption = _absorption(truth, follow.fires, feature, parents)
    return Recovery(
        features=len(directions),
        alive=len(alive),
        mmcs=closeness.amax(1).mean().item() if len(alive) else 0.0,
        mmcs_reverse=best.mean().item(),
        found=hits.any(1).float().mean().item(),
        learned_true=hits.any(0).float().mean().item(),
        recall=len(feature) / len(directions),
        precision=len(feature) / len(alive) if len(alive) else float("nan"),
        duplicates=duplicates(closeness),
        spurious=int((best < SPURIOUS).sum()),
        f1=follow.f1(),
        slope=follow.slope(),
        absorption=absorption[0],
        parent_missed=absorption[1],
    )


def one_to_one(
    closeness: Float[Tensor, "features latents"], bar: float = BAR
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Pairs above the bar, no row or column twice, that are closest in sum (Hungarian method)."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise UserError(
            "One-to-one matching needs scipy; install it with: pip install 'unweave[baselines]'"
        ) from error
    worth = torch.where(closeness > bar, closeness, 0.0)
    rows, columns = (worth > 0).any(1).nonzero()[:, 0], (worth > 0).any(0).nonzero()[:, 0]
    row, column = linear_sum_assignment(worth[rows][:, columns].cpu().numpy(), maximize=True)
    feature, latent = rows[torch.as_tensor(row)], columns[torch.as_tensor(column)]
    above = worth[feature, latent] > 0
    return feature[above], latent[above]


def duplicates(closeness: Float[Tensor, "features latents"], bar: float = BAR) -> int:
    """Latents above the bar that share their nearest feature with another, less one a feature."""
    if not closeness.numel():
        return 0
    best, nearest = closeness.max(0)
    taken = nearest[best > bar]
    return len(taken) - len(taken.unique())


class _Followed:
    """Matched pairs, each feature's true presences beside its latent's firings."""

    def __init__(
        self, truth: SparseCode, code: SparseCode, feature: Tensor, latent: Tensor, unit: Tensor
    ) -> None:
        # Both codes are told in pairs: place = row * pairs + pair.
        self.pairs = len(feature)
        self.there, strength = _by_pair(truth, feature)
        self.fires, value = _by_pair(code, latent)
        value = value * unit[self.fires % max(self.pairs, 1)]
        at = torch.searchsorted(self.fires, self.there).clamp(max=max(len(self.fires) - 1, 0))
        hit = self.fires[at] == self.there if len(self.fires) else at.bool()
        self._pair = self.there[hit] % max(self.pairs, 1)
        self._true, self._said = strength[hit].double(), value[at[hit]].double()

    def f1(self) -> float:
        n = self.pairs
        both = torch.bincount(self._pair, minlength=n)
        either = sum(torch.bincount(p % max(n, 1), minlength=n) for p in (self.there, self.fires))
        return (2 * both / either).mean().item() if n else float("nan")

    def slope(self) -> float:
        n = self.pairs
        product = torch.bincount(self._pair, self._true * self._said, minlength=n)
        square = torch.bincount(self._pair, self._true.square(), minlength=n)
        return (product / square).nanmedian().item() if n else float("nan")


def _by_pair(code: SparseCode, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of the wanted latents, by ascending row * pairs + pair."""
    pair_of = wanted.new_full((code.n_latents,), -1)
    pair_of[wanted] = torch.arange(len(wanted), device=wanted.device)
    pair = pair_of[code.support.latent]
    kept = (pair >= 0) & (code.value != 0)
    place = code.support.row[kept] * len(wanted) + pair[kept]
    place, order = place.sort()
    return place, code.value[kept][order]


def _absorption(
    truth: SparseCode, fires: Tensor, feature: Tensor, parents: Tensor | None
) -> tuple[float, float]:
    """Silent share of matched parents' latents, with a child present and without."""
    nothing = float("nan"), float("nan")
    if parents is None:
        return nothing
    matched = feature[torch.isin(feature, parents[parents >= 0].unique())]
    if not len(matched):
        return nothing
    pairs, rows = len(feature), truth.support.rows
    shares = []
    for parent in matched.tolist():
        pair = int((feature == parent).nonzero())
        present = _rows_with(truth, torch.tensor([parent]), rows)
        child = _rows_with(truth, (parents == parent).nonzero()[:, 0], rows)
        silent = torch.ones(rows, dtype=torch.bool)
        silent[fires[fires % pairs == pair] // pairs] = False
        shares.append([silent[present & about].double().mean() for about in (child, ~child)])
    with_child, alone = torch.tensor(shares).nanmean(0).tolist()
    return with_child, alone


def _rows_with(code: SparseCode, latents: Tensor, rows: int) -> Tensor:
    there = torch.zeros(rows, dtype=torch.bool)
    chosen = torch.isin(code.support.latent, latents) & (code.value != 0)
    there[code.support.row[chosen]] = True
    return there
