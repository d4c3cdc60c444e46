"""The local stage on a whole network: the same bits whoever works, whatever interrupts."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.window import Harvester, HarvestSettings, start_vectors
from unweave.activations.workers import Workers
from unweave.dictionaries.spec import PartSpec
from unweave.training.checkpoint import Checkpoints
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.local import LocalSettings
from unweave.validate.splice import fidelity

SETTINGS = LocalSettings(batch=32, epochs=2, silent_share=0.02)
HARVEST = HarvestSettings(window_tokens=96, slice_tokens=32)
ROWS = tiny_rows(21, 16, seed=1)


def spec(name: str) -> PartSpec:
    layer, kind = name[1:].split(".")
    into = "attn.z" if kind == "attn" else "mlp.in"
    return PartSpec(
        name=name, input_site=f"blocks.{layer}.{into}", output_site=f"blocks.{layer}.{kind}.out",
        d_in=32, d_out=32, n_latents=64, k=8, heads=4 if kind == "attn" else 1,
        skip=name == "L1.mlp",
    )  # fmt: skip


SPECS = [spec(name) for name in ("L0.attn", "L0.mlp", "L1.attn", "L1.mlp")]


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


def fit(subject, *, threads=2, **rest):
    with Workers(threads) as workers:
        return fit_parts(
            subject, SPECS, ROWS, workers=workers, seed=5, settings=SETTINGS, harvest=HARVEST,
            **rest,
        )  # fmt: skip


@pytest.fixture(scope="module")
def whole(subject):
    """The uninterrupted run."""
    return fit(subject, threads=1)


def same_bits(parts, others):
    assert parts.keys() == others.keys()
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, others[name].state_dict()[key]), f"{name} {key}"


class CutOff(Exception):
    """Stands for the plug being pulled."""


class CutAfter:
    """Progress that pulls the plug at the n-th report of work done."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    @contextmanager
    def task(self, title, *, total, unit):
        def advance(amount):
            self.left -= 1
            if self.left < 0:
                raise CutOff

        yield advance

    def say(self, line):
        pass


def test_the_number_of_workers_changes_no_bit(subject, whole):
    parts, metrics = fit(subject, threads=2)
    same_bits(parts, whole[0])
    assert metrics == whole[1]


@pytest.mark.parametrize("cut", [1, 6])
def test_a_run_that_was_cut_off_ends_in_the_same_bits(subject, whole, tmp_path, cut):
    folder = tmp_path / "state"
    with pytest.raises(CutOff):
        fit(subject, checkpoints=Checkpoints(folder, seconds=0), progress=CutAfter(cut))
    windows = []
    ask = Harvester.window
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Harvester, "window", lambda self, i: windows.append(i) or ask(self, i))
        parts, metrics = fit(subject, checkpoints=Checkpoints(folder, seconds=0))
    same_bits(parts, whole[0])
    assert metrics == whole[1]
    # One look at the first window to start, then only those not visited before the last save.
    assert len(windows) == 1 + 8 - (cut - 1)


def test_cut_off_twice(subject, whole, tmp_path):
    for cut in (3, 4):
        with pytest.raises(CutOff):
            fit(subject, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(cut))
    same_bits(fit(subject, checkpoints=Checkpoints(tmp_path, seconds=0))[0], whole[0])


def slots_by_age(folder):
    return sorted(
        folder.iterdir(), key=lambda slot: json.loads((slot / "state.json").read_text())["done"]
    )


@pytest.mark.parametrize("torn", ["no state, truncated tensors", "empty"])
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(subject, whole, tmp_path, torn):
    with pytest.raises(CutOff):
        fit(subject, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(6))
    older, newest = slots_by_age(tmp_path)
    if torn == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        (newest / "state.json").unlink()
    if "truncated" in torn:
        path = next(newest.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:40])
    latest = Checkpoints(tmp_path).latest()
    assert latest.done == json.loads((older / "state.json").read_text())["done"] == 4
    same_bits(fit(subject, checkpoints=Checkpoints(tmp_path, seconds=0))[0], whole[0])


def test_a_half_removed_older_checkpoint_is_not_touched(subject, whole, tmp_path):
    """A kill while the older slot is being cleared for the next one."""
    with pytest.raises(CutOff):
        fit(subject, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(6))
    older, _ = slots_by_age(tmp_path)
    next(older.glob("*.safetensors")).unlink()
    assert Checkpoints(tmp_path).latest().done == 5
    same_bits(fit(subject, checkpoints=Checkpoints(tmp_path, seconds=0))[0], whole[0])


def test_parts_come_to_explain_their_blocks(subject):
    """On text they have not seen, and better than they started."""
    settings = LocalSettings(batch=128, lr=5e-3)
    rows = tiny_rows(300, 16, seed=8)
    with Workers(1) as workers:
        sites = [site for s in SPECS for site in (s.input_site, s.output_site)]
        unseen = Harvester(subject, tiny_rows(60, 16, seed=9), sites, workers=workers, seed=0)
        vectors = unseen.window(0).vectors
        fitted, _ = fit_parts(subject, SPECS, rows, workers=workers, seed=5, settings=settings)
        frozen = settings.model_copy(update={"lr": 1e-12})
        started, _ = fit_parts(subject, SPECS, rows, workers=workers, seed=5, settings=frozen)
    for s in SPECS:
        x, y = vectors[s.input_site], vectors[s.output_site]
        now, then = (fidelity(p[s.name], x, y).fvu for p in (fitted, started))
        assert now < 0.8, s.name
        assert now < 0.9 * then, s.name


def test_the_start_tokens_output_is_stored(subject, whole):
    starts = start_vectors(subject, ROWS, [s.output_site for s in SPECS])
    for s in SPECS:
        assert torch.equal(whole[0][s.name].start_output, starts[s.output_site])


def test_the_log_has_a_line_per_part_and_visit(whole):
    _, metrics = whole
    assert len(metrics) == 4 * 8
    assert {line["part"] for line in metrics} == {s.name for s in SPECS}
    assert [line["visit"] for line in metrics[::4]] == list(range(8))
    last = {line["part"]: line["step"] for line in metrics}
    assert set(last.values()) == {2 * (3 * (90 // 22) + 45 // 22)}


def test_another_seed_gives_other_parts(subject, whole):
    with Workers(2) as workers:
        parts, _ = fit_parts(
            subject, SPECS[:1], ROWS, workers=workers, seed=6, settings=SETTINGS, harvest=HARVEST
        )
    assert not torch.equal(parts["L0.attn"].W_enc, whole[0]["L0.attn"].W_enc)


def test_saved_parts_come_back_by_layer_attention_first(whole, tmp_path):
    parts = dict(reversed(whole[0].items()))
    save_parts(parts, tmp_path)
    again = load_parts(tmp_path)
    assert list(again) == ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp"]
    same_bits(again, whole[0])


def test_layers_are_sorted_as_numbers(whole, tmp_path):
    for name in ("L10.mlp", "L9.mlp", "L2.attn"):
        whole[0]["L0.mlp"].save(tmp_path / name)
    assert list(load_parts(tmp_path)) == ["L2.attn", "L9.mlp", "L10.mlp"]


def test_a_text_of_one_window_and_few_vectors_still_trains(subject):
    with Workers(1) as workers:
        parts, metrics = fit_parts(subject, SPECS[:2], tiny_rows(2, 6), workers=workers, seed=0)
    assert all(torch.isfinite(p).all() for part in parts.values() for p in part.parameters())
    assert metrics[0]["step"] > 0
