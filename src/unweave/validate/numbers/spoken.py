"""The semantic splice: coders that write what their descriptions predict, and nothing they saw.

The descriptions know the tokens alone, so clean and propagated inputs make no difference to them.
A linear map beside the latents (skip) has no description; it stays, and counts in the length of
the mathematics.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.describe.rules import RuleTable
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.code import Coder, SparseCode, Support
from unweave.subject import Subject
from unweave.subject.running import Run
from unweave.validate.placed import Edit, Placed, needs_input, run_with
from unweave.validate.prediction import PredictedLatents, predicted_latents


class OnBackground:
    """A coder of excesses over what is expected where no rule matches."""

    def __init__(self, coder: Coder, background: Float[Tensor, " latents"]) -> None:
        self._coder = coder
        self._written = background @ coder.directions().to(background.dtype)

    @property
    def n_latents(self) -> int:
        """Latents of the coder."""
        return self._coder.n_latents

    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """Nothing: what is decoded does not come from the input."""
        empty = torch.zeros(0, dtype=torch.int64)
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64)
        return SparseCode(Support(offsets, empty, self.n_latents), empty.float())

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What the coder writes for the background and the excesses."""
        return self._coder.decode(code) + self._written

    def directions(self) -> Float[Tensor, "latents d_out"]:
        """Those of the coder."""
        return self._coder.directions()


def run_spoken(
    subject: Subject,
    rows: Int[Tensor, "batch pos"],
    parts: Sequence[Placed],
    tables: Mapping[str, RuleTable],
    vocabulary: Vocabulary,
) -> Run:
    """One pass with what the descriptions predict in the latents' place."""
    standing, edits = [], {}
    for part in parts:
        said = predicted_latents(tables[part.name], rows.numpy(), vocabulary)
        background = torch.from_numpy(said.background).float()
        sparse = not needs_input(part.coder)
        if sparse:
            part = part._replace(coder=OnBackground(part.coder, background))
        standing.append(part)
        edits[part.name] = _edit(said, background, sparse)
    return run_with(subject, rows, standing, edit=edits)


def _edit(said: PredictedLatents, background: Tensor, sparse: bool) -> Edit:
    def edit(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        # Nothing is predicted at position 0, so leaving it out removes no entry.
        counts = np.diff(said.token_indptr).reshape(shape[0], -1)[:, 1:].ravel()
        offsets = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
        support = Support(offsets, torch.from_numpy(said.latent.astype(np.int64)), len(background))
        excess = SparseCode(support, torch.from_numpy(said.excess).float())
        return excess if sparse else SparseCode.from_dense(excess.dense() + background)

    return edit
