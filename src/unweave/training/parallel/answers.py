"""One step of many processes: what `dictionaries.shares` asks, answered by all of them together."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.select import Scorer, Selection, above, largest
from unweave.dictionaries.shares import Dead
from unweave.training.parallel.grid import Grid
from unweave.training.parallel.group import interleaved
from unweave.training.parallel.threshold import nth_largest

_SAMPLED_ROWS = 64


class StepAnswers:
    """See `dictionaries.shares.Shares`; for one step, in which this process has some of the rows.

    `places` are those of its rows in the whole batch of `whole` rows. It may have none.
    """

    def __init__(self, grid: Grid, places: Int[Tensor, " rows"], whole: int) -> None:
        self.grid, self._places, self.whole = grid, places, whole
        self.share = len(places) / whole

    def mean(self, local: Tensor) -> Tensor:
        """The mean over all rows, weighted by how many of them each process has."""
        if self.grid.rows.size == 1:
            return local.detach()
        weighted = local.detach() * self.share if self.share else torch.zeros_like(local)
        return self.grid.rows.sum(weighted)

    def rows(self, local: Tensor) -> Tensor:
        """All rows, put back in the order of the batch."""
        if self.grid.rows.size == 1:
            return local.detach()
        order = self.grid.rows.gather_rows(self._places.to(local.device)).argsort()
        return self.grid.rows.gather_rows(local.detach())[order]

    def total(self, local: Tensor) -> Tensor:
        """The sum over the shards."""
        return self.grid.latents.sum(local.detach())

    def add_up(self, written: Tensor) -> Tensor:
        """The sum over the shards; each one's gradient is that of the sum."""
        return _AddUp.apply(written, self.grid.latents)

    def to_all(self, read: Tensor) -> Tensor:
        """The same rows; their gradient is the sum over the shards."""
        return _ToAll.apply(read, self.grid.latents)

    def of_rows(
        self,
        scorer: Scorer,
        x: Float[Tensor, "rows d_in"],
        n_latents: int,
        k: int,
        *,
        signed: bool = False,
    ) -> Selection:
        """Each shard's k best are ranked together; only their scores are sent.

        Of equal scores the earlier shard's is taken.
        """
        shards = self.grid.latents
        most = min(k, n_latents)
        own = largest(scorer, x, n_latents, most, signed=signed) if most else _nothing(x, n_latents)
        if shards.size == 1:
            return own
        ranked = own.score.view(len(x), most)
        ranked = ranked.abs() if signed else ranked
        padded = ranked.new_full((len(x), k), -torch.inf)
        padded[:, :most] = ranked
        everybody = torch.cat(shards.gather(padded), dim=1)
        order = everybody.sort(dim=1, descending=True, stable=True).indices[:, :k]
        keep = torch.zeros_like(everybody, dtype=torch.bool).scatter_(1, order, True)
        start = shards.rank * k
        return _only(own, keep[:, start : start + most].flatten())

    def of_batch(
        self, scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int, k: int
    ) -> tuple[Selection, Float[Tensor, " smallest"]]:
        """The batch-wide choice: a bound from a sample, then the exact threshold by counting.

        Of scores equal to the threshold as many are taken as are wanted, earlier processes first.
        """
        everyone, count = self.grid.everyone, self.whole * k
        for slack in (1.3, 3.0, 0.0):
            bound = self._bound(scorer, x, n_latents, k, slack)
            own = above(scorer, x, bound)
            own = own._replace(score=_wide(own.score))
            found = int(everyone.sum(torch.tensor([len(own.score)], device=x.device)))
            if found >= count or not bound:
                break
        if found <= count:
            smallest = own.score.new_full((1,), torch.inf)
            smallest = everyone.smallest(torch.cat([own.score, smallest]).amin(0, keepdim=True))
            return own, smallest[smallest < torch.inf]
        threshold = nth_largest(own.score, count, everyone)
        keep = own.score > threshold
        equal = (own.score == threshold).nonzero()[:, 0]
        sure, ties = int(keep.sum()), len(equal)
        counts = torch.tensor([sure, ties], device=x.device)
        told = torch.stack(everyone.gather(counts)).tolist()
        left = count - sum(one for one, _ in told) - sum(t for _, t in told[: everyone.rank])
        keep[equal[: max(0, left)]] = True
        return _only(own, keep), threshold

    def dead(self, mask: Bool[Tensor, " latents"]) -> Dead:
        """Numbered in the order of the whole dictionary, of which a shard has every n-th latent."""
        shards = self.grid.latents
        everywhere = interleaved(shards.gather(mask.to(torch.uint8))).long()
        numbers = everywhere.cumsum(0) - 1
        return Dead(numbers[shards.rank :: shards.size][mask], int(everywhere.sum()))

    def _bound(self, scorer: Scorer, x: Tensor, n_latents: int, k: int, slack: float) -> Tensor:
        """What somewhat more than the wanted scores exceed, by everybody's own sample; zero when
        there is no telling."""
        bound = torch.zeros((), device=x.device)
        if slack and len(x):
            some = scorer(x[:: max(1, len(x) // _SAMPLED_ROWS)]).float().flatten()
            rank = round(slack * len(some) * k / (n_latents * self.grid.latents.size)) + 64
            if rank < len(some):
                bound = some.topk(rank, sorted=False).values.min().clamp_min(0)
        elif slack:
            bound = torch.full((), torch.inf, device=x.device)
        return self.grid.everyone.smallest(bound)


def _wide(score: Tensor) -> Tensor:
    return score if score.dtype == torch.float64 else score.float()


def _only(selection: Selection, keep: Bool[Tensor, " active"]) -> Selection:
    support = selection.support
    counts = torch.bincount(support.row[keep], minlength=support.rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    left = Support(offsets, support.latent[keep], support.n_latents)
    return Selection(left, selection.score[keep])


def _nothing(x: Tensor, n_latents: int) -> Selection:
    """No latents in any row."""
    latent = torch.empty(0, dtype=torch.long, device=x.device)
    return Selection(Support(latent.new_zeros(len(x) + 1), latent, n_latents), x.new_empty(0))


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, written, group):  # type: ignore[no-untyped-def]
        return group.sum(written) if group.size > 1 else written.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g, None


class _ToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, read, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        return read.view_as(read)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return ctx.group.sum(g), None
