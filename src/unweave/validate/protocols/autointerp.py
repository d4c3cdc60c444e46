"""Automated interpretability by detection (SAEBench; Paulo et al. 2024, 2410.13928).

For each of some latents drawn from those that fire, a judge sees passages in which it fires and
explains it; from the explanation alone it then tells which of fourteen shuffled passages do
(`autointerp_examples`). Score: share of the fourteen that it is right about; since ten of them are
mostly silent, also the mean of the shares among firing and among silent ones (chance .5).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.artifact.atomic import Json
from unweave.artifact.scores import Number
from unweave.describe.judge import (
    Judge,
    JudgeSettings,
    RulesSettings,
    Unreadable,
    open_judge,
)
from unweave.describe.vocabulary import Vocabulary
from unweave.subject.rows import token_rows
from unweave.training.fanout.executors import Executor, Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.bootstrap import mean_interval
from unweave.validate.placed import Placed
from unweave.validate.protocols.autointerp_examples import (
    Drawn,
    ExampleSettings,
    draw_passages,
    firings_of,
)
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.protocol import Bench, Outcome, Refused


class AutointerpSettings(BaseModel):
    """Settings of automated interpretability; sizes as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    judge: JudgeSettings = RulesSettings()
    """Who explains and tells; published: gpt-4o-mini behind an endpoint."""
    examples: ExampleSettings = ExampleSettings()
    """Which passages are shown."""
    latents: PositiveInt = 1000
    """Latents judged, at most, of those that fire enough."""
    control_latents: PositiveInt = 200
    """Latents of the random dictionary judged, at most."""
    least_latents: PositiveInt = 10
    """Refused with fewer latents that fire enough."""


class Judged(NamedTuple):
    """What a judge made of one latent."""

    latent: int
    explanation: str
    right: float
    """Share of the passages."""
    balanced: float | None
    """Mean of the shares among firing and silent ones; none where one kind is missing."""
    right_shuffled: float
    """With another latent's explanation."""
    balanced_shuffled: float | None


def autointerp(
    bench: Bench, settings: AutointerpSettings | None = None, *, judge: Judge | None = None
) -> Outcome:
    """Detection scores; the judge is that of the settings unless one is given.

    Raises:
        Refused: too few latents fire often enough, or the judge cannot be read.
    """
    settings = settings or AutointerpSettings()
    subject, one, examples = bench.subject, bench.dictionary, settings.examples
    if subject.tokenizer is None:
        raise Refused(f"{subject.name} has no tokenizer, so there is nothing to show to a judge")
    tokens = max(2 * examples.context, round(examples.tokens * bench.share))
    text = token_rows(
        subject, bench.text, tokens=tokens, context=examples.context, seed=bench.seed,
        progress=bench.progress,
    )  # fmt: skip
    rows = torch.cat([text.train, text.heldout])
    vocabulary = _vocabulary(bench)
    judge = judge or open_judge(settings.judge, subject, vocabulary, store=bench.store)
    wanted = max(2 * settings.least_latents, round(settings.latents * bench.share))
    own = list(_drawn(bench, one, rows, vocabulary, examples, min(wanted, settings.latents)))
    if len(own) < settings.least_latents:
        raise Refused(
            f"{len(own)} latents of {one.name} fire often enough in {rows.numel():,} tokens of "
            f"{bench.text} to be explained and scored, fewer than {settings.least_latents}: give "
            "more text"
        )
    found, lost = _judged(bench, settings, judge, one.name, own)
    sites = subject.run(rows[:4], capture=list(one.reads), logits=False).sites
    controls: list[Judged] = []
    if one.autoencodes:
        x = torch.cat([sites[s][:, 1:].flatten(2).flatten(0, 1) for s in one.reads], 1).float()
        twin = random_twin(one, x, x, seed=bench.seed)
        few = min(settings.control_latents, wanted)
        random = list(_drawn(bench, twin, rows, vocabulary, examples, few))
        controls, _ = _judged(bench, settings, judge, twin.name, random)
    return _outcome(bench, settings, judge, found, lost, controls)


def _vocabulary(bench: Bench) -> Vocabulary:
    tokenizer, size = bench.subject.tokenizer, bench.subject.vocab_size
    assert tokenizer is not None
    known = len(tokenizer)
    return Vocabulary.from_decode(lambda t: tokenizer.piece(t) if t < known else f"<{t}>", size)


def _drawn(
    bench: Bench,
    one: Placed,
    rows: Tensor,
    vocabulary: Vocabulary,
    settings: ExampleSettings,
    wanted: int,
) -> Iterator[Drawn]:
    """Passages of latents drawn at random from those that fire enough.

    Four times as many as wanted are looked at, so that the firings of all need not be held.
    """
    order = np.random.default_rng(bench.seed).permutation(one.coder.n_latents)
    looked = order[: 4 * wanted].tolist()
    found = firings_of(bench.subject, one, rows, looked, progress=bench.progress)
    drawn = draw_passages(
        found, looked, rows.cpu().numpy(), vocabulary.texts, settings, seed=bench.seed
    )
    return (one for one, _ in zip(drawn, range(wanted), strict=False))


def _judged(
    bench: Bench, settings: AutointerpSettings, judge: Judge, name: str, drawn: Sequence[Drawn]
) -> tuple[list[Judged], int]:
    """Every latent judged, once; and how many the judge gave no readable answer on."""
    executor: Executor = Here() if judge.at_once == 1 else _Threads(judge.at_once)
    asked = {
        "judge": judge.name, "settings": settings.model_dump(mode="json"), "text": bench.text,
        "seed": bench.seed, "share": bench.share, "subject": bench.subject.name,
        "site": "+".join(bench.dictionary.reads),
    }  # fmt: skip
    folder = bench.store / "autointerp" / f"{name}-{judge.name}".replace("/", "_")

    def explained(one: Drawn) -> Json:
        try:
            return judge.explain(one.explain)
        except Unreadable:
            return None

    said = fan_out(
        explained, {str(one.latent): Task(asked, one) for one in drawn},
        folder=folder / "explanations", executor=executor, title="autointerp: explain",
        progress=bench.progress,
    )  # fmt: skip
    told = [one for one in drawn if isinstance(said[str(one.latent)], str)]
    pieces = {
        str(one.latent): Task(asked, (one, said[str(one.latent)], said[str(told[at - 1].latent)]))
        for at, one in enumerate(told)
    }
    scored = fan_out(
        _scoring(judge), pieces, folder=folder / "scores", executor=executor,
        title="autointerp: score", progress=bench.progress,
    )  # fmt: skip
    found = [Judged(*one) for one in scored.values() if isinstance(one, list)]
    return found, len(drawn) - len(found)


def _scoring(judge: Judge) -> Callable[[tuple[Drawn, str, str]], Json]:
    def scored(piece: tuple[Drawn, str, str]) -> Json:
        drawn, own, other = piece
        passages = [one.passage for one in drawn.score]
        true = np.array([one.fires for one in drawn.score])
        try:
            said = [np.array(judge.predict(text, passages)) for text in (own, other)]
        except Unreadable:
            return None
        (right, balanced), (right_other, balanced_other) = (_right(each, true) for each in said)
        return [drawn.latent, own, right, balanced, right_other, balanced_other]

    return scored


def _right(said: np.ndarray, true: np.ndarray) -> tuple[float, float | None]:
    right = said == true
    both = true.any() and not true.all()
    balanced = (right[true].mean() + right[~true].mean()) / 2 if both else None
    return float(right.mean()), None if balanced is None else float(balanced)


class _Threads:
    """Several pieces side by side, for work that waits for others."""

    def __init__(self, count: int) -> None:
        self._count = count

    def run(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """See `Executor.run`."""
        with ThreadPoolExecutor(self._count) as pool:
            places = {pool.submit(work, item): place for place, item in enumerate(items)}
            try:
                for done in as_completed(places):
                    yield places[done], done.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _outcome(
    bench: Bench,
    settings: AutointerpSettings,
    judge: Judge,
    found: Sequence[Judged],
    lost: int,
    random: Sequence[Judged],
) -> Outcome:
    if not found:
        raise Refused(f"the judge {judge.name} gave no answer that can be read on any latent")
    controls = {
        "autointerp_score_shuffled": _mean([one.right_shuffled for one in found]),
        "balanced_accuracy_shuffled": _mean([one.balanced_shuffled for one in found]),
    }
    if random:
        controls |= {
            "autointerp_score_random": _mean([one.right for one in random]),
            "balanced_accuracy_random": _mean([one.balanced for one in random]),
        }
    return Outcome(
        protocol="autointerp",
        numbers={
            "autointerp_score": _mean([one.right for one in found]),
            "balanced_accuracy": _mean([one.balanced for one in found]),
            "latents": Number(value=len(found), unit="latents"),
        },
        controls=controls,
        details={
            "judge": judge.name,
            "settings": settings.model_dump(mode="json"),
            "unreadable": lost,
            "random_latents": len(random),
            "costs": judge.costs,
            "latents": [one._asdict() for one in found],
            "control": "shuffled: another latent's explanation; random: the same for directions "
            "of the same norms, number and L0",
        },
    )


def _mean(values: Sequence[float | None]) -> Number:
    """Mean over latents with its interval, of those that have the number."""
    found = mean_interval(np.array([value for value in values if value is not None]))
    if np.isnan(found.value):
        return Number(value=0.5, unit="share")
    return Number(value=found.value, low=found.low, high=found.high, unit="share")
