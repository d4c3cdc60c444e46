"""Feature absorption on the first-letter task (SAEBench; Chanin et al. 2024, 2409.14507).

1. Prompts of ten spelled examples end in "{word} has the first letter:"; the site is read at the
   word (`absorption_words`).
2. Probes find the letters, and which latents stand for them; where these are silent although the
   probe is right, another latent may have absorbed the letter (`absorption_measure`).

A network that cannot say the letters, or in whose site a probe cannot find them, has no feature
that could be absorbed: refused.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from unweave.artifact.scores import Number
from unweave.validate.bootstrap import mean_interval
from unweave.validate.protocols.absorption_measure import (
    LetterFound,
    MainLatents,
    MeasureSettings,
    Words,
    main_latents,
    measure_letters,
    probe_f1,
    truth_probes,
)
from unweave.validate.protocols.absorption_probes import Probes
from unweave.validate.protocols.absorption_words import (
    LETTERS,
    WordSettings,
    alphabetic_tokens,
    prompted_words,
    spelling_accuracy,
    word_vectors,
)
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.protocol import Bench, Outcome, Refused


class AbsorptionSettings(BaseModel):
    """Settings of absorption; defaults as published but for those that decide on a refusal."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    words: WordSettings = WordSettings()
    """The prompts."""
    measure: MeasureSettings = MeasureSettings()
    """Probes and thresholds."""
    train_share: float = Field(default=0.8, gt=0, lt=1)
    """Share of the words that probes are fitted on."""
    least_f1: float = 0.6
    """A letter counts if its ground-truth probe does better than this on the other words."""
    least_letters: PositiveInt = 20
    """With fewer letters that count it is refused."""
    least_accuracy: float = 0.5
    """So it is where the network says fewer of the letters (ours; the published one does not
    ask)."""
    asked: PositiveInt = 200
    """Words that it is asked for that."""


def absorption(bench: Bench, settings: AbsorptionSettings | None = None) -> Outcome:
    """Mean absorption fraction, share of full absorption and main latents a letter.

    Raises:
        Refused: the subject cannot spell, its site does not tell letters, or what is judged is no
            autoencoder of one site.
    """
    settings = settings or AbsorptionSettings()
    if not bench.dictionary.autoencodes or len(bench.dictionary.reads) != 1:
        raise Refused(
            "absorption reads letters where they are written: it takes autoencoders of one site"
        )
    if bench.subject.tokenizer is None:
        raise Refused(f"{bench.subject.name} has no tokenizer, so there are no words to spell")
    accuracy, train, test = _words(bench, settings)
    probes = truth_probes(train, len(LETTERS), settings.measure, seed=bench.seed)
    quality = probe_f1(probes, test)
    counted = {at for at, score in enumerate(quality) if score > settings.least_f1}
    if len(counted) < settings.least_letters:
        more = "; a larger share of the words may find more" if bench.share < 1 else ""
        raise Refused(
            f"at {bench.dictionary.reads[0]} of {bench.subject.name} a probe finds only "
            f"{len(counted)} of 26 first letters with F1 above {settings.least_f1} on held-out "
            f"words (mean F1 {np.mean(quality):.2f}, fitted on {len(train.x):,} words): too few "
            f"for absorption{more}"
        )
    return absorption_on(bench, settings, accuracy, train, test, probes, counted)


def _words(bench: Bench, settings: AbsorptionSettings) -> tuple[float, Words, Words]:
    """Accuracy of spelling, and the words to fit on and to measure on."""
    subject = bench.subject
    tokens = alphabetic_tokens(subject)
    wanted = max(2, round(len(tokens) * bench.share))
    drawn = prompted_words(subject, tokens, wanted, settings.words, seed=bench.seed)
    few = drawn._replace(rows=drawn.rows[: settings.asked], letter=drawn.letter[: settings.asked])
    accuracy = spelling_accuracy(subject, few, settings.words)
    if accuracy < settings.least_accuracy:
        raise Refused(
            f"{subject.name} names the first letter of {accuracy:.0%} of {len(few.rows)} words "
            f"after {settings.words.examples} examples, less than {settings.least_accuracy:.0%}: "
            "it does not do the task"
        )
    words = word_vectors(
        subject, bench.dictionary.reads[0], drawn, settings.words,
        store=bench.store, progress=bench.progress,
    )  # fmt: skip
    cut = round(len(words.x) * settings.train_share)
    train, test = (Words(words.x[s], words.letter[s]) for s in (slice(cut), slice(cut, None)))
    return accuracy, train, test


def absorption_on(
    bench: Bench,
    settings: AbsorptionSettings,
    accuracy: float,
    train: Words,
    test: Words,
    probes: Probes,
    counted: set[int],
) -> Outcome:
    """The same on given words, for the letters in `counted`, with the controls."""
    own = _of(bench, settings, train, test, probes)
    found = [one for one in own if one.letter in counted]
    twin = random_twin(bench.dictionary, train.x[:512], train.x[:512], seed=bench.seed)
    random_bench = Bench(bench.subject, twin, bench.store, seed=bench.seed)
    random = [o for o in _of(random_bench, settings, train, test, probes) if o.letter in counted]
    swapped = _with_other_main(bench, settings, test, probes, own, counted)
    generator = torch.Generator().manual_seed(bench.seed)
    shuffled = train._replace(
        letter=train.letter[torch.randperm(len(train.x), generator=generator)]
    )
    blind = truth_probes(shuffled, len(LETTERS), settings.measure, seed=bench.seed)
    return Outcome(
        protocol="absorption",
        numbers=_numbers(found) | {
            "letters": Number(value=len(counted), unit="letters"),
            "probe_f1": _mean([one.probe_f1 for one in found], "F1"),
            "sparse_probe_f1": _mean([one.sparse_f1[0] for one in found], "F1"),
            "task_accuracy": Number(value=accuracy, unit="share"),
        },
        controls={
            **{f"{name}_random": number for name, number in _numbers(random).items()},
            "sparse_probe_f1_random": _mean([one.sparse_f1[0] for one in random], "F1"),
            "mean_full_absorption_other_letters": _mean([one.full for one in swapped], "share"),
            "probe_f1_shuffled": _mean(probe_f1(blind, test), "F1"),
        },
        details={
            "settings": settings.model_dump(mode="json"),
            "words": {"train": len(train.x), "test": len(test.x)},
            "letters": [{**one._asdict(), "letter": LETTERS[one.letter]} for one in own],
            "control": "random: directions of the same norms, number and L0; other_letters: the "
            "main latents of the next letter, with which nearly all must look absorbed; shuffled: "
            "a probe fitted on the words' letters in another order",
        },
    )  # fmt: skip


def _of(
    bench: Bench, settings: AbsorptionSettings, train: Words, test: Words, probes: Probes
) -> list[LetterFound]:
    coder = bench.dictionary.coder
    main = main_latents(coder, train, test, len(LETTERS), settings.measure, seed=bench.seed)
    return measure_letters(coder, test, probes, main, settings.measure)


def _with_other_main(
    bench: Bench,
    settings: AbsorptionSettings,
    test: Words,
    probes: Probes,
    own: Sequence[LetterFound],
    counted: set[int],
) -> list[LetterFound]:
    """Every letter with the main latents of the next one that has any."""
    at = {one.letter: one for one in own}
    order = sorted(at)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    main = [
        MainLatents(torch.tensor(at[following.get(letter, order[0])].main), (0.0,))
        for letter in range(len(LETTERS))
    ]
    found = measure_letters(bench.dictionary.coder, test, probes, main, settings.measure)
    return [one for one in found if one.letter in counted]


def _numbers(found: Sequence[LetterFound]) -> dict[str, Number]:
    return {
        "mean_absorption_fraction": _mean([one.fraction for one in found], "share"),
        "mean_full_absorption": _mean([one.full for one in found], "share"),
        "mean_num_split_features": _mean([float(len(one.main)) for one in found], "latents"),
    }


def _mean(values: Sequence[float], unit: str) -> Number:
    """Mean over letters with its interval."""
    found = mean_interval(np.array(values, dtype=np.float64))
    return Number(value=found.value, low=found.low, high=found.high, unit=unit)
