"""Every recipe trains on another device as it does on the processor; nothing stays behind."""

import copy

import pytest
import torch
from far_device import FAR, FarDevice, MixedDevices, far_device
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.subject import Subject, wrap_module
from unweave.training.batches import ArraySource, TokenSource, VectorBatch
from unweave.training.dead import AuxK, DeadLatents, Resample
from unweave.training.penalties.hoyer import Hoyer
from unweave.training.penalties.pointwise import L1, Log, Sqrt
from unweave.training.penalties.weighted import Penalty
from unweave.training.recipes.ask import Ask, Built
from unweave.training.recipes.catalog import RECIPES, recipe
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train

D, LATENTS, BATCH, STEPS = 16, 64, 64, 8
END_TO_END = ("e2e-braun", "e2e-ds-braun")
BUSY = DeadLatents(silent_share=0.2, auxk=AuxK(k=4), resample=Resample(at=(0.4, 0.7)))
SITE = (Port(site="in", width=D),)
ASK = Ask(reads=SITE, writes=SITE, n_latents=LATENTS, k=3)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unweave.dictionaries.dictionary.product_dtype", lambda: torch.float32)


def built(name: str) -> Built:
    pair = name in ("transcoder", "skip-transcoder", "clt")
    writes = (Port(site="out", width=D),) if pair else SITE
    if name == "clt":
        ports = [tuple(Port(site=f"{s}{i}", width=D) for i in range(2)) for s in ("in", "out")]
        return recipe(name)(Ask(reads=ports[0], writes=ports[1], n_latents=LATENTS, k=3))
    if name in END_TO_END:
        site = (Port(site="blocks.0.resid_post", width=32),)
        later = ("blocks.1.resid_post",) if name == "e2e-ds-braun" else ()
        return recipe(name)(Ask(reads=site, writes=site, n_latents=LATENTS, k=3, later=later))
    return recipe(name)(Ask(reads=SITE, writes=writes, n_latents=LATENTS, k=3))


def ours(activation: object, settings: TraineeSettings, **changes: object) -> Built:
    return Built({"d": ASK.spec(activation, **changes)}, settings)


OTHERS = {
    "abstopk-glu": ours(AbsTopK(k=3), TraineeSettings(), encoder=GLU(), skip=True),
    "prolu": ours(
        ProLU(), TraineeSettings(penalties=(Penalty(form=Sqrt(), weight=0.1),), dead=BUSY)
    ),
    "hoyer": ours(
        ReLU(),
        TraineeSettings(
            penalties=(Penalty(form=Hoyer(), weight=0.1), Penalty(form=Log(), weight=0.1)),
            start=Start(decoder="data", offset="median", fires=0.2),
        ),
        decoder="normalised",
    ),
    "steered": ours(
        ReLU(),
        TraineeSettings(
            penalties=(Penalty(form=L1(), weight=0.1, target_l0=4.0),),
            start=Start(decoder="subspace"),
        ),
        decoder="free",
    ),
    "nested": ours(
        BatchTopK(k=3),
        TraineeSettings(k_from=3.0, dead=BUSY, start=Start(decoder="clusters")),
        nesting=(16, LATENTS),
    ),
    "layer-norm": ours(
        TopK(k=3), TraineeSettings(start=Start(decoder="uniform", skip="ridge")), layer_norm=True
    ),
}


def vectors(device: torch.device | str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("in", "out", "in0", "in1", "out0", "out1")
    return {
        name: (torch.randn(4 * BATCH, D, generator=generator) + 0.5).to(device) for name in names
    }


def subject_on(device: torch.device | str) -> Subject:
    return wrap_module(copy.deepcopy(tiny_llama().model).to(device), name="tiny")


def made(name: str, device: torch.device | str, seed: int = 1) -> Trainee:
    plan = OTHERS[name] if name in OTHERS else built(name)
    dictionaries = {key: Dictionary(spec) for key, spec in plan.specs.items()}
    settings = plan.settings.model_copy(update={"lr": 1e-2})
    return Trainee(
        dictionaries, settings, steps=STEPS, batch=BATCH, seed=seed, name=name, device=device
    )


def source_for(name: str, device: torch.device | str) -> ArraySource | TokenSource:
    if name not in END_TO_END:
        return ArraySource(vectors(device), batch=BATCH, steps=STEPS, seed=2)
    sites = ["blocks.0.resid_post", "blocks.1.resid_post"]
    rows = tiny_rows(12, 8)
    return TokenSource(subject_on(device), rows, rows=4, steps=STEPS, capture=sites, seed=2)


def trained(name: str, device: torch.device | str) -> tuple[list[dict], Trainee]:
    trainee, source = made(name, device), source_for(name, device)
    begin = VectorBatch(vectors(device))
    if name in END_TO_END:
        first = source.at(0).original.sites["blocks.0.resid_post"][:, 1:].flatten(0, 1)
        begin = VectorBatch({"blocks.0.resid_post": first})
    lines = train([trainee], source, begin=begin, settings=TrainSettings(log_every=4))
    return lines, trainee


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_a_run_is_the_same_on_every_device(name: str) -> None:
    lines, here = trained(name, "cpu")
    with far_device():
        far_lines, there = trained(name, FAR)
        assert {p.device for p in there.modules.state_dict().values()} == {FAR}
        weights = {key: w.cpu() for key, w in there.modules.state_dict().items()}
    for line, far_line in zip(lines, far_lines, strict=True):
        assert line.pop("trainee") == far_line.pop("trainee")
        assert line == pytest.approx(far_line, rel=1e-2, abs=1e-3)
    for key, weight in here.modules.state_dict().items():
        # As a whole: where a gradient is next to nothing, Adam makes a step of its rounding.
        gap = (weights[key].double() - weight.double()).norm()
        assert gap <= 0.01 * weight.double().norm() + 1e-3, key


@pytest.mark.parametrize("decoder", ["random", "uniform", "data", "subspace", "clusters", "atoms"])
def test_a_start_is_the_same_on_every_device(decoder: str) -> None:
    def begun(device: torch.device | str) -> dict[str, torch.Tensor]:
        settings = TraineeSettings(start=Start(decoder=decoder))
        spec = ASK.spec(TopK(k=3))
        trainee = Trainee({"d": Dictionary(spec)}, settings, steps=1, batch=BATCH, device=device)
        trainee.begin(VectorBatch(vectors("cpu")))
        return {key: w.cpu() for key, w in trainee.modules.state_dict().items()}

    here = begun("cpu")
    with far_device():
        there = begun(FAR)
    for key, weight in here.items():
        torch.testing.assert_close(there[key], weight, rtol=1e-4, atol=1e-5)


def test_a_run_on_another_device_is_resumed_there(tmp_path) -> None:
    settings = TrainSettings(log_every=2, checkpoint_seconds=0)
    with far_device():
        whole = made("nested", FAR)
        train([whole], source_for("nested", FAR), settings=settings)
        cut = source_for("nested", FAR)
        give = cut.at

        def at(step: int) -> VectorBatch:
            if step == 5:
                raise KeyboardInterrupt
            return give(step)

        cut.at = at
        with pytest.raises(KeyboardInterrupt):
            train([made("nested", FAR)], cut, settings=settings, folder=tmp_path)
        again = made("nested", FAR)
        train([again], source_for("nested", FAR), settings=settings, folder=tmp_path)
        assert again.step_index == STEPS
        for key, weight in whole.modules.state_dict().items():
            assert torch.equal(again.modules.state_dict()[key].cpu(), weight.cpu()), key


def test_vectors_in_memory_come_to_where_the_dictionaries_are() -> None:
    with far_device():
        trainee = made("topk-short", FAR)
        train([trainee], source_for("topk-short", "cpu"))
        assert trainee.modules["d" if "d" in trainee.modules else "dictionary"].W_dec.device == FAR


def test_a_subject_elsewhere_is_refused() -> None:
    with far_device():
        batch = source_for("e2e-braun", "cpu").at(0)
        with pytest.raises(UserError, match="put both on one device"):
            made("e2e-braun", FAR).step(batch)


def test_what_stays_behind_is_seen() -> None:
    with far_device() as mode:
        assert isinstance(mode, FarDevice)
        x = torch.zeros(3, device=FAR)
        with pytest.raises(MixedDevices, match="stayed on the processor"):
            x + torch.zeros(3)
        with pytest.raises(MixedDevices, match="stayed on the processor"):
            x[torch.tensor([0, 1])]
        with pytest.raises(MixedDevices, match="generator"):
            torch.multinomial(x + 1, 2, generator=torch.Generator().manual_seed(0))
        assert not mode.waits
        assert (x + torch.ones(())).sum().item() == 3
        assert mode.waits == {"_local_scalar_dense": 1}
