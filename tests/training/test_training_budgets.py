"""One budget for many: steps go where variance is still unexplained, in an order of their own."""

import pytest
import torch

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.budgets import Budgeted, BudgetSettings, _next, train_on_budget
from unweave.training.dead import DeadLatents
from unweave.training.trainee import Trainee, TraineeSettings

D, STEPS, BATCH = 16, 400, 64
SETTINGS = BudgetSettings(turn=10, over=2, checkpoint_seconds=0)


def vectors(features: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(features, D, generator=generator), dim=1)
    active = torch.rand(2048, features, generator=generator) < 2 / features
    return (active * (1 + torch.rand(2048, features, generator=generator))) @ atoms


def runs() -> list[Budgeted]:
    """One that two directions explain within a few steps, and one that has to find sixty."""
    found = []
    for name, features in (("easy", 2), ("hard", 60)):
        torch.manual_seed(0)
        dictionary = Dictionary(autoencoder("s", D, 64, TopK(k=4), name=name))
        settings = TraineeSettings(lr=5e-3, dead=DeadLatents(auxk=None))
        trainee = Trainee({"d": dictionary}, settings, steps=200, batch=BATCH, name=name)
        found.append(
            Budgeted(trainee, ArraySource({"s": vectors(features, features)}, batch=BATCH))
        )
    return found


def spent(of: list[Budgeted]) -> dict[str, int]:
    return {run.trainee.name: run.trainee.step_index for run in of}


def test_steps_go_to_whoever_still_gets_better_and_none_is_left_over():
    both = runs()
    log = train_on_budget(both, STEPS, settings=SETTINGS)
    steps = spent(both)
    assert STEPS - 26 <= sum(steps.values()) <= STEPS, "but for less than a turn and its decay"
    assert steps["hard"] > 1.5 * steps["easy"] > 0
    for name, count in steps.items():
        mine = [line for line in log if line["trainee"] == name]
        assert mine[-1]["falling"] == 1
        assert mine[-1]["step"] == mine[-1]["of"] == count
        falling = sum(line["falling"] for line in mine) * SETTINGS.turn
        assert falling == pytest.approx(0.2 * count, abs=SETTINGS.turn)
    equal = runs()
    train_on_budget(equal, STEPS, settings=SETTINGS.model_copy(update={"equal": 1.0}))
    assert abs(spent(equal)["hard"] - spent(equal)["easy"]) <= 2 * SETTINGS.turn, "the control"


def test_a_cut_run_resumes_to_the_same_bits(tmp_path):
    whole = runs()
    train_on_budget(whole, STEPS, settings=SETTINGS)
    cut = runs()
    at, calls = cut[1].source.at, []

    def breaking(step: int) -> VectorBatch:
        calls.append(step)
        if len(calls) == 150:
            raise KeyboardInterrupt
        return at(step)

    cut[1].source.at = breaking
    with pytest.raises(KeyboardInterrupt):
        train_on_budget(cut, STEPS, settings=SETTINGS, folder=tmp_path)
    resumed = runs()
    train_on_budget(resumed, STEPS, settings=SETTINGS, folder=tmp_path)
    assert spent(resumed) == spent(whole)
    for mine, other in zip(resumed, whole, strict=True):
        for name, tensor in other.trainee.state().items():
            assert torch.equal(tensor, mine.trainee.state()[name]), name


def test_a_budget_without_a_turn_for_each_and_doubled_names_are_refused():
    with pytest.raises(UserError, match="too few to deal out"):
        train_on_budget(runs(), 30, settings=SETTINGS)
    with pytest.raises(UserError, match="names of their own"):
        train_on_budget([runs()[0], runs()[0]], STEPS, settings=SETTINGS)


def told(name: str, fvus: list[float]) -> list[dict[str, float | int | str]]:
    """The log of one who has stepped at its peak rate."""
    return [
        {"trainee": name, "step": (i + 1) * SETTINGS.turn, "falling": 0, "d.fvu": fvu}
        for i, fvu in enumerate(fvus)
    ]


@pytest.mark.parametrize("faster", ["easy", "hard"])
def test_the_next_turn_is_of_whoever_fell_faster_lately(faster):
    both, many = runs(), 2 * SETTINGS.over
    falling, flat = [1 - 0.05 * i for i in range(many)], [0.9] * many
    log = [
        line
        for run in both
        for line in told(run.trainee.name, falling if run.trainee.name == faster else flat)
    ]
    early = SETTINGS.model_copy(update={"equal": 0.0})
    turn = _next(both, 100 * many * SETTINGS.turn, early, log)
    assert turn is not None
    assert turn.run.trainee.name == faster
