"""Scores where rows fall into groups and each group has latents of its own to choose among.

The rows of a group are brought together and multiplied with its latents alone: what a row cannot
choose is neither computed nor looked at. Routed experts are such groups, and so are the latents
that are likely for rows of a kind (`screened`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.select import Scorer, Selection, largest


class Group(NamedTuple):
    """What the rows of one group choose among."""

    scorer: Scorer
    """Scores of its latents, in their order."""
    latents: Int[Tensor, " members"]
    """Which latents these are, ascending."""


class GroupedScorer:
    """A scorer that knows who needs which scores; the others are minus infinity."""

    def __init__(
        self, group_of: Callable[[Tensor], Tensor], groups: Sequence[Group], n_latents: int
    ) -> None:
        """`group_of` tells the group of each row of a tile."""
        self._group_of, self._groups, self._n = group_of, groups, n_latents

    def __call__(self, tile: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
        """All scores of a tile, for whoever wants to see them side by side."""
        out: Tensor | None = None
        for rows, group in self._parted(tile):
            found = group.scorer(tile[rows])
            if out is None:
                out = found.new_full((len(tile), self._n), -torch.inf)
            out[rows[:, None], group.latents] = found
        return tile.new_full((len(tile), self._n), -torch.inf) if out is None else out

    def choose(self, x: Float[Tensor, "rows d_in"], k: int) -> Selection:
        """The k largest scores of each row, fewer where the smallest group has no more latents."""
        k = min(k, *(len(group.latents) for group in self._groups))
        latent = torch.empty(len(x), k, dtype=torch.long, device=x.device)
        score: Tensor | None = None
        for rows, group in self._parted(x):
            own = largest(group.scorer, x[rows], len(group.latents), k)
            latent[rows] = group.latents[own.support.latent].view(-1, k)
            if score is None:
                score = own.score.new_empty(len(x), k)
            score[rows] = own.score.view(-1, k)
        if score is None:
            score = x.new_empty(0, k)
        return Selection(Support.from_topk(latent, self._n), score.reshape(-1))

    def _parted(self, x: Tensor) -> list[tuple[Int[Tensor, " members"], Group]]:
        """The places of each group's rows, without groups that have none."""
        with torch.no_grad():
            at = self._group_of(x)
        order = at.argsort(stable=True)
        counts = torch.bincount(at, minlength=len(self._groups)).tolist()
        parted = zip(order.split(counts), self._groups, strict=True)
        return [(rows, group) for rows, group in parted if len(rows)]
