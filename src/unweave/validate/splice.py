"""Mathematical accuracy: what happens to the predictions when parts replace what they describe."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.activations.workers import Workers
from unweave.decompile.modes import (
    clean_logits,
    original_logits,
    propagated_logits,
    single_logits,
)
from unweave.dictionaries.part import Part
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.joint import kl_per_token


class RowScores(NamedTuple):
    """Means over each row's predictions; the prediction made at the start token is left out."""

    ce_original: Float[np.ndarray, " rows"]
    """Cross-entropy of the subject, nats per token."""
    ce_increase: Float[np.ndarray, " rows"]
    """Cross-entropy of the spliced network minus the subject's, nats per token."""
    kl: Float[np.ndarray, " rows"]
    """KL(original || spliced), nats per token."""
    top1_agreement: Float[np.ndarray, " rows"]
    """Share of positions where both put the same token first."""


def compare_logits(
    original: Float[Tensor, "rows pos vocab"],
    spliced: Float[Tensor, "rows pos vocab"],
    rows: Int[Tensor, "rows pos"],
) -> RowScores:
    """Scores of spliced logits against the original's on the true next tokens."""
    p, q = original[:, 1:-1].float(), spliced[:, 1:-1].float()
    next_token = rows[:, 2:].to(p.device)
    before = F.cross_entropy(p.transpose(1, 2), next_token, reduction="none").mean(1)
    after = F.cross_entropy(q.transpose(1, 2), next_token, reduction="none").mean(1)
    agree = (p.argmax(-1) == q.argmax(-1)).float().mean(1)
    kl = kl_per_token(p, q).mean(1)
    return RowScores(*(t.double().cpu().numpy() for t in (before, after - before, kl, agree)))


def stack(scores: list[RowScores]) -> RowScores:
    """Join the scores of several groups of rows."""
    return RowScores(*(np.concatenate(group) for group in zip(*scores, strict=True)))


class Variant(NamedTuple):
    """One way to splice the network."""

    placed: Mapping[str, nn.Module]
    """Stand-ins by part name."""
    mode: Literal["clean", "propagated"]
    """Where they get their input."""


def splice_scores(
    subject: Subject,
    variants: Mapping[str, Variant],
    rows: Int[Tensor, "rows pos"],
    *,
    workers: Workers,
    rows_at_once: int = 4,
    progress: Progress = QUIET,
) -> dict[str, RowScores]:
    """Scores of each variant on the same rows; the original runs once for all of them."""
    logits = {"clean": clean_logits, "propagated": propagated_logits}
    total = rows.numel() * (len(variants) + 1)
    with progress.task("Splicing", total=total, unit="tokens") as advance:

        def score(start: int) -> dict[str, RowScores]:
            group, own = rows[start : start + rows_at_once], workers.twin(subject)
            original = original_logits(own, group)
            advance(group.numel())
            scores = {}
            for name, (placed, mode) in variants.items():
                spliced = logits[mode](own, placed, group)
                scores[name] = compare_logits(original, spliced, group)
                advance(group.numel())
            return scores

        done = list(workers.map(score, range(0, len(rows), rows_at_once)))
    return {name: stack([group[name] for group in done]) for name in variants}


def single_scores(
    subject: Subject,
    placed: Mapping[str, nn.Module],
    rows: Int[Tensor, "rows pos"],
    *,
    workers: Workers,
    rows_at_once: int = 4,
    progress: Progress = QUIET,
) -> dict[str, RowScores]:
    """Scores of every part alone, the rest of the network original (splice mode `single`)."""
    done: dict[str, list[RowScores]] = {name: [] for name in placed}

    with progress.task(
        "Splicing (single)", total=rows.numel() * len(placed), unit="part tokens"
    ) as advance:

        def score(start: int) -> dict[str, RowScores]:
            group, own = rows[start : start + rows_at_once], workers.twin(subject)
            original = original_logits(own, group)
            scores = {}
            for name, logits in single_logits(own, placed, group):
                scores[name] = compare_logits(original, logits, group)
                advance(group.numel())
            return scores

        for group in workers.map(score, range(0, len(rows), rows_at_once)):
            for name, scores in group.items():
                done[name].append(scores)
    return {name: stack(scores) for name, scores in done.items()}


class Fidelity(NamedTuple):
    """How well a part reproduces its block on held-out text, in splice mode `clean`."""

    fvu: float
    """Share of the output's variance left unexplained."""
    fvu_robust: float
    """The same over the 99 % of tokens whose outputs lie nearest the mean: without massive ones."""
    l2_ratio: float
    """Mean of |output| / |target|: below one where features are suppressed."""
    l0: float
    """Active latents per token."""


def fidelity(
    part: Part, x: Float[Tensor, "vectors d_in"], y: Float[Tensor, "vectors d_out"]
) -> Fidelity:
    """Compare a part's outputs with its block's; the start token must be left out already."""
    with torch.inference_mode():
        output = part(x)
        code = part.encode(x)
    error, centred = (output - y).square().sum(1), (y - y.mean(0)).square().sum(1)
    near = centred <= centred.quantile(0.99)
    robust_mean = (y[near] - y[near].mean(0)).square().sum(1)
    return Fidelity(
        fvu=(error.sum() / centred.sum().clamp_min(1e-12)).item(),
        fvu_robust=(error[near].sum() / robust_mean.sum().clamp_min(1e-12)).item(),
        l2_ratio=(output.norm(dim=1) / y.norm(dim=1).clamp_min(1e-12)).mean().item(),
        l0=(code.value != 0).sum(1).float().mean().item(),
    )
