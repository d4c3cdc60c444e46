"""Recipes: the published numbers, a source each, and training that goes the right way."""

import functools
import math

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.errors import UserError
from unweave.training.batches import ArraySource, TokenSource, VectorBatch
from unweave.training.objectives.local import Local
from unweave.training.objectives.loss import State
from unweave.training.penalties.weighted import Steering
from unweave.training.recipes.ask import Ask, Built
from unweave.training.recipes.catalog import RECIPES, list_recipes, recipe
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.worlds.features import PlantedSettings, planted_world

D, LATENTS, K = 16, 64, 6
ROOT = math.sqrt(D)
PUBLISHED_LR = 2e-4 / math.sqrt(LATENTS / 2**14)
IN, OUT = Port(site="in", width=D), Port(site="out", width=D)
PAIRS = ("transcoder", "skip-transcoder")
END_TO_END = ("e2e-braun", "e2e-ds-braun")
SWEPT = ("l1-bricken", "jumprelu-2024", "gated", "p-anneal", "transcoder")
"""Recipes whose papers name no weight that could be taken over."""

TABLE = {
    "anthropic-2024-04": {
        "lr": 5e-5, "betas": (0.9, 0.999), "schedule.decay_from": 0.8, "schedule.rest": 0.0,
        "clip": 1 / ROOT, "start.decoder_norm": 0.1, "start.offset": "zero",
        "penalties.0.form.kind": "l1", "penalties.0.weight": 5.0, "penalties.0.warmup": 0.05,
        "spec.activation.kind": "relu", "spec.decoder": "free", "spec.pre_bias": False,
    },
    "jumprelu-2024": {
        "lr": 7e-5, "betas": (0.0, 0.999), "penalties.0.form.kind": "l0",
        "spec.activation.threshold": 1e-3 * ROOT, "spec.activation.bandwidth": 1e-3 * ROOT,
        "spec.decoder": "unit",
    },
    "jumprelu-2025-01": {
        "lr": 2e-4, "schedule.decay_from": 0.8, "clip": 1 / ROOT, "start.decoder": "uniform",
        "start.encoder": D / LATENTS, "penalties.0.form.kind": "tanh", "penalties.0.form.c": 4.0,
        "penalties.0.weight": 10.0, "penalties.0.warmup": 1.0,
        "penalties.1.form.kind": "pre_activation", "penalties.1.weight": 3e-6,
        "spec.activation.threshold": 0.1, "spec.activation.bandwidth": 2.0,
        "spec.activation.gradient_to": "all", "spec.decoder": "free",
    },
    "topk-gao": {
        "lr": PUBLISHED_LR, "dead.auxk.weight": 1 / 32, "dead.auxk.k": None,
        "start.offset": "median", "spec.activation.k": 32, "spec.layer_norm": True,
        "spec.pre_bias": True, "spec.decoder": "unit",
    },
    "topk-short": {
        "lr": 4e-3, "betas": (0.9, 0.995), "schedule.decay_from": 0.3, "start.encoder": 0.3,
        "dead.auxk.k": 32, "dead.silent_share": 0.015, "k_from": 4.0, "k_until": 0.6,
        "spec.activation.k": 32, "spec.decoder": "unit",
    },
    "batchtopk": {
        "lr": PUBLISHED_LR, "dead.auxk.weight": 1 / 32, "spec.activation.memory": 0.999,
        "spec.activation.kind": "batchtopk", "spec.pre_bias": True,
    },
    "matryoshka": {
        "dead.auxk.weight": 1 / 32, "spec.nesting": (2, 6, 14, 30, 64),
        "spec.activation.kind": "batchtopk",
    },
    "gated": {
        "betas": (0.0, 0.999), "penalties.0.form.kind": "l1", "spec.activation.kind": "gated",
        "spec.decoder": "unit", "spec.pre_bias": True,
    },
    "l1-bricken": {
        "dead.silent_share": 12_500 / 1e6, "dead.resample.at": (0.025, 0.05, 0.075, 0.1),
        "dead.resample.height": 0.2, "dead.auxk": None, "start.offset": "median",
        "spec.decoder": "unit", "spec.pre_bias": True,
    },
    "p-anneal": {
        "betas": (0.0, 0.999), "penalties.0.form.kind": "lp", "penalties.0.form.p": 0.2,
    },
    "e2e-braun": {
        "lr": 5e-4, "schedule.shape": "cosine", "schedule.warmup": 0.05, "schedule.rest": 0.1,
        "clip": 10 / ROOT, "objective.kl": 1.0, "objective.downstream": 0.0, "objective.local": 0.0,
        "objective.relative": False, "penalties.0.weight": 1.5, "scale": False, "dead.auxk": None,
        "spec.decoder": "normalised", "spec.pre_bias": False,
    },
    "e2e-ds-braun": {
        "objective.kl": 0.5, "objective.downstream": 2.5, "penalties.0.weight": 10.0,
        "objective.downstream_sites": ("later",), "objective.local": 0.0,
    },
    "transcoder": {"lr": 4e-4, "start.offset": "mean", "spec.activation.kind": "relu"},
    "skip-transcoder": {"lr": PUBLISHED_LR, "spec.skip": True, "spec.activation.k": 32},
    "clt": {
        "objective.kind": "cross_layer", "penalties.0.form.kind": "tanh",
        "penalties.0.form.c": 4.0, "penalties.1.weight": 3e-6, "lr": 2e-4,
    },
    "mp-sae": {"spec.encoder.kind": "pursuit", "spec.activation.kind": "topk"},
    "switch": {"objective.balance": 3.0, "spec.encoder.kind": "switch", "spec.activation.k": 32},
    "kron": {"spec.encoder.kind": "kronecker", "spec.activation.kind": "topk"},
}  # fmt: skip
"""What the papers say, in the units of this library (`recipes.ask`)."""


def ask(name: str, **changes: object) -> Ask:
    writes = (OUT,) if name in PAIRS else (IN,)
    reads = (IN,)
    if name == "clt":
        reads, writes = (IN, Port(site="in2", width=D)), (OUT, Port(site="out2", width=D))
    later = ("later",) if name == "e2e-ds-braun" else ()
    asked = {"reads": reads, "writes": writes, "n_latents": LATENTS, "later": later}
    return Ask.model_validate({**asked, **changes})


def found(built: Built, path: str) -> object:
    at = built.settings
    if path.startswith("spec."):
        at, path = next(iter(built.specs.values())), path.removeprefix("spec.")
    for step in path.split("."):
        at = at[int(step)] if step.isdigit() else getattr(at, step)
    return at


def test_every_recipe_stands_in_the_table_and_states_its_source():
    assert set(TABLE) == set(RECIPES)
    for name, about in list_recipes():
        sources = ("2023", "2024", "2025", "2505.", "ours")
        assert any(source in about for source in sources), (name, about)
        assert about.endswith(".")


@pytest.mark.parametrize("name", TABLE)
def test_settings_are_the_published_ones(name):
    more = {"penalty": 1.0} if name in SWEPT else {}
    built = recipe(name)(ask(name, **more))
    for path, wanted in TABLE[name].items():
        value = found(built, path)
        close = pytest.approx(wanted) if isinstance(wanted, float) else wanted
        assert value == close, path
    assert recipe(name)(ask(name, **more, lr=0.25)).settings.lr == 0.25


@functools.cache
def vectors() -> dict[str, torch.Tensor]:
    settings = PlantedSettings(d=D, n_features=48, mean_active=4, noise_share=0.01)
    x, code = planted_world(settings, seed=1).draw(2048, seed=2)
    other = torch.randn(48, D, generator=torch.Generator().manual_seed(3)) / ROOT
    return {"in": x, "out": code.dense() @ other, "in2": x.flip(1), "out2": x.roll(1, 1)}


def measured(dictionary: Dictionary) -> tuple[float, float]:
    """FVU and L0 on vectors that training did not see."""
    held = {site: rows[1536:] for site, rows in vectors().items()}
    x = torch.cat([held[port.site] for port in dictionary.spec.reads], 1)
    y = torch.cat([held[port.site] for port in dictionary.spec.writes], 1)
    with torch.no_grad():
        got = fidelity_of(fidelity_sums(y, dictionary.eval()(x), dictionary.encode(x)))
    return got.fvu, got.l0


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in (*END_TO_END, "clt")])
def test_thirty_steps_go_the_right_way(name):
    built = recipe(name)(ask(name, k=K, lr=1e-2))
    before, after, log = short_run(built)
    assert torch.tensor([line["d.fvu"] for line in log]).isfinite().all()
    assert after[0] < 0.9 * before[0]
    if built.settings.penalties:
        free = built.settings.model_copy(update={"penalties": ()})
        assert after[1] < short_run(Built(built.specs, free))[1][1], "its penalty does nothing"
    else:
        assert 0.5 * K <= after[1] <= 1.6 * K


def short_run(built: Built) -> tuple[tuple[float, float], tuple[float, float], list[dict]]:
    """FVU and L0 before and after thirty steps, and the log between."""
    dictionary = Dictionary(built.specs["dictionary"])
    train_half = {site: rows[:1536] for site, rows in vectors().items()}
    source = ArraySource(train_half, batch=128, steps=30, seed=4)
    trainee = Trainee({"d": dictionary}, built.settings, steps=30, batch=128, seed=5)
    trainee.begin(source.at(0))
    before = measured(dictionary)
    log = train([trainee], source, settings=TrainSettings(log_every=10))
    return before, measured(dictionary), log


def test_a_cross_layer_transcoder_learns():
    built = recipe("clt")(ask("clt", penalty=0.1, lr=1e-2))
    assert list(built.specs) == ["L0.mlp", "L1.mlp"]
    dictionaries = {name: Dictionary(spec) for name, spec in built.specs.items()}
    source = ArraySource(vectors(), batch=128, steps=30, seed=4)
    log = train(
        [Trainee(dictionaries, built.settings, steps=30, batch=128, seed=5)],
        source,
        settings=TrainSettings(log_every=5),
    )
    assert log[-1]["fvu"] < 0.8 * log[0]["fvu"]


@pytest.mark.parametrize("name", END_TO_END)
def test_end_to_end_recipes_bring_the_divergence_down(name):
    subject, rows = tiny_llama(), tiny_rows(48)
    port = Port(site="blocks.1.resid_pre", width=32)
    later = ("blocks.1.resid_post",) if name == "e2e-ds-braun" else ()
    asked = Ask(reads=(port,), writes=(port,), n_latents=96, lr=1e-2, later=later)
    built = recipe(name)(asked.model_copy(update={"penalty": 0.01}))
    source = TokenSource(subject, rows, rows=6, steps=30, seed=1, capture=[port.site, *later])
    dictionary = Dictionary(built.specs["dictionary"])
    x = source.at(0).original.sites[port.site][:, 1:].flatten(0, 1)
    trainee = Trainee({"d": dictionary}, built.settings, steps=30, batch=source.batch, seed=2)
    log = train(
        [trainee], source, begin=VectorBatch({port.site: x}), settings=TrainSettings(log_every=3)
    )
    assert log[-1]["kl"] < 0.7 * log[0]["kl"]
    if later:
        assert log[-1]["downstream"] < 0.8 * log[0]["downstream"]


def test_balance_weighs_as_much_as_the_error_it_stands_beside():
    """Mudide et al. weigh it 3 against an error over its variance, which here is the width."""
    built = recipe("switch")(ask("switch", k=K))
    dictionary = Dictionary(built.specs["dictionary"])
    settings = TraineeSettings(objective=Local(balance=0.0), start=built.settings.start)
    batch = VectorBatch({"in": vectors()["in"][:256]})
    Trainee({"d": dictionary}, settings, steps=1, batch=256).begin(batch)
    state = State(0, 0.0, {"d": torch.zeros(LATENTS, dtype=torch.bool)})

    def total(weight: float) -> float:
        steering = {"d": Steering(())}
        return Local(balance=weight).loss({"d": dictionary}, batch, state, steering, None).total

    x = batch.vectors["in"] * dictionary.input_scale - dictionary.b_dec
    wanted = 3.0 * D * dictionary.encoder.balance(x)
    torch.testing.assert_close(total(3.0) - total(0.0), wanted)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("gated", {}, "give k or penalty"),
        ("jumprelu-2024", {}, "give k or penalty"),
        ("topk-gao", {"penalty": 1.0}, "has no penalty: give k"),
        ("topk-gao", {"k": 65}, "k=65 exceeds its 64 latents"),
        ("transcoder", {"writes": (IN,), "k": 4}, "maps one site to another"),
        ("mp-sae", {"writes": (OUT,)}, "give it one site"),
        ("e2e-ds-braun", {"later": ()}, "sites that come later"),
        ("switch", {"n_latents": 60}, "8 experts"),
        ("kron", {"n_latents": 60}, "16 latents a head"),
        ("matryoshka", {"n_latents": 16}, "needs 32 latents"),
        ("clt", {"writes": (OUT,)}, "do not pair up"),
    ],
)
def test_what_a_recipe_cannot_do_it_says(name, changes, said):
    with pytest.raises(UserError, match=said):
        recipe(name)(ask(name, **changes))


def test_an_unknown_recipe_is_told_its_nearest():
    with pytest.raises(UserError, match=r"no recipe topk; nearest: .*topk"):
        recipe("topk")
