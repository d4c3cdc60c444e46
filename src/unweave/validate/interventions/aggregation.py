"""The aggregation test: the union of several inputs' explanations must still explain each.

An input's explanation is the smallest set of latents, in the order of their attribution, with
which KL at its last position stays below a bound. What another input needs should be idle here, so
that adding it changes nothing; where latents only balance each other out, adding it does harm
(the audit of Angsten 2026 found KL .34 -> .80 with 64 inputs). Beside every union stands a random
set of the same size that has the own explanation and latents drawn by how often they are needed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.progress import QUIET, Advance, Progress
from unweave.subject import Subject
from unweave.validate.bootstrap import BootstrapSettings, Interval, mean_interval
from unweave.validate.interventions.latents import latents_on, one_writer
from unweave.validate.interventions.masking import Inputs, MaskingSettings, kept_only
from unweave.validate.placed import Placed

DONORS = ("any", "similar", "dissimilar", "random")
"""Whose latents are added: of any inputs, of those most or least like it, or random ones."""


class AggregationSettings(BaseModel):
    """Settings of the aggregation test."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    masking: MaskingSettings = MaskingSettings()
    """How latents are masked, and what an explanation may cost."""
    unions: tuple[PositiveInt, ...] = (1, 2, 8, 64)
    """Inputs in a union, the asked one included."""
    asked: PositiveInt = 48
    """Inputs that are asked after."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals, over inputs asked."""


class Explained(NamedTuple):
    """What each input needs."""

    needed: Bool[Tensor, "inputs latents"]
    """Its explanation."""
    kl: Float[Tensor, " inputs"]
    """What keeping only that costs."""
    active: Float[Tensor, " inputs"]
    """How many latents are active in the input at all."""


class Aggregation(NamedTuple):
    """KL, nats, by whose latents are added and by how many inputs are in the union."""

    kl: dict[str, dict[int, Interval]]
    """Of `DONORS`."""
    size: dict[int, float]
    """Mean number of latents in the union of any inputs."""
    never_needed: Interval
    """KL with all latents deleted that no input of the pool needs."""
    nothing: Interval
    """KL with no latents at all."""
    needed: float
    """Mean number of latents in an explanation."""
    active: float
    """Mean number of latents active in an input."""


@torch.no_grad()
def inputs_of(
    subject: Subject, standing: Sequence[Placed], rows: Int[Tensor, "inputs pos"]
) -> Inputs:
    """The original and the mean activations."""
    logits = torch.cat([_last(subject, group) for group in rows.split(16)])
    means = {one.name: latents_on(subject, one, rows).values.mean((0, 1)) for one in standing}
    return Inputs(rows, logits, means)


def _last(subject: Subject, rows: Tensor) -> Tensor:
    logits = subject.run(rows).logits
    assert logits is not None
    return logits[:, -1].float()


def attributions(
    subject: Subject,
    standing: Sequence[Placed],
    rows: Int[Tensor, "inputs pos"],
    *,
    strict: bool,
) -> Float[Tensor, "inputs latents"]:
    """|activation x gradient| of the top token's log-probability, summed over masked places."""
    held: dict[str, Tensor] = {}

    def leaf(site: str) -> Callable[[Tensor], Tensor]:
        def visit(tensor: Tensor) -> Tensor:
            held[site] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
            return held[site]

        return visit

    sites = dict.fromkeys(one_writer(one) for one in standing)
    with torch.enable_grad():
        logits = subject.run(rows, replace={site: leaf(site) for site in sites}).logits
        assert logits is not None
        top = logits[:, -1].float().log_softmax(-1).max(1).values.sum()
        gradients = dict(zip(sites, torch.autograd.grad(top, list(held.values())), strict=True))
    found = []
    for one in standing:
        latents = latents_on(subject, one, rows)
        along = gradients[one_writer(one)][:, 1:].flatten(2).float() @ latents.directions.T
        each = (latents.values * along).abs()
        found.append(each.sum(1) if strict else each[:, -1])
    return torch.cat(found, 1)


def explain(
    subject: Subject,
    standing: Sequence[Placed],
    inputs: Inputs,
    settings: MaskingSettings,
    *,
    progress: Progress = QUIET,
) -> Explained:
    """The smallest set of each input in the order of attribution (`smallest`)."""
    score = torch.cat(
        [
            attributions(subject, standing, group, strict=settings.strict)
            for group in inputs.rows.split(16)
        ]
    )
    rank = score.argsort(1, descending=True).argsort(1)
    active = (score != 0).sum(1)

    def bad(at: Tensor, size: Tensor) -> Tensor:
        some = Inputs(inputs.rows[at], inputs.logits[at], inputs.means)
        keep = rank[at] < size[:, None]
        return _kept(subject, standing, some, keep, settings) > settings.bound

    steps = 2 * int(active.max()).bit_length()
    with progress.task("aggregation: explanations", total=steps, unit="steps") as advance:
        needed = rank < smallest(bad, active, advance)[:, None]
    return Explained(needed, _kept(subject, standing, inputs, needed, settings), active.float())


def smallest(
    bad: Callable[[Tensor, Tensor], Tensor],
    most: Int[Tensor, " inputs"],
    advance: Advance = lambda amount: None,
) -> Int[Tensor, " inputs"]:
    """How many latents each input needs, `most` where no smaller number is good enough.

    `bad` says of some inputs and a number each whether that is too few. The first good one of 1, 2,
    4, ... is halved from: where latents balance each other out keeping more may be worse, and
    halving from all would pass over the small sets, which are those that do harm when united.
    """
    low, high = torch.zeros_like(most), most.clamp_max(1)
    left = (high < most).nonzero()[:, 0]
    while len(left):
        left = left[bad(left, high[left])]
        low[left], high[left] = high[left] + 1, torch.minimum(2 * high[left], most[left])
        left = left[high[left] < most[left]]
        advance(1)
    while len(left := (low < high).nonzero()[:, 0]):
        middle = (low[left] + high[left]) // 2
        worse = bad(left, middle)
        low[left] = torch.where(worse, middle + 1, low[left])
        high[left] = torch.where(worse, high[left], middle)
        advance(1)
    return high


def _kept(
    subject: Subject,
    standing: Sequence[Placed],
    inputs: Inputs,
    keep: Tensor,
    settings: MaskingSettings,
) -> Tensor:
    parts = []
    for at in torch.arange(len(keep)).split(16):
        some = Inputs(inputs.rows[at], inputs.logits[at], inputs.means)
        parts.append(kept_only(subject, standing, some, keep[at], settings))
    return torch.cat(parts)


def aggregate(
    subject: Subject,
    standing: Sequence[Placed],
    rows: Int[Tensor, "inputs pos"],
    settings: AggregationSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = QUIET,
) -> Aggregation:
    """Unite explanations of inputs, each asked at its last position. All rows are the pool."""
    settings = settings or AggregationSettings()
    masking, inputs = settings.masking, inputs_of(subject, standing, rows)
    known = explain(subject, standing, inputs, masking, progress=progress)
    asked = torch.arange(min(settings.asked, len(rows)))
    few = Inputs(rows[asked], inputs.logits[asked], inputs.means)
    likeness = _likeness(subject, standing, rows)[asked]
    random = torch.Generator().manual_seed(seed)
    kl: dict[str, dict[int, Interval]] = {name: {} for name in DONORS}
    sizes: dict[int, float] = {}

    def cost(keep: Tensor) -> Interval:
        found = _kept(subject, standing, few, keep, masking)
        return mean_interval(found.double().cpu().numpy(), settings.bootstrap)

    for count in [each for each in settings.unions if each <= len(rows)]:
        orders = {
            "any": torch.rand(likeness.shape, generator=random),
            "similar": likeness, "dissimilar": -likeness,
        }  # fmt: skip
        for name, order in orders.items():
            union = _union(known.needed, order, count)
            kl[name][count] = cost(union)
            if name == "any":
                sizes[count] = union.sum(1).double().mean().item()
                kl["random"][count] = cost(_random_like(union, known.needed, random))
    nobody = torch.zeros_like(known.needed[asked])
    return Aggregation(
        kl, sizes, cost(known.needed.any(0).expand(len(asked), -1)), cost(nobody),
        known.needed.sum(1).double().mean().item(), known.active.mean().item(),
    )  # fmt: skip


def _likeness(subject: Subject, standing: Sequence[Placed], rows: Tensor) -> Tensor:
    """Cosines of what the first coder reads at the last position."""
    sites = list(standing[0].reads)
    found = [subject.run(group, capture=sites, logits=False).sites for group in rows.split(16)]
    x = torch.cat(
        [torch.cat([each[s][:, -1].flatten(1) for s in sites], 1).float() for each in found]
    )
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit @ unit.T


def _union(needed: Tensor, order: Tensor, count: int) -> Tensor:
    """Of each asked input and the `count - 1` others of the highest order."""
    order = order.clone()
    order[torch.arange(len(order)), torch.arange(len(order))] = torch.inf
    return torch.stack([needed[row.topk(count).indices].any(0) for row in order])


def _random_like(union: Tensor, needed: Tensor, random: torch.Generator) -> Tensor:
    """As many added latents as the union has, drawn by how many inputs need each."""
    often = needed.float().sum(0)
    out = needed[: len(union)].clone()
    for row, own in zip(union, out, strict=True):
        count = int(row.sum() - own.sum())
        weight = often.clone()
        weight[own] = 0
        count = min(count, int((weight > 0).sum()))
        if count:
            own[torch.multinomial(weight, count, generator=random)] = True
    return out
