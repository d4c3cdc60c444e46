"""What methods at one place are measured on, and what is the same for all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from unweave.describe.describe import DescribeSettings
from unweave.describe.subject_tokens import vocabulary_of
from unweave.describe.vocabulary import Vocabulary
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.subject.running import Run
from unweave.validate.bootstrap import BootstrapSettings
from unweave.validate.splice import RowScores, compare_logits, stack
from unweave.validate.splice_dictionary import ablation, site_means

MANY_LOGITS = 2**22
"""Logits (16 MB) up to which rows are run together."""
KEPT_LOGITS = 2**25
"""Logits of the untouched network (128 MB) that are kept."""


class MeasureSettings(BaseModel):
    """Settings of a measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    unnoticed_share: NonNegativeFloat = 0.01
    """Strengths are as coarse as may be with the CE increase up by at most this share of itself,"""
    unnoticed_nats: NonNegativeFloat = 0.005
    """or by this, nats per token, whichever is more."""
    most_bits: NonNegativeInt = 10
    """Bits of a strength at most."""
    choosing_rows: PositiveInt = 16
    """Rows for explaining on which the bits are chosen."""
    splice_rows: PositiveInt = 128
    """Held-out rows on which losses are measured, at most; firings are counted on all of them."""
    rows_at_once: PositiveInt = 4
    """Rows run together."""
    amortised_over: PositiveInt
    """Tokens over which dictionaries, edges and descriptions are amortised."""
    describe: DescribeSettings = DescribeSettings()
    """How descriptions are made."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals, over held-out rows."""
    shuffle_seed: int = 0
    """Seed of the shuffled descriptions."""


@dataclass
class Ground:
    """A subject and its rows; originals and ablations run once for all methods that share them."""

    subject: Subject
    explain: Int[Tensor, "explain_rows pos"]
    """Rows that may be looked at."""
    heldout: Int[Tensor, "heldout_rows pos"]
    """Rows that everything is measured on."""
    settings: MeasureSettings
    progress: Progress = QUIET
    _widths: dict[str, int] = field(default_factory=dict)
    _means: dict[str, Tensor] = field(default_factory=dict)
    _floors: dict[tuple[str, ...], RowScores] = field(default_factory=dict)
    _logits: dict[bytes, Tensor] = field(default_factory=dict)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The subject's."""
        return vocabulary_of(self.subject)

    @property
    def rows(self) -> Int[Tensor, "rows pos"]:
        """All rows, those for explaining first."""
        return torch.cat([self.explain, self.heldout])

    @property
    def choosing(self) -> Int[Tensor, "choosing_rows pos"]:
        """Rows for explaining on which the bits of a strength are chosen."""
        return self.explain[: self.settings.choosing_rows]

    @property
    def spliced(self) -> Int[Tensor, "spliced_rows pos"]:
        """Held-out rows on which losses are measured."""
        return self.heldout[: self.settings.splice_rows]

    def floor(self, writes: tuple[str, ...]) -> RowScores:
        """Scores with the sites at their means over the rows for explaining: saying nothing."""
        if writes not in self._floors:
            new = [site for site in writes if site not in self._means]
            if new:
                self._means |= site_means(self.subject, new, self.explain)
            replace = ablation(writes, {site: self._means[site] for site in writes})
            self._floors[writes] = self.scores(
                self.spliced, lambda rows: self.subject.run(rows, replace=replace)
            )
        return self._floors[writes]

    def width(self, site: str) -> int:
        """Numbers in one of a site's vectors."""
        if site not in self._widths:
            found = self.subject.run(self.explain[:1], capture=[site], logits=False).sites[site]
            self._widths[site] = found[0, 0].numel()
        return self._widths[site]

    @torch.no_grad()
    def scores(self, rows: Int[Tensor, "rows pos"], changed: Callable[[Tensor], Run]) -> RowScores:
        """Scores of a changed network against the original on rows."""
        found = []
        with self.progress.task("Splicing", total=rows.numel(), unit="tokens") as advance:
            for group in rows.split(self._rows_at_once):
                original, spliced = self._original(group), changed(group).logits
                assert spliced is not None
                found.append(compare_logits(original, spliced, group))
                advance(group.numel())
        return stack(found)

    @property
    def _rows_at_once(self) -> int:
        """More than asked for where few tokens make small logits."""
        few = MANY_LOGITS // (self.heldout.shape[1] * self.subject.vocab_size)
        return max(self.settings.rows_at_once, few)

    def _original(self, group: Int[Tensor, "group pos"]) -> Tensor:
        """The untouched network's logits; the first that fit are kept, all methods ask for them."""
        key = group.numpy().tobytes()
        if key in self._logits:
            return self._logits[key]
        logits = self.subject.run(group).logits
        assert logits is not None
        if sum(kept.numel() for kept in self._logits.values()) + logits.numel() <= KEPT_LOGITS:
            self._logits[key] = logits
        return logits
