"""Causal scrubbing (Chan et al. 2022): a hypothesis says which inputs are interchangeable where.

A node of a hypothesis is a group of latents and the feature of the input that they are claimed to
depend on. Its activations are replaced by those of a random other input that agrees on the
feature, whose own nodes below are replaced in the same way first. With L the loss,

    recovered = (L_random - L_scrubbed) / (L_random - L_original)

where for L_random everything in a node comes from any input. A claim that only equal inputs are
interchangeable recovers everything and says nothing: `alone` tells.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode
from unweave.subject import Subject
from unweave.training.joint import kl_per_token
from unweave.validate.bootstrap import Interval, ratio_interval
from unweave.validate.placed import Edit, Placed, run_with

Feature = Callable[[Int[Tensor, "rows pos"]], Int[Tensor, " rows"]]
"""A label of each input; inputs of the same label are claimed to be interchangeable."""


class Node(NamedTuple):
    """Latents and what of the input they are claimed to depend on."""

    part: str
    """Name of the coder."""
    feature: Feature
    """The claimed feature."""
    latents: tuple[int, ...] | None = None
    """The latents; all of the coder's when None."""
    below: tuple["Node", ...] = ()
    """Nodes that this one is claimed to be computed from, in coders that stand before."""


class Scrubbed(NamedTuple):
    """What a hypothesis recovers."""

    recovered_ce: Interval
    """Share of the loss of random resampling that it recovers, by cross-entropy."""
    recovered_kl: Interval
    """The same by KL from the original."""
    agreeing: float
    """Mean over nodes of how many other inputs agree with an input; the fewer, the less is said."""
    alone: float
    """Share of inputs, over nodes, that no other agrees with: 1 where a hypothesis is vacuous."""

    @property
    def vacuous(self) -> bool:
        """Whether hardly anything was exchanged, so that what is recovered says nothing."""
        return self.alone > 0.5


class RowLosses(NamedTuple):
    """Sums over each row."""

    ce: Float[np.ndarray, " rows"]
    kl: Float[np.ndarray, " rows"]


@torch.no_grad()
def scrub(
    subject: Subject,
    standing: Sequence[Placed],
    rows: Int[Tensor, "rows pos"],
    nodes: Sequence[Node],
    *,
    seed: int = 0,
) -> Scrubbed:
    """Scrub a hypothesis whose output depends on `nodes`; what coders do not reproduce stays.

    Latents in no node stay as they are, so that each claim is tested by itself.
    """
    original = _logits(subject, rows)
    work = _Scrubbing(subject, {one.name: one for one in standing}, rows, seed)
    all_rows = torch.arange(len(rows))
    losses = [row_losses(original, rows, original)]
    for random in (False, True):
        edits = work.edits(nodes, all_rows, random=random)
        run = run_with(subject, rows, standing, edit=edits, keep_error=True)
        assert run.logits is not None
        losses.append(row_losses(run.logits.float(), rows, original))
    ce, kl = recovered(*losses)
    others = torch.stack([_others(node.feature(rows)) for node in _flat(nodes)]).double()
    return Scrubbed(ce, kl, others.mean().item(), (others == 0).double().mean().item())


def recovered(
    original: RowLosses, scrubbed: RowLosses, random: RowLosses
) -> tuple[Interval, Interval]:
    """Shares recovered by cross-entropy and by KL, intervals over rows."""
    return (
        ratio_interval(random.ce - scrubbed.ce, random.ce - original.ce),
        ratio_interval(random.kl - scrubbed.kl, random.kl - original.kl),
    )


def row_losses(
    logits: Float[Tensor, "rows pos vocab"],
    rows: Int[Tensor, "rows pos"],
    original: Float[Tensor, "rows pos vocab"],
) -> RowLosses:
    """Losses after position 0, which nothing changes."""
    kl = kl_per_token(original[:, 1:], logits[:, 1:]).double().sum(1)
    ce = F.cross_entropy(logits[:, 1:-1].transpose(1, 2), rows[:, 2:], reduction="none")
    return RowLosses(ce.double().sum(1).cpu().numpy(), kl.cpu().numpy())


class _Scrubbing:
    """Activations of nodes on inputs that agree, from the bottom up."""

    def __init__(self, subject: Subject, parts: dict[str, Placed], rows: Tensor, seed: int) -> None:
        self._subject, self._parts, self._rows = subject, parts, rows
        self._random = torch.Generator().manual_seed(seed)

    def edits(self, nodes: Sequence[Node], of: Tensor, *, random: bool) -> dict[str, Edit]:
        """What changes the coders so that the nodes are those of inputs drawn for `of`."""
        steps: dict[str, list[tuple[Node, Tensor]]] = {}
        for node in nodes:
            key = node.feature(self._rows)
            drawn = self._draw(torch.zeros_like(key) if random else key, of)
            steps.setdefault(node.part, []).append((node, self._values(node, drawn, random)))
        return {part: _putting(each) for part, each in steps.items()}

    def _draw(self, key: Tensor, of: Tensor) -> Tensor:
        same = (key[of][:, None] == key[None, :]).float()
        # The input itself only where no other agrees.
        same[torch.arange(len(of)), of] = 1e-12
        return torch.multinomial(same, 1, generator=self._random)[:, 0]

    def _values(self, node: Node, drawn: Tensor, random: bool) -> Tensor:
        seen: list[Tensor] = []
        edits = self.edits(node.below, drawn, random=random)
        inner = edits.get(node.part)

        def look(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
            changed = code if inner is None else inner(code, shape)
            seen.append(changed.dense())
            return changed

        run_with(
            self._subject, self._rows[drawn], list(self._parts.values()),
            edit=edits | {node.part: look}, keep_error=True, logits=True,
        )  # fmt: skip
        return seen[0]


def _putting(steps: Sequence[tuple[Node, Tensor]]) -> Edit:
    def edit(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        dense = code.dense()
        for node, values in steps:
            which = slice(None) if node.latents is None else list(node.latents)
            dense[:, which] = values[:, which].to(dense)
        return SparseCode.from_dense(dense)

    return edit


def _flat(nodes: Sequence[Node]) -> list[Node]:
    return [one for node in nodes for one in (node, *_flat(node.below))]


def _others(key: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    _, place, counts = key.unique(return_inverse=True, return_counts=True)
    return counts[place] - 1


def _logits(subject: Subject, rows: Tensor) -> Tensor:
    logits = subject.run(rows).logits
    assert logits is not None
    return logits.float()
