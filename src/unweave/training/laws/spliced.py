"""What a reconstruction of a given FVU costs the network: a relation measured without training.

The site is replaced by its projection on the first principal directions, and by itself plus noise
of the shape of its covariance, each at a few levels of FVU. Both are cheap and bracket what a
dictionary does: truncation errs along directions of little variance, noise everywhere alike.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.errors import UserError
from unweave.subject import Subject
from unweave.training.laws.data import slope

LEVELS = (0.05, 0.15, 0.4)
"""Shares of the variance that are taken away."""
ROWS_AT_ONCE = 8
"""Rows run through the network together."""


class Spliced(NamedTuple):
    """One replacement."""

    kind: str
    """`truncation` or `noise`."""
    fvu: float
    """Share of the variance it lost, as it came out."""
    ce_increase: float
    """Rise of the next-token loss, nats per token."""


class Relation(NamedTuple):
    """Straight lines of log rise against log FVU."""

    points: tuple[Spliced, ...]
    """What was measured."""

    def at(self, fvu: float) -> tuple[float, float]:
        """Rise foretold by truncation and by noise at an FVU."""
        truncation, noise = (self._line(kind, fvu) for kind in ("truncation", "noise"))
        return truncation, noise

    def _line(self, kind: str, fvu: float) -> float:
        kept = [p for p in self.points if p.kind == kind]
        x = torch.tensor([p.fvu for p in kept]).log()
        y = torch.tensor([p.ce_increase for p in kept]).clamp_min(1e-5).log()
        return math.exp(float(y.mean()) + slope(x, y) * (math.log(fvu) - float(x.mean())))


def relation(
    subject: Subject,
    rows: Int[Tensor, "rows pos"],
    site: str,
    vectors: Float[Tensor, "vectors width"],
    *,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> Relation:
    """Measure it on rows of tokens; `vectors` of the site give its principal directions.

    Raises:
        UserError: rows of fewer than three tokens.
    """
    if rows.shape[1] < 3:
        raise UserError(f"Rows of {rows.shape[1]} tokens have no next token to judge by: give 3")
    mean = vectors.mean(0)
    centred = (vectors - mean).double()
    values, directions = torch.linalg.eigh(centred.T @ centred / len(vectors))
    values, directions = values.flip(0).clamp_min(0), directions.flip(1)
    root = (directions * values.sqrt()).float()
    original = loss(subject, rows, site, None)
    points = []
    for level in levels:
        left = (values.sum() - values.cumsum(0)) / values.sum()
        rank = max(1, int((left > level).sum()) + 1)
        kept = directions[:, :rank].float()
        generator = torch.Generator().manual_seed(seed)
        size = math.sqrt(level)

        def truncated(x: Tensor, kept: Tensor = kept) -> Tensor:
            return mean + (x - mean) @ kept @ kept.T

        def noisy(x: Tensor, size: float = size, g: torch.Generator = generator) -> Tensor:
            return x + size * torch.randn(x.shape, generator=g) @ root.T

        cost = loss(subject, rows, site, truncated) - original
        points.append(Spliced("truncation", float(left[rank - 1]), cost))
        points.append(Spliced("noise", level, loss(subject, rows, site, noisy) - original))
    return Relation(tuple(point for point in points if point.fvu > 0))


@torch.no_grad()
def loss(
    subject: Subject,
    rows: Int[Tensor, "rows pos"],
    site: str,
    change: Callable[[Tensor], Tensor] | None,
) -> float:
    """Mean next-token loss with the site's vectors changed at all positions but the first."""

    def visit(tensor: Tensor) -> Tensor:
        inside = tensor[:, 1:].flatten(2).float()
        new = inside if change is None else change(inside.flatten(0, 1)).view_as(inside)
        return torch.cat([tensor[:, :1], new.view_as(tensor[:, 1:]).to(tensor.dtype)], dim=1)

    total, count = 0.0, 0
    for part in rows.split(ROWS_AT_ONCE):
        logits = subject.run(part, replace={site: visit}).logits
        assert logits is not None
        wanted = part[:, 2:].flatten().long()
        total += float(
            F.cross_entropy(logits[:, 1:-1].flatten(0, 1).float(), wanted, reduction="sum")
        )
        count += len(wanted)
    return total / count
