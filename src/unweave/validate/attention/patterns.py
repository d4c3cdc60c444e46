"""How well a block's attention pattern is predicted, on held-out text, and what it is worth."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.attention.qk_block import QKBlock
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.subject.scores import scores
from unweave.training.attention.pattern_kl import later, log_pattern
from unweave.validate.attention.predictors import PatternPredictor, Predicted
from unweave.validate.bootstrap import BootstrapSettings, Interval, intervals, mean_interval
from unweave.validate.splice import compare_logits


class PatternScores(NamedTuple):
    """One predictor beside the block's own pattern; intervals over rows of tokens.

    Means are over queries and heads; the first query, which sees itself alone, is left out.
    """

    kl: Interval
    """KL(P || P^), nats."""
    max_difference: Interval
    """Largest |P - P^| of a query's keys."""
    argmax: Interval
    """Share of queries whose most attended key is the same."""
    argmax_elsewhere: Interval
    """The same among queries that do not attend most to the start token."""
    score_mse: Interval
    """Mean squared error of scores, over keys that are not out; nan where there are none."""
    l0_Q: Interval
    """Numbers per token that queries are made of, over all heads."""
    l0_K: Interval
    """Numbers per token that keys are made of."""
    parameters: int
    """Numbers that the predictor has learned or kept."""


@torch.no_grad()
def measure_patterns(
    predictors: Mapping[str, PatternPredictor],
    block: QKBlock,
    x: Float[Tensor, "rows pos d_in"],
    *,
    rows_at_once: int = 4,
    settings: BootstrapSettings | None = None,
    progress: Progress = QUIET,
) -> dict[str, PatternScores]:
    """Scores of each predictor on the same rows of what the block's attention reads.

    Raises:
        UserError: rows of one token, which have no pattern to predict.
    """
    if x.shape[1] < 2:
        raise UserError("Patterns are measured on rows of two tokens or more; these have one")
    sums: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    counts: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    total = x.shape[0] * x.shape[1] * len(predictors)
    with progress.task("Measuring patterns", total=total, unit="tokens") as advance:
        for group in x.split(rows_at_once):
            found = scores(block.queries(group), block.keys(group), block.scoring)
            true = log_pattern(found)
            for name, predictor in predictors.items():
                above, below = _row_sums(true, found, predictor.predict(group))
                sums[name].append(above)
                counts[name].append(below)
                advance(group.shape[0] * group.shape[1])
    settings = settings or BootstrapSettings()
    measured = {}
    for name in predictors:
        kl, most, same, elsewhere, mse, l0_Q, l0_K = intervals(
            np.concatenate(sums[name]), np.concatenate(counts[name]), settings
        )
        size = predictors[name].parameters
        measured[name] = PatternScores(kl, most, same, elsewhere, mse, l0_Q, l0_K, size)
    return measured


def _row_sums(true: Tensor, true_scores: Tensor, guess: Predicted) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators [rows, metrics], in the order of `PatternScores`."""
    out = later(true.shape[-1], true.device)
    p, q = true.exp(), guess.log.exp()
    # A pattern may be zero where the guess is, or where a key is out: nothing is lost there.
    lost = torch.where(p > 0, p * (true - guess.log), 0.0)
    own = true.argmax(-1)
    same, elsewhere = own == guess.log.argmax(-1), own != 0
    rows, heads, queries = own[..., 1:].shape
    per_query = (lost.sum(-1), (p - q).abs().amax(-1), same, same & elsewhere)
    above = [each[..., 1:].double().sum((1, 2)) for each in per_query]
    every = torch.full((rows,), float(heads * queries), dtype=torch.float64)
    below = [every, every, every, elsewhere[..., 1:].double().sum((1, 2))]
    if guess.scores is None:
        above.append(torch.zeros(rows))
        below.append(torch.zeros(rows))
    else:
        error = (guess.scores - true_scores).masked_fill(out, 0.0).square()[:, :, 1:]
        above.append(error.double().sum((1, 2, 3)))
        below.append(torch.full((rows,), float(heads * (~out[1:]).sum())))
    for l0 in (guess.l0_Q, guess.l0_K):
        above.append(torch.full((rows,), l0))
        below.append(torch.ones(rows))
    return _matrix(above), _matrix(below)


def _matrix(columns: list[Tensor]) -> np.ndarray:
    return torch.stack([column.cpu().double() for column in columns], dim=1).numpy()


@torch.no_grad()
def run_with_pattern(
    subject: Subject, layer: int, predictor: PatternPredictor, rows: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """Logits of the subject while one block attends where the predictor says."""
    seen: dict[str, Tensor] = {}

    def attend(pattern: Tensor) -> Tensor:
        guess = predictor.predict(seen["x"].float()).log.exp()
        # The first query sees itself alone.
        return torch.cat([pattern[:, :, :1], guess[:, :, 1:].to(pattern.dtype)], dim=2)

    def keep(x: Tensor) -> None:
        seen["x"] = x

    run = subject.run(
        rows,
        show={f"blocks.{layer}.attn.in": keep},
        replace={f"blocks.{layer}.attn.pattern": attend},
    )
    assert run.logits is not None
    return run.logits


def pattern_ce(
    subject: Subject,
    layer: int,
    predictors: Mapping[str, PatternPredictor],
    rows: Int[Tensor, "rows pos"],
    *,
    rows_at_once: int = 4,
    settings: BootstrapSettings | None = None,
    progress: Progress = QUIET,
) -> dict[str, Interval]:
    """Rise of the next token's cross-entropy, nats, with the pattern of one block predicted.

    Each query of the block attends where the predictor says; values stay the block's own.
    """
    rises: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    total = rows.numel() * len(predictors)
    with progress.task("Attending as predicted", total=total, unit="tokens") as advance:
        for group in rows.split(rows_at_once):
            original = subject.run(group).logits
            assert original is not None
            for name, predictor in predictors.items():
                spliced = run_with_pattern(subject, layer, predictor, group)
                rises[name].append(compare_logits(original, spliced, group).ce_increase)
                advance(group.numel())
    return {name: mean_interval(np.concatenate(rise), settings) for name, rise in rises.items()}
