"""Absorption, RAVEL, unlearning and automated interpretability on one dictionary of SmolLM2.

    python studies/sae_bench/others.py DICTIONARY PAIRS OUT [PROTOCOL...]
    python studies/sae_bench/others.py DICTIONARY PAIRS OUT seeds


DICTIONARY is the folder of one at blocks.14.resid_post; PAIRS a folder with the pairs of
function_vectors (country-capital and others); OUT holds what need not be computed twice and
receives our_PROTOCOL.json. One thread; sizes are shares of the published ones, which fit an hour.
`seeds` writes words.safetensors and words.json, what the public implementation of absorption is
given by public_absorption.py, and our_absorption_seeds.json: the same words, other seeds of probes.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import save_tensors
from unweave.describe.judge import LocalSettings
from unweave.dictionaries.formats import load_foreign
from unweave.progress import Lines
from unweave.subject import load_subject
from unweave.validate.placed import placed
from unweave.validate.protocols.absorption import AbsorptionSettings, absorption
from unweave.validate.protocols.absorption_measure import (
    Words,
    main_latents,
    measure_letters,
    probe_f1,
    truth_probes,
)
from unweave.validate.protocols.absorption_words import (
    alphabetic_tokens,
    prompted_words,
    word_vectors,
)
from unweave.validate.protocols.autointerp import AutointerpSettings, autointerp
from unweave.validate.protocols.autointerp_examples import ExampleSettings
from unweave.validate.protocols.protocol import Bench, Outcome, Refused
from unweave.validate.protocols.ravel import RavelSettings, ravel
from unweave.validate.protocols.ravel_mask import MaskSettings
from unweave.validate.protocols.unlearning import UnlearningSettings, unlearning
from unweave.validate.protocols.unlearning_questions import (
    AskingSettings,
    Question,
    questions_of_pairs,
    read_pairs,
    write_questions,
)

FORGET = {"country-capital": "The capital of %s is"}
RETAIN = {
    "landmark-country": "%s is in the country of",
    "person-sport": "%s is famous for playing",
    "product-company": "%s is a product of",
    "national_parks": "%s is in the state of",
}
"""Pairs and the beginnings of sentences made of them."""
SHARE = 0.25
"""Of the vocabulary, for absorption."""
MOST = 150
"""Questions of one kind."""


def questions(pairs: Path, kinds: dict[str, str]) -> list[Question]:
    made = []
    for name, template in kinds.items():
        listed = read_pairs(pairs / f"dataset_files__abstractive__{name}.json")[:MOST]
        made += questions_of_pairs(listed, template)
    return made


def runs(bench: Bench, pairs: Path) -> dict[str, Callable[[], Outcome]]:
    """By name; what is not as published is said here."""
    words = replace(bench, share=SHARE)
    # A hundredth of the published steps: larger ones, and a mask that hardens later.
    mask = MaskSettings(rate=5e-2, last_temperature=1e-2)
    swaps = RavelSettings(pairs=160, mask=mask)
    cloze = UnlearningSettings(
        asking=AskingSettings(form="cloze", batch=32), unit="mean firing", rows=128, context=256,
        multipliers=(1, 4, 16, 64), latents=(10, 20), thresholds=(0.001, 0.01),
    )  # fmt: skip
    listed = UnlearningSettings(rows=128, context=256)
    shown = AutointerpSettings(
        examples=ExampleSettings(tokens=120_000), latents=200, control_latents=200
    )
    local = shown.model_copy(
        update={"judge": LocalSettings(), "latents": 24, "control_latents": 12}
    )
    folder = bench.store / "data"
    for name, kinds in (("forget", FORGET), ("retain", RETAIN)):
        write_questions(folder / "unlearning" / f"{name}.jsonl", questions(pairs, kinds))
    own = replace(bench, data=folder)
    return {
        "absorption": lambda: absorption(words),
        "ravel": lambda: ravel(bench, swaps),
        "unlearning": lambda: unlearning(own, cloze),
        "unlearning_letters": lambda: unlearning(own, listed),
        "autointerp_rules": lambda: autointerp(bench, shown),
        "autointerp_smollm2": lambda: autointerp(bench, local),
    }


def seeds(bench: Bench, out: Path) -> None:
    """Absorption of the same words with several seeds, in as few steps as the public one."""
    settings = AbsorptionSettings()
    plain = settings.measure.sparse.model_copy(update={"batches": 1})
    settings = settings.model_copy(
        update={"measure": settings.measure.model_copy(update={"sparse": plain})}
    )
    subject, site = bench.subject, bench.dictionary.reads[0]
    tokens = alphabetic_tokens(subject)
    drawn = prompted_words(
        subject, tokens, round(len(tokens) * SHARE), settings.words, seed=bench.seed
    )
    words = word_vectors(subject, site, drawn, settings.words, store=bench.store)
    cut = round(len(words.x) * settings.train_share)
    save_tensors(out / "words.safetensors", {"x": words.x})
    write_json(
        out / "words.json",
        {"words": [tokens[int(t)] for t in drawn.token], "letter": words.letter.tolist(),
         "train": cut},
    )  # fmt: skip
    train, test = (Words(words.x[s], words.letter[s]) for s in (slice(cut), slice(cut, None)))
    found = []
    for seed in range(2):
        probes = truth_probes(train, 26, settings.measure, seed=seed)
        quality = probe_f1(probes, test)
        main_ones = main_latents(
            bench.dictionary.coder, train, test, 26, settings.measure, seed=seed
        )
        letters = measure_letters(bench.dictionary.coder, test, probes, main_ones, settings.measure)
        kept = [one for one in letters if quality[one.letter] > settings.least_f1]
        found.append({
            "letters": len(kept),
            "mean_absorption_fraction_score": float(np.mean([o.fraction for o in kept])),
            "mean_full_absorption_score": float(np.mean([o.full for o in kept])),
            "mean_num_split_features": float(np.mean([len(o.main) for o in kept])),
            "mean_probe_f1": float(np.mean([o.probe_f1 for o in kept])),
            "mean_sparse_f1": float(np.mean([o.sparse_f1[0] for o in kept])),
        })  # fmt: skip
        print(found[-1], flush=True)
    write_json(out / "our_absorption_seeds.json", found)


def main(dictionary: Path, pairs: Path, out: Path, *wanted: str) -> None:
    torch.set_num_threads(1)
    subject = load_subject("smollm2-135m", dtype="auto")
    (one,) = load_foreign(dictionary).values()
    bench = Bench(subject, placed(dictionary.name, one), out / dictionary.name, progress=Lines())
    if wanted == ("seeds",):
        return seeds(bench, out)
    for name, run in runs(bench, pairs).items():
        if wanted and name not in wanted:
            continue
        started = time.process_time()
        try:
            found = run()
        except Refused as reason:
            result: dict = {"refused": str(reason)}
        else:
            result = found.model_dump(mode="json")
            for key, number in (found.numbers | found.controls).items():
                print(f"{name} {key} {number.value:.4f} [{number.low}, {number.high}]", flush=True)
        result |= {"dictionary": dictionary.name, "cpu_seconds": time.process_time() - started}
        write_json(out / f"our_{name}.json", result)
        print(name, result.get("refused", "done"), f"{result['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main(*(Path(a) for a in sys.argv[1:4]), *sys.argv[4:])
