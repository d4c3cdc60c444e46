"""A dictionary whose latents are counted in other units is the same dictionary: equal scores.

Encoder rows times a factor each and decoder rows over it leave what a ReLU dictionary does as it
was. Factors are powers of two, so that no rounding hides or fakes a difference: controls included,
every number must be the same to the last digits.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import bump, tiny_llama, tiny_rows
from torch import Tensor
from word_world import SITE, bench_of, classes, crossed, reader

from unweave.circuits.latents import of_one_length
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.subject import load_subject
from unweave.validate.bootstrap import BootstrapSettings
from unweave.validate.interventions.aggregation import AggregationSettings
from unweave.validate.interventions.aggregation_protocol import aggregation
from unweave.validate.interventions.measuring import InterventionSettings
from unweave.validate.interventions.protocol import interventions, scrubbing
from unweave.validate.placed import placed
from unweave.validate.protocols.ablation import AblationSettings
from unweave.validate.protocols.absorption import AbsorptionSettings, absorption_on
from unweave.validate.protocols.absorption_measure import MeasureSettings, Words, truth_probes
from unweave.validate.protocols.absorption_probes import ProbeSettings
from unweave.validate.protocols.autointerp import AutointerpSettings, autointerp
from unweave.validate.protocols.autointerp_examples import ExampleSettings
from unweave.validate.protocols.contrast_data import CircuitTask
from unweave.validate.protocols.core import CoreSettings, core_on
from unweave.validate.protocols.probes import TrainedProbeSettings
from unweave.validate.protocols.protocol import Bench, Outcome
from unweave.validate.protocols.ravel import RavelSettings, swaps_of
from unweave.validate.protocols.ravel_data import Prompt
from unweave.validate.protocols.ravel_mask import MaskSettings
from unweave.validate.protocols.scr import scr
from unweave.validate.protocols.sparse_probing import SparseProbingSettings, sparse_probing
from unweave.validate.protocols.sva import AgreementTask, SvaSettings, sva_on
from unweave.validate.protocols.tpp import tpp
from unweave.validate.protocols.unlearning import UnlearningSettings, unlearning_on
from unweave.validate.protocols.unlearning_questions import Asked

D, N = 32, 48
PROBE = TrainedProbeSettings(epochs=4, lr=0.03)
WREN = "blocks.2.resid_post"


def factors(count: int) -> Tensor:
    drawn = torch.randint(-4, 5, (count,), generator=torch.Generator().manual_seed(5))
    return torch.exp2(drawn.float())


def some(site: str, width: int = D, latents: int = N, *, bias: float = -1.0) -> Dictionary:
    spec = autoencoder(site, width, latents, ReLU(), decoder="free")
    found = bump(Dictionary(spec)).requires_grad_(False).eval()
    found.b_enc.add_(bias)
    return found


def in_other_units(dictionary: Dictionary) -> Dictionary:
    by = factors(dictionary.n_latents)
    dictionary.W_enc.mul_(by[:, None])
    dictionary.b_enc.mul_(by)
    dictionary.W_dec.div_(by[:, None])
    return dictionary


def numbers(found: Outcome) -> dict[str, float]:
    both = {**found.numbers, **{f"control {name}": one for name, one in found.controls.items()}}
    return {name: one.value for name, one in both.items()}


def of_words(run: Callable[..., Outcome], settings: object, *data: object) -> "Measure":
    def measure(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
        one = placed("d", change(some(SITE)))
        return numbers(run(bench_of(reader(), one, store, *data), settings))

    return measure


def of_core(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
    one = placed("d", change(some("blocks.1.resid_pre")))
    bench = Bench(tiny_llama(), one, store)
    return numbers(core_on(bench, tiny_rows(10, 12), CoreSettings()))


def of_absorption(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
    letter = torch.arange(26).repeat(8)
    centres = torch.randn(26, D, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(len(letter), D, generator=torch.Generator().manual_seed(4))
    words = Words(2 * centres[letter] + noise, letter)
    train, test = (Words(words.x[at::2], letter[at::2]) for at in (0, 1))
    few = ProbeSettings(epochs=6, batches=3)
    measure = MeasureSettings(truth=few, sparse=few, most_latents=3)
    probes = truth_probes(train, 26, measure, seed=0)
    bench = Bench(tiny_llama(), placed("d", change(some("x"))), store)
    settings = AbsorptionSettings(measure=measure)
    return numbers(absorption_on(bench, settings, 1.0, train, test, probes, set(range(26))))


def of_ravel(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
    subject, asked = tiny_llama(), []
    for entity in range(10, 34):
        for kind in (3, 4):
            row = (1, entity, kind)
            said = subject.run(torch.tensor([row])).logits[0, -1].argmax().item()
            asked.append(Prompt(str(entity), str(kind), str(said), row, 1, said))
    bench = Bench(subject, placed("d", change(some("blocks.0.resid_post"))), store)
    settings = RavelSettings(pairs=24, mask=MaskSettings(rate=0.5, epochs=1))
    found = swaps_of(bench, settings, asked, ["3", "4"])
    return {
        f"{name} {attribute} {what}": value
        for name, swaps in found.items()
        for attribute, one in swaps.by_attribute.items()
        for what, value in (("score", one.score), ("chosen", swaps.chosen.get(attribute, 0)))
    }


def of_unlearning(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
    subject, asked = tiny_llama(), []
    for token in range(10, 50):
        logits = subject.run(torch.tensor([[1, token, 3]])).logits[0, -1]
        asked.append(Asked([1, token, 3], [[4], [5], [6]], int(logits[4:7].argmax())))
    bench = Bench(subject, placed("d", change(some("blocks.0.resid_post"))), store)
    settings = UnlearningSettings(
        thresholds=(0.5,), latents=(2, 6), multipliers=(1.0, 4.0), keep=0.05
    )
    rows = (tiny_rows(16, 8, vocab=30, seed=1), tiny_rows(16, 8, vocab=64, seed=2))
    found = unlearning_on(bench, settings, asked[:20], asked[20:], *rows)
    trials = found.details["trials"]
    return numbers(found) | {
        f"{name} {at}": trial["forget"]
        for name, each in trials.items()
        for at, trial in enumerate(each)
    }


def of_sva(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
    subject, sides = tiny_llama(), []
    for seed in (0, 1):
        drawn = list(of_one_length(contrasts(240, 64, seed=seed)))
        rows = torch.tensor([side for one in drawn for side in (one.clean, one.corrupt)])
        logits = subject.run(rows).logits[:, -1]
        gap = (logits[:, 5] - logits[:, 6]).view(-1, 2)
        does = (gap[:, 0] > 0.3) & (gap[:, 0] - gap[:, 1] > 0.3)
        kept = [drawn[at]._replace(right=(5,), wrong=(6,)) for at in does.nonzero()[:, 0].tolist()]
        sides.append(CircuitTask("made", tuple(kept[:12]), 0))
    one = placed("d", change(some("blocks.1.resid_post")))
    settings = SvaSettings(train=12, test=12, steps=2, nodes=(2, 10), shown=(2, 10), batch=16)
    bench = Bench(subject, one, store)
    return numbers(sva_on(bench, [one], [AgreementTask("made", *sides)], settings))


def of_wren(run: Callable[..., Outcome], share: float, *settings: object) -> "Measure":
    def measure(store: Path, change: Callable[[Dictionary], Dictionary]) -> dict[str, float]:
        wren = load_subject("wren")
        one = placed("d", change(some(WREN, wren.d_model, 64, bias=-4.0)))
        return numbers(run(Bench(wren, one, store, text="heldout", share=share), *settings))

    return measure


Measure = Callable[[Path, Callable[[Dictionary], Dictionary]], dict[str, float]]
ABLATION = AblationSettings(train=120, test=120, n=(2, 8, 16), probe=PROBE, told=0.0)
ACTS = InterventionSettings(latents=5, rows=2, bootstrap=BootstrapSettings(resamples=2))
PASSAGES = ExampleSettings(
    tokens=4_000, context=64, top_explain=4, weighted_explain=2, top_score=2, weighted_score=2
)
MEASURES: dict[str, Measure] = {
    "core": of_core,
    "sparse_probing": of_words(
        sparse_probing, SparseProbingSettings(train=60, test=60, dense=PROBE), classes(40)
    ),
    "scr": of_words(scr, ABLATION, crossed(50)),
    "tpp": of_words(tpp, ABLATION, classes(60)),
    "absorption": of_absorption,
    "ravel": of_ravel,
    "unlearning": of_unlearning,
    "autointerp": of_wren(
        autointerp, 1.0,
        AutointerpSettings(examples=PASSAGES, latents=3, control_latents=2, least_latents=2),
    ),
    "sva": of_sva,
    "interventions": of_wren(interventions, 0.04, ACTS),
    "scrubbing": of_wren(scrubbing, 0.04),
    "aggregation": of_wren(aggregation, 0.04, AggregationSettings(unions=(1, 4), asked=4)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURES)
def test_scores_do_not_depend_on_the_units_of_a_code(name: str, tmp_path: Path) -> None:
    was = MEASURES[name](tmp_path / "a", lambda dictionary: dictionary)
    now = MEASURES[name](tmp_path / "b", in_other_units)
    assert now == pytest.approx(was, abs=1e-5, rel=1e-4, nan_ok=True)


def test_a_dictionary_that_does_something_else_scores_otherwise(tmp_path: Path) -> None:
    def changed(dictionary: Dictionary) -> Dictionary:
        dictionary.W_enc.mul_(factors(N)[:, None])
        dictionary.b_enc.mul_(factors(N))
        return dictionary

    for name in ("sparse_probing", "sva"):
        was = MEASURES[name](tmp_path / name / "a", lambda dictionary: dictionary)
        now = MEASURES[name](tmp_path / name / "b", changed)
        assert now != pytest.approx(was, abs=1e-3, rel=1e-3, nan_ok=True), name
