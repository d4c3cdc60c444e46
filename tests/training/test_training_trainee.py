"""What a trainee says of itself between two lines of the log, and what it may be called."""

import pytest
import torch

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.training.batches import ArraySource
from unweave.training.dead import DeadLatents, Resample
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train

D, BATCH, STEPS = 12, 32, 32
RESAMPLED = DeadLatents(silent_share=0.02, auxk=None, resample=Resample(at=(0.1, 0.2, 0.6)))


def made(name: str = "d", settings: TraineeSettings | None = None) -> Trainee:
    dictionary = Dictionary(autoencoder("s", D, 200, TopK(k=2)))
    return Trainee({"d": dictionary}, settings or TraineeSettings(), steps=STEPS, batch=BATCH,
                   seed=9, name=name)  # fmt: skip


def vectors(size: float = 1.0) -> torch.Tensor:
    return size * torch.randn(512, D, generator=torch.Generator().manual_seed(1))


def logged(size: float = 1.0, *, every: int = 8, scale: bool = True) -> list[dict]:
    source = ArraySource({"s": vectors(size)}, batch=BATCH, steps=STEPS, seed=3)
    trainee = made(settings=TraineeSettings(dead=RESAMPLED, scale=scale))
    return train([trainee], source, settings=TrainSettings(log_every=every))


def test_restarts_are_told_in_the_next_line_whichever_step_they_fell_on():
    lines = {line["step"]: line.get("d.revived") for line in logged()}
    assert lines[8] > 0, "both of steps 3 and 6"
    assert lines[24] > 0
    assert lines[16] is lines[32] is None
    one_by_one = [line.get("d.revived", 0.0) for line in logged(every=1)]
    assert [step for step, count in enumerate(one_by_one) if count] == [3, 6, 19]
    assert lines[8] == sum(one_by_one[:8])


def test_mse_in_the_log_is_in_scaled_units():
    small, large = (logged(size)[-1]["d.mse"] for size in (1.0, 1000.0))
    assert large == pytest.approx(small, rel=1e-2)
    raw = logged(1000.0, scale=False)[-1]["d.mse"]
    assert raw > 1e5 * small, "the control: without scaling it is in units of the vectors"


@pytest.mark.parametrize("name", ["a/b", "", "runs/"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(UserError, match="A trainee cannot be called"):
        made(name)
    assert made("topk-gao-k8 (2)").name == "topk-gao-k8 (2)"
