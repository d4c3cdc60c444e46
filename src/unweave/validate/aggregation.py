"""The aggregation test: does the union of many inputs' explanations still explain each of them?

An explanation of an input is a set of latents. A decompilation whose parts mean what they are said
to mean must stand more parts being there than are needed. Angsten's audit (2026) of a published
decomposition found KL 0.34 with an input's own parts, and 0.80 with those of 64 inputs.

Codes are masked after they are made: latents that were not selected do not take the place of what
is masked. At one place, a union therefore only brings back latents that the input itself activates,
and KL goes towards that of the unmasked splice: a fall says how much the explanation had left out,
a flat line that it was whole. It cannot show what the audit showed, parts that were off and come
on. It can rise where some latents cancel others and the budget parted them. Where coders read
what others wrote, a latent brought back in one changes what the next one reads and may activate
another latent that is in the union: there a rise is harm by parts that were thought not needed.
Random sets of the same sizes say how much of either has nothing to do with the donors.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unweave.artifact.records import Record
from unweave.artifact.scores import Interval
from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.joint import kl_per_token
from unweave.validate.bootstrap import BootstrapSettings, mean_interval
from unweave.validate.placed import Edit, Placed, run_with

Sets = dict[str, Tensor]
"""For each coder, by name, which latents are kept in each row: `[rows, latents]`."""


class AggregationSettings(BaseModel):
    """Settings of the aggregation test."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    explains: Literal["row", "last"] = "last"
    """Whether an explanation is of a whole row or of the prediction at its last position."""
    explained_by: int | None = Field(default=None, ge=1)
    """Latents of one explanation in each coder, the strongest by value times decoder norm; without
    it, all that are active."""
    mask: Literal["strict", "lenient"] = "strict"
    """Strict: at every position. Lenient: only at the last one, the context stays unmasked."""
    donors: tuple[int, ...] = (1, 2, 8, 64)
    """Explanations in a union, the row's own among them."""
    batch: int = Field(default=16, ge=1)
    """Rows of a pass."""
    seed: int = 0
    """Seed of which rows are donors, and of the random sets."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals over rows."""


class AggregationPoint(Record):
    """What a number of united explanations does; in nats per token."""

    donors: int
    """Explanations united, the row's own among them."""
    latents: float
    """Mean number of latents kept of a row, all coders together."""
    union: Interval
    """KL(original || only the union)."""
    random: Interval
    """Control: the row's own set, filled up to the same size with latents drawn by frequency."""
    beyond_random: Interval
    """Union minus control, row by row."""


class AggregationReport(Record):
    """The aggregation test of one decompilation."""

    points: tuple[AggregationPoint, ...]
    """By number of donors."""
    unmasked: Interval
    """Floor: KL of the splice with every latent, same rows and positions."""
    rows: int
    """Rows that were explained."""


def aggregation(
    subject: Subject,
    coders: Sequence[Placed],
    rows: Int[Tensor, "rows pos"],
    settings: AggregationSettings | None = None,
    progress: Progress = QUIET,
) -> AggregationReport:
    """Unite explanations of rows and see whether each is still explained (methods.md 13.3).

    KL is over all positions but the first for whole rows under a strict mask, else at the last one.

    Raises:
        UserError: there are fewer rows than donors, or no context.
    """
    settings = settings or AggregationSettings()
    _check(coders, rows, settings)
    own = explanations(subject, coders, rows, settings)
    unmasked = _divergence(subject, coders, rows, None, settings)
    order = _donors(len(rows), settings.seed)
    points = []
    with progress.task("unions", total=len(settings.donors), unit="sizes") as advance:
        for place, donors in enumerate(settings.donors):
            united = {name: unite(kept, order[:, :donors]) for name, kept in own.items()}
            seed = settings.seed + 1 + place
            matched = {name: matched_random(own[name], united[name], seed) for name in own}
            union = _divergence(subject, coders, rows, united, settings)
            random = _divergence(subject, coders, rows, matched, settings)
            latents = sum(kept.sum().item() for kept in united.values()) / len(rows)
            points.append(_point(donors, latents, union, random, settings))
            advance(1)
    return AggregationReport(
        points=tuple(points), unmasked=_interval(unmasked, settings), rows=len(rows)
    )


def _point(
    donors: int,
    latents: float,
    union: Float[np.ndarray, " rows"],
    random: Float[np.ndarray, " rows"],
    settings: AggregationSettings,
) -> AggregationPoint:
    return AggregationPoint(
        donors=donors,
        latents=latents,
        union=_interval(union, settings),
        random=_interval(random, settings),
        beyond_random=_interval(union - random, settings),
    )


def explanations(
    subject: Subject,
    coders: Sequence[Placed],
    rows: Int[Tensor, "rows pos"],
    settings: AggregationSettings,
) -> Sets:
    """Each row's own latents, as active in the unmasked splice."""
    found: dict[str, list[Tensor]] = {one.name: [] for one in coders}
    for batch in rows.split(settings.batch):
        edits = {one.name: _collect(one, found[one.name], settings) for one in coders}
        run_with(subject, batch, coders, edit=edits)
    return {name: torch.cat(kept) for name, kept in found.items()}


def _collect(one: Placed, into: list[Tensor], settings: AggregationSettings) -> Edit:
    norms = one.coder.directions().norm(dim=1)

    def collect(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        row, position = code.support.row // shape[1], code.support.row % shape[1]
        strength = code.value.abs() * norms[code.support.latent]
        if settings.explains == "last":
            strength = torch.where(position == shape[1] - 1, strength, 0)
        strongest = strength.new_zeros(shape[0] * code.n_latents).scatter_reduce(
            0, row * code.n_latents + code.support.latent, strength, "amax"
        )
        strongest = strongest.view(shape[0], code.n_latents)
        kept = strongest > 0
        if settings.explained_by is not None:
            top = strongest.topk(min(settings.explained_by, code.n_latents)).indices
            kept &= torch.zeros_like(kept).scatter(1, top, True)
        into.append(kept)
        return code

    return collect


def unite(
    kept: Bool[Tensor, "rows latents"], donors: Int[Tensor, "rows donors"]
) -> Bool[Tensor, "rows latents"]:
    """The union of what the donors of each row keep."""
    return torch.stack([kept[of].any(0) for of in donors.to(kept.device)])


def matched_random(
    own: Bool[Tensor, "rows latents"], union: Bool[Tensor, "rows latents"], seed: int
) -> Bool[Tensor, "rows latents"]:
    """Each row's own set with random latents, as many as its union has.

    Latents are drawn without replacement, by the share of explanations that they are part of.
    """
    generator = torch.Generator().manual_seed(seed)
    frequency = own.sum(0).double().cpu()
    out = own.clone()
    for row, (mine, all_of) in enumerate(zip(own.cpu(), union.cpu(), strict=True)):
        wanted = int(all_of.sum() - mine.sum())
        weight = torch.where(mine, 0.0, frequency)
        if wanted:
            drawn = torch.multinomial(weight, wanted, generator=generator)
            out[row, drawn.to(out.device)] = True
    return out


def _donors(rows: int, seed: int) -> Int[Tensor, "rows rows"]:
    """Each row first, then all others in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = []
    for row in range(rows):
        drawn = torch.randperm(rows, generator=generator)
        order.append(torch.cat([torch.tensor([row]), drawn[drawn != row]]))
    return torch.stack(order)


@torch.no_grad()
def _divergence(
    subject: Subject,
    coders: Sequence[Placed],
    rows: Int[Tensor, "rows pos"],
    sets: Sets | None,
    settings: AggregationSettings,
) -> Float[np.ndarray, " rows"]:
    """KL of each row where only the sets are kept."""
    found = []
    for start in range(0, len(rows), settings.batch):
        part = slice(start, start + settings.batch)
        # The floor too is edited, into itself: other paths of a dictionary round differently.
        edits: dict[str, Edit] = {one.name: _as_it_is for one in coders}
        for name, kept in (sets or {}).items():
            edits[name] = _only(kept[part], settings.mask)
        masked = run_with(subject, rows[part], coders, edit=edits).logits
        original = subject.run(rows[part]).logits
        assert masked is not None
        assert original is not None
        whole = settings.explains == "row" and settings.mask == "strict"
        where = slice(1, None) if whole else slice(-1, None)
        found.append(kl_per_token(original[:, where], masked[:, where]).mean(1).cpu())
    return torch.cat(found).double().numpy()


def _as_it_is(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
    return code


def _only(kept: Bool[Tensor, "rows latents"], mask: str) -> Edit:
    def only(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        row, position = code.support.row // shape[1], code.support.row % shape[1]
        stays = kept[row, code.support.latent]
        if mask == "lenient":
            stays = stays | (position < shape[1] - 1)
        return code._replace(value=code.value * stays)

    return only


def _interval(values: Float[np.ndarray, " rows"], settings: AggregationSettings) -> Interval:
    value, low, high = mean_interval(values, settings.bootstrap)
    return Interval(value=value, low=low, high=high)


def _check(coders: Sequence[Placed], rows: Tensor, settings: AggregationSettings) -> None:
    if not coders or len({one.name for one in coders}) < len(coders):
        raise UserError("the aggregation test needs one or more coders, each of its own name")
    if not settings.donors or min(settings.donors) < 1:
        raise UserError("every number of donors must be 1 or more: the row itself is the first")
    if len(rows) < max(settings.donors) or rows.shape[1] < 2:
        raise UserError(
            f"uniting {max(settings.donors)} explanations needs as many rows of 2 tokens or more,"
            f" not {len(rows)} of {rows.shape[1]}: give more rows or fewer donors"
        )
