"""Passages around the tokens at which latents fire, as SAEBench draws them.

For each latent, windows of ten tokens to either side of
    top       its strongest firings, no two windows of a row overlapping,
    weighted  others, drawn in proportion to their activation,
    random    any tokens.
Top and weighted ones are dealt out at random to explaining and to scoring; random ones are for
scoring. A passage counts as firing if any of its tokens is above 1% of the latent's maximum; that
is looked up for random ones too (published: taken to be silent).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.describe.judge import Example, Passage
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.placed import Placed


class ExampleSettings(BaseModel):
    """Which passages are drawn; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: PositiveInt = 2_000_000
    """Tokens of text that firings are looked for in."""
    context: PositiveInt = 128
    """Tokens in a row."""
    buffer: PositiveInt = 10
    """Tokens shown to either side."""
    least_firings: PositiveInt = 15
    """A latent that fires at fewer tokens, or up to as many, is left out."""
    threshold: PositiveFloat = 0.01
    """Share of a latent's maximum above which it counts as firing."""
    top_explain: PositiveInt = 10
    """Strongest passages to explain from."""
    weighted_explain: PositiveInt = 5
    """Weighted passages to explain from."""
    top_score: PositiveInt = 2
    """Strongest passages to score on."""
    weighted_score: PositiveInt = 2
    """Weighted passages to score on."""
    random_score: PositiveInt = 10
    """Random passages to score on."""


class Drawn(NamedTuple):
    """One latent's passages."""

    latent: int
    explain: list[Example]
    """Strongest first."""
    score: list[Example]
    """Shuffled."""


class Found(NamedTuple):
    """Where some latents fire on rows of text, ordered by latent."""

    latent: Int[np.ndarray, " firings"]
    row: Int[np.ndarray, " firings"]
    position: Int[np.ndarray, " firings"]
    value: Float[np.ndarray, " firings"]

    def of(self, latent: int) -> "Found":
        """The firings of one latent."""
        begin, end = np.searchsorted(self.latent, [latent, latent + 1])
        return Found(*(field[begin:end] for field in self))


@torch.no_grad()
def firings_of(
    subject: Subject,
    one: Placed,
    rows: Int[Tensor, "rows pos"],
    latents: Sequence[int],
    *,
    rows_at_once: int = 8,
    progress: Progress = QUIET,
) -> Found:
    """Every firing of some latents, position 0 left out."""
    listed = torch.zeros(one.coder.n_latents, dtype=torch.bool)
    listed[list(latents)] = True
    width = rows.shape[1] - 1
    parts: list[tuple[np.ndarray, ...]] = []
    with progress.task("autointerp: firings", total=rows.numel(), unit="tokens") as advance:
        for number, group in enumerate(rows.split(rows_at_once)):
            sites = subject.run(group, capture=list(one.reads), logits=False).sites
            x = torch.cat([sites[s][:, 1:].flatten(2).flatten(0, 1) for s in one.reads], dim=1)
            code = one.coder.encode(x.float())
            latent = code.support.latent.cpu()
            on = listed[latent] & (code.value.cpu() > 0)
            place = code.support.row.cpu()[on]
            parts.append(
                (
                    latent[on].numpy(), (number * rows_at_once + place // width).numpy(),
                    (1 + place % width).numpy(), code.value.cpu()[on].double().numpy(),
                )
            )  # fmt: skip
            advance(group.numel())
    whole = [np.concatenate([part[at] for part in parts]) for at in range(4)]
    order = np.argsort(whole[0], kind="stable")
    return Found(*(field[order] for field in whole))


def draw_passages(
    found: Found,
    latents: Sequence[int],
    rows: Int[np.ndarray, "rows pos"],
    pieces: Sequence[str],
    settings: ExampleSettings,
    *,
    seed: int,
) -> Iterator[Drawn]:
    """The passages of every latent that has enough of them; `pieces` has each token's text."""
    for latent in latents:
        own = found.of(latent)
        if len(own.value) > settings.least_firings:
            random = np.random.default_rng([seed, latent])
            drawn = _of_latent(own, latent, rows, pieces, settings, random)
            if drawn is not None:
                yield drawn


def _of_latent(
    own: Found,
    latent: int,
    rows: np.ndarray,
    pieces: Sequence[str],
    settings: ExampleSettings,
    random: np.random.Generator,
) -> Drawn | None:
    width, buffer = rows.shape[1], settings.buffer
    inside = (own.position >= buffer) & (own.position < width - buffer)
    centre = np.flatnonzero(inside)
    order = centre[np.argsort(-own.value[centre], kind="stable")]
    top = _apart(own, order, settings.top_explain + settings.top_score, 2 * buffer)
    if len(top) < settings.top_explain + settings.top_score:
        return None
    rest = order[own.value[order] < own.value[top].min()]
    wanted = settings.weighted_explain + settings.weighted_score
    if len(rest) < wanted:
        return None
    share = own.value[rest] / own.value[rest].sum()
    weighted = rest[random.choice(len(rest), size=wanted, replace=False, p=share)]
    threshold = settings.threshold * float(own.value.max())
    values = {
        (r, p): v
        for r, p, v in zip(own.row.tolist(), own.position.tolist(), own.value.tolist(), strict=True)
    }

    def shown(row: int, position: int) -> Example:
        places = range(position - buffer, position + buffer + 1)
        tokens = tuple(rows[row, places.start : places.stop].tolist())
        passage = Passage(tokens, tuple(pieces[token] for token in tokens))
        return Example(passage, tuple(values.get((row, p), 0.0) for p in places), threshold)

    def at(index: np.ndarray) -> list[Example]:
        return [shown(int(own.row[i]), int(own.position[i])) for i in index]

    top, weighted = random.permutation(top), random.permutation(weighted)
    explain = at(top[: settings.top_explain]) + at(weighted[: settings.weighted_explain])
    places = zip(
        random.integers(0, len(rows), settings.random_score).tolist(),
        random.integers(buffer, width - buffer, settings.random_score).tolist(),
        strict=True,
    )
    score = at(top[settings.top_explain :]) + at(weighted[settings.weighted_explain :])
    score += [shown(row, position) for row, position in places]
    return Drawn(
        latent,
        sorted(explain, key=lambda one: max(one.activations), reverse=True),
        [score[i] for i in random.permutation(len(score))],
    )


def _apart(own: Found, order: np.ndarray, wanted: int, distance: int) -> np.ndarray:
    """The first of an order whose windows do not overlap."""
    taken: dict[int, list[int]] = {}
    kept = []
    for at in order.tolist():
        row, position = int(own.row[at]), int(own.position[at])
        if all(abs(position - other) > distance for other in taken.get(row, [])):
            taken.setdefault(row, []).append(position)
            kept.append(at)
            if len(kept) == wanted:
                break
    return np.array(kept, dtype=np.int64)
