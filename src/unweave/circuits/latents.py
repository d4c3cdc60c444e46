"""Latents and what dictionaries leave over as nodes of circuits (Marks et al. 2024, 2403.19647).

At each site the vector is x = sum_i f_i d_i + e: a node for every latent i and one for the error e,
at every position but the first, where all rows have the same vector. The error holds whatever a
coder adds besides latents (an offset, say), which cancels in every difference.

- The effect of a node is what the metric gains, to first order, when it takes the value that it has
  on the corrupted prompt, with the gradient averaged over points between the two (integrated
  gradients). Between them x moves straight from one to the other whatever the dictionary is, so one
  set of passes gives the effects in every dictionary of a site.
- A circuit keeps some nodes as they are in the pass at hand; the others have their mean over
  prompts at that position.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.circuits.contrasts import Contrast, Metric, Pairs, in_pairs, logit_difference
from unweave.dictionaries.code import Coder
from unweave.dictionaries.dictionary import Dictionary
from unweave.progress import Advance
from unweave.subject import Subject
from unweave.subject.running import Replacement


class CodedSite(NamedTuple):
    """A coder that writes what it reads, at its site."""

    site: str
    """Where it stands."""
    coder: Coder
    """Whose latents are the nodes."""

    @torch.no_grad()
    def values(self, x: Float[Tensor, "batch pos d"]) -> "NodeValues":
        """What each node is, latents in units of their directions."""
        flat = x.flatten(0, 1).float()
        code = self.coder.encode(flat).dense() * row_scale(self.coder, flat)
        error = flat - code @ self.coder.directions().float()
        shape = x.shape[:2]
        return NodeValues(code.unflatten(0, shape), error.unflatten(0, shape))


class NodeValues(NamedTuple):
    """Values of the nodes of one site."""

    code: Float[Tensor, "batch pos latents"]
    """Of latents."""
    error: Float[Tensor, "batch pos d"]
    """What latents leave over."""


class NodeEffects(NamedTuple):
    """What the metric gains when a node takes its value on the corrupted prompt."""

    latents: Float[Tensor, "pos latents"]
    """Of each latent; zero at the first position."""
    error: Float[Tensor, " pos"]
    """Of the error."""


class NodeCircuit(NamedTuple):
    """The nodes of one site that are kept; the first position is left alone in any case."""

    latents: Bool[Tensor, "pos latents"]
    """Latents."""
    error: Bool[Tensor, " pos"]
    """The error."""

    @property
    def complement(self) -> "NodeCircuit":
        """All the others."""
        return NodeCircuit(~self.latents, ~self.error)


def row_scale(coder: Coder, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows 1"]:
    """What a latent's direction is multiplied by in each row: 1 but behind a layer norm."""
    if not isinstance(coder, Dictionary) or not coder.spec.layer_norm:
        return x.new_ones(len(x), 1)
    scaled = x * coder.input_scale
    centred = scaled - scaled.mean(1, keepdim=True)
    return centred.square().mean(1, keepdim=True).sqrt() + 1e-5


@torch.no_grad()
def mean_values(
    subject: Subject, sites: Sequence[CodedSite], contrasts: Sequence[Contrast], *, batch: int = 16
) -> list[NodeValues]:
    """Each node's mean by position over clean and corrupted prompts, all of one length.

    In the place of a batch there is one row.
    """
    sums: list[NodeValues | None] = [None] * len(sites)
    for pairs in in_pairs(contrasts, batch):
        for tokens in (pairs.clean, pairs.corrupt):
            names = [one.site for one in sites]
            found = subject.run(tokens, capture=names, logits=False).sites
            for at, one in enumerate(sites):
                values = one.values(found[one.site])
                parts = [part.sum(0, keepdim=True) for part in values]
                before = sums[at]
                sums[at] = NodeValues(*(parts if before is None else map(torch.add, before, parts)))
    return [NodeValues(*(part / (2 * len(contrasts)) for part in one)) for one in sums if one]


def site_slopes(
    subject: Subject,
    site: str,
    pairs: Pairs,
    x_clean: Float[Tensor, "batch pos d"],
    x_corrupt: Float[Tensor, "batch pos d"],
    *,
    metric: Metric = logit_difference,
    steps: int = 10,
) -> Float[Tensor, "batch pos d"]:
    """The metric's gradient at a site, a mean over k / steps of the way, k = 0 .. steps - 1."""
    total = torch.zeros_like(x_clean)
    for k in range(steps):
        x = (x_clean + k / steps * (x_corrupt - x_clean)).detach().requires_grad_()
        with torch.enable_grad():
            logits = subject.run(pairs.clean, replace={site: x}).logits
            assert logits is not None
            total += torch.autograd.grad(metric(logits, pairs).sum(), x)[0]
    return total / steps


def node_effects(
    subject: Subject,
    sites: Sequence[CodedSite],
    contrasts: Sequence[Contrast],
    *,
    metric: Metric = logit_difference,
    steps: int = 10,
    batch: int = 16,
    advance: Advance = lambda _: None,
) -> list[NodeEffects]:
    """Mean effects over contrasts, all of one length; several coders of a site share its passes."""
    width = len(contrasts[0].clean)
    found = [
        NodeEffects(torch.zeros(width, one.coder.n_latents), torch.zeros(width)) for one in sites
    ]
    names = list(dict.fromkeys(one.site for one in sites))
    for pairs in in_pairs(contrasts, batch):
        with torch.no_grad():
            ends = [
                subject.run(tokens, capture=names, logits=False).sites
                for tokens in (pairs.clean, pairs.corrupt)
            ]
        for name in names:
            clean, corrupt = (side[name] for side in ends)
            slope = site_slopes(subject, name, pairs, clean, corrupt, metric=metric, steps=steps)
            for one, effects in zip(sites, found, strict=True):
                if one.site == name:
                    _add_effects(one, effects, clean, corrupt, slope)
        advance(len(pairs.which))
    return [NodeEffects(*(part / len(contrasts) for part in one)) for one in found]


@torch.no_grad()
def _add_effects(
    one: CodedSite, effects: NodeEffects, clean: Tensor, corrupt: Tensor, slope: Tensor
) -> None:
    before, after, slope = one.values(clean), one.values(corrupt), slope.float()
    along = slope @ one.coder.directions().float().T
    effects.latents.add_(((after.code - before.code) * along).sum(0).cpu())
    effects.error.add_(((after.error - before.error) * slope).sum((0, 2)).cpu())
    effects.latents[0] = 0
    effects.error[0] = 0


@torch.no_grad()
def node_metrics(
    subject: Subject,
    sites: Sequence[CodedSite],
    contrasts: Sequence[Contrast],
    circuits: Sequence[Sequence[NodeCircuit]],
    means: Sequence[NodeValues],
    *,
    metric: Metric = logit_difference,
    batch: int = 16,
    advance: Advance = lambda _: None,
) -> Float[Tensor, "circuits contrasts"]:
    """The metric on clean prompts with each circuit: one `NodeCircuit` for each of the sites.

    Later sites read what circuits at earlier ones have made of the stream.
    """
    found = torch.zeros(len(circuits), len(contrasts))
    for pairs in in_pairs(contrasts, batch):
        for row, circuit in enumerate(circuits):
            replace: dict[str, Replacement] = {
                one.site: _Kept(one, keep, mean)
                for one, keep, mean in zip(sites, circuit, means, strict=True)
            }
            logits = subject.run(pairs.clean, replace=replace).logits
            assert logits is not None
            found[row, pairs.which] = metric(logits, pairs).cpu()
            advance(1)
    return found


class _Kept(NamedTuple):
    """What flows on at a site when only some nodes are kept."""

    one: CodedSite
    keep: NodeCircuit
    mean: NodeValues

    def __call__(self, x: Tensor) -> Tensor:
        if self.keep.latents[1:].all() and self.keep.error[1:].all():
            return x
        values = self.one.values(x)
        lost = ~self.keep.latents.to(x.device), ~self.keep.error.to(x.device)[:, None]
        moved = ((self.mean.code - values.code) * lost[0]) @ self.one.coder.directions().float()
        moved = moved + (self.mean.error - values.error) * lost[1]
        moved[:, 0] = 0
        return x + moved.to(x.dtype)


def strongest(
    effects: Sequence[NodeEffects], order: Int[Tensor, " nodes"], count: int
) -> list[NodeCircuit]:
    """The first nodes of an order over all nodes of all sites, as `ranked` gives it."""
    flat = torch.zeros(sum(e.latents.numel() + e.error.numel() for e in effects), dtype=torch.bool)
    flat[order[:count]] = True
    found, first = [], 0
    for one in effects:
        sizes = [one.latents.numel(), one.error.numel()]
        latents, error = flat[first : first + sum(sizes)].split(sizes)
        found.append(NodeCircuit(latents.view_as(one.latents), error))
        first += sum(sizes)
    return found


def ranked(effects: Sequence[NodeEffects]) -> Int[Tensor, " nodes"]:
    """All nodes of all sites that have an effect, the largest by magnitude first."""
    flat = torch.cat([part.flatten() for one in effects for part in one]).abs()
    order = flat.argsort(descending=True, stable=True)
    return order[: int((flat > 0).sum())]


def of_one_length(contrasts: Sequence[Contrast]) -> Iterator[Contrast]:
    """The contrasts of the length that most have: nodes are told apart by position."""
    lengths = [len(one.clean) for one in contrasts]
    usual = max(sorted(set(lengths)), key=lengths.count, default=0)
    return (one for one in contrasts if len(one.clean) == usual)
