"""SAEBench's core metrics (Karvonen et al. 2025, 2503.09532): what the network loses, and L0.

    score = (loss with zeros - loss with the dictionary) / (loss with zeros - loss as it was)

for cross-entropy and, with KL from the original in the place of losses, for KL. The start token
is left as it was and counts in no mean; with zeros in the place of the site it is zeroed too.

Two of the published definitions (sae-bench 0.6.0) are not what their names say, and stand here
beside the ones meant: `explained_variance_as_published` takes the variance from mean squares in
the place of means, and `mse_as_published` divides by the tokens of a batch, not by the width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.artifact.scores import Number
from unweave.subject import Subject
from unweave.subject.rows import token_rows
from unweave.training.joint import kl_per_token
from unweave.validate.bootstrap import ratio_interval
from unweave.validate.four_numbers import number
from unweave.validate.placed import Placed, run_with
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.core_vectors import VectorSums, vector_numbers, weight_numbers
from unweave.validate.protocols.protocol import Bench, Outcome


class CoreSettings(BaseModel):
    """Settings of the core metrics; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    loss_tokens: PositiveInt = 409_600
    """Tokens for cross-entropy and KL: 200 batches of 16 rows."""
    vector_tokens: PositiveInt = 4_096_000
    """Tokens for everything that needs the site alone: 2,000 batches of 16 rows."""
    context: PositiveInt = 128
    """Tokens in a row."""
    zero_start: bool = True
    """Whether zeros in the place of the site stand at the start token as well, as published; there
    many networks keep an attention sink, without which they lose far more than the site's
    content."""
    batch: PositiveInt = 16
    """Rows of one of their batches, which `mse_as_published` divides by."""
    rows_at_once: PositiveInt = 4
    """Rows run together here, without influence on the numbers."""


class Losses(NamedTuple):
    """Sums over the tokens of each row."""

    ce_original: Float[np.ndarray, " rows"]
    ce_dictionary: Float[np.ndarray, " rows"]
    ce_zero: Float[np.ndarray, " rows"]
    kl_dictionary: Float[np.ndarray, " rows"]
    kl_zero: Float[np.ndarray, " rows"]
    ce_random: Float[np.ndarray, " rows"]
    kl_random: Float[np.ndarray, " rows"]
    ce_tokens: Float[np.ndarray, " rows"]
    """Tokens that cross-entropy is a mean over: all but the first and the last of a row."""
    kl_tokens: Float[np.ndarray, " rows"]
    """Tokens that KL is a mean over: all but the first of a row."""


def core(bench: Bench, settings: CoreSettings | None = None) -> Outcome:
    """The core metrics on held-out rows of the bench's text."""
    settings = settings or CoreSettings()
    rows = core_rows(bench, settings)
    return core_on(bench, rows, settings)


def core_rows(bench: Bench, settings: CoreSettings) -> Int[Tensor, "rows pos"]:
    """Held-out rows, as many as there are up to what is asked for."""
    tokens = max(2 * settings.context, round(settings.vector_tokens * bench.share / 0.9))
    found = token_rows(
        bench.subject, bench.text, tokens=tokens, context=settings.context, seed=bench.seed,
        heldout_share=0.9, progress=bench.progress,
    )  # fmt: skip
    return found.heldout


@torch.no_grad()
def core_on(bench: Bench, rows: Int[Tensor, "rows pos"], settings: CoreSettings) -> Outcome:
    """The core metrics on given rows, each of which begins with the start token."""
    one = bench.dictionary
    x, y = next(_vectors(bench.subject, one, rows, settings.rows_at_once))
    random = random_twin(one, x, y, seed=bench.seed)
    few = rows[: max(1, round(settings.loss_tokens * bench.share) // rows.shape[1])]
    losses = _losses(bench, few, random, settings)
    sums, sums_random = VectorSums(one, rows.shape[1] - 1), VectorSums(random, rows.shape[1] - 1)
    with bench.progress.task("core: vectors", total=rows.numel(), unit="tokens") as advance:
        for x, y in _vectors(bench.subject, one, rows, settings.rows_at_once):
            sums.add(x, y)
            sums_random.add(x, y)
            advance(len(x) * rows.shape[1] / (rows.shape[1] - 1))
    found = vector_numbers(sums, tokens_of_batch=settings.batch * (rows.shape[1] - 1))
    bad = vector_numbers(sums_random, tokens_of_batch=settings.batch * (rows.shape[1] - 1))
    numbers = _scores(losses) | found | weight_numbers(one)
    return Outcome(
        protocol="core",
        numbers=numbers,
        controls=_random_scores(losses) | {
            f"{name}_random": bad[name] for name in ("explained_variance", "cossim") if name in bad
        },
        details={
            "settings": settings.model_dump(mode="json"),
            "loss_tokens": few.numel(), "vector_tokens": rows.numel(), "text": bench.text,
            "control": "random directions, same norms, number of latents and L0",
        },
    )  # fmt: skip


def _vectors(
    subject: Subject, one: Placed, rows: Tensor, rows_at_once: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What is read and what is there to be written, position 0 left out, group by group."""
    sites = list(dict.fromkeys([*one.reads, *one.writes]))
    for group in rows.split(rows_at_once):
        found = subject.run(group, capture=sites, logits=False).sites
        flat = {site: found[site][:, 1:].flatten(2).flatten(0, 1).float() for site in sites}
        yield tuple(torch.cat([flat[s] for s in side], 1) for side in (one.reads, one.writes))


def _losses(bench: Bench, rows: Tensor, random: Placed, settings: CoreSettings) -> Losses:
    found: list[Losses] = []
    with bench.progress.task("core: losses", total=rows.numel(), unit="tokens") as advance:
        for group in rows.split(settings.rows_at_once):
            found.append(_losses_of(bench, group, random, settings.zero_start))
            advance(group.numel())
    return Losses(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _losses_of(bench: Bench, rows: Tensor, random: Placed, zero_start: bool) -> Losses:
    subject, one = bench.subject, bench.dictionary

    def zeros(site: Tensor) -> Tensor:
        return torch.cat([site[:, :1] * (0.0 if zero_start else 1.0), site[:, 1:] * 0.0], 1)

    original = _logits(subject.run(rows).logits)
    ce, kl = [_ce(original, rows)], []
    for changed in (
        lambda: run_with(subject, rows, [one]),
        lambda: subject.run(rows, replace=dict.fromkeys(one.writes, zeros)),
        lambda: run_with(subject, rows, [random]),
    ):
        logits = _logits(changed().logits)
        ce.append(_ce(logits, rows))
        kl.append(_sum(kl_per_token(original[:, 1:], logits[:, 1:])))
    each, width = np.ones(len(rows)), rows.shape[1]
    return Losses(
        ce_original=ce[0],
        ce_dictionary=ce[1],
        ce_zero=ce[2],
        ce_random=ce[3],
        kl_dictionary=kl[0],
        kl_zero=kl[1],
        kl_random=kl[2],
        ce_tokens=each * (width - 2),
        kl_tokens=each * (width - 1),
    )


def _logits(logits: Tensor | None) -> Tensor:
    assert logits is not None
    return logits.float()


def _ce(logits: Tensor, rows: Tensor) -> np.ndarray:
    guessed, true = logits[:, 1:-1].transpose(1, 2), rows[:, 2:].to(logits.device)
    return _sum(F.cross_entropy(guessed, true, reduction="none"))


def _sum(per_token: Tensor) -> np.ndarray:
    return per_token.double().sum(1).cpu().numpy()


def _scores(losses: Losses) -> dict[str, Number]:
    at = losses._asdict()
    ce, kl = losses.ce_tokens, losses.kl_tokens
    gap = losses.ce_zero - losses.ce_original
    found = {
        "ce_loss_score": number(
            ratio_interval(losses.ce_zero - losses.ce_dictionary, gap), "share"
        ),
        "kl_div_score": number(
            ratio_interval(losses.kl_zero - losses.kl_dictionary, losses.kl_zero), "share"
        ),
        "ce_loss_without_sae": number(ratio_interval(losses.ce_original, ce), "nats/token"),
    }
    named = {"dictionary": "sae", "zero": "ablation"}
    for ours, theirs in named.items():
        found[f"ce_loss_with_{theirs}"] = number(ratio_interval(at[f"ce_{ours}"], ce), "nats/token")
        found[f"kl_div_with_{theirs}"] = number(ratio_interval(at[f"kl_{ours}"], kl), "nats/token")
    return found


def _random_scores(losses: Losses) -> dict[str, Number]:
    gap = losses.ce_zero - losses.ce_original
    ce = ratio_interval(losses.ce_zero - losses.ce_random, gap)
    kl = ratio_interval(losses.kl_zero - losses.kl_random, losses.kl_zero)
    return {
        "ce_loss_score_random": number(ce, "share"),
        "kl_div_score_random": number(kl, "share"),
    }
