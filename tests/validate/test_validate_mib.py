"""MIB's circuit track where the answer is known, and where it must come out bad."""

import json
from pathlib import Path

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import tiny_llama
from torch import Tensor

from unweave.circuits.choosing import random_scores
from unweave.circuits.contrasts import Contrast
from unweave.circuits.edge_attribution import AttributionSettings
from unweave.circuits.exact_edges import exact_edge_scores
from unweave.circuits.running import plain_metrics
from unweave.circuits.wired import Wired
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.errors import UserError
from unweave.progress import QUIET
from unweave.subject import Subject, load_subject
from unweave.validate.placed import Placed
from unweave.validate.protocols import mib as track
from unweave.validate.protocols.can_do import at_least, can_do
from unweave.validate.protocols.contrast_data import (
    CircuitTask,
    Prompted,
    prompt_files,
    read_agreement,
    read_prompts,
    task_of,
)
from unweave.validate.protocols.mib import MibSettings, areas, judge_scores, mib, mib_on
from unweave.validate.protocols.protocol import Bench, Refused

SITE = "blocks.0.resid_post"


def bench(subject: Subject, store: Path, data: Path | None = None) -> Bench:
    neurons = Placed("neurons", coordinates(subject.d_model), (SITE,), (SITE,))
    return Bench(subject, neurons, store, data=data)


def done_by(subject: Subject, count: int) -> list[Contrast]:
    """Pairs whose right answer is what the clean prompt raises most over the corrupted one."""
    found = []
    for one in contrasts(count, 64):
        logits = subject.run(torch.tensor([one.clean, one.corrupt])).logits[:, -1]
        order = (logits[0] - logits[1]).argsort(descending=True)
        right = next(t for t in order.tolist() if logits[0, t] > logits[0].median())
        wrong = next(t for t in order.tolist()[::-1] if logits[0, t] < logits[0].median())
        found.append(one._replace(right=(right,), wrong=(wrong,)))
    return found


def test_areas_by_hand() -> None:
    sizes, plain = (0.0, 0.5, 1.0), torch.tensor([[4.0, 2.0], [0.0, 0.0]])
    for f, cpr, cmd in (([1.0, 1.0, 1.0], 1.0, 0.0), ([0.0, 0.0, 1.0], 0.25, 0.75)):
        got, under, between = areas(torch.tensor(f)[:, None] * plain[0], plain, sizes)
        assert got == pytest.approx(f)
        assert (under.value, between.value) == pytest.approx((cpr, cmd))
    # Above 1 counts against CMD and for CPR.
    _, under, between = areas(torch.tensor([0.0, 1.5, 1.0])[:, None] * plain[0], plain, sizes)
    assert under.value == pytest.approx(0.5 * 0.75 + 0.5 * 1.25)
    assert between.value == pytest.approx(0.5 * 0.75 + 0.5 * 0.25)


def test_what_chance_gives_is_no_skill() -> None:
    assert at_least(8, 8) == pytest.approx(1 / 256)
    assert at_least(0, 5) == 1
    assert at_least(9, 10) == pytest.approx(11 / 1024)
    always = torch.stack([torch.ones(20), torch.ones(20)])
    assert can_do(always).accuracy == 1
    assert "0%" in (can_do(always).why_not(0.01) or ""), "the prompt makes no difference"
    assert can_do(torch.stack([torch.ones(20), -torch.ones(20)])).why_not(0.01) is None
    assert can_do(torch.zeros(2, 0)).why_not(0.01)


def test_edges_that_do_the_most_make_better_circuits_than_any_and_the_worst_make_worse() -> None:
    subject = tiny_llama(num_hidden_layers=1)
    wired, some = Wired(subject), done_by(subject, 12)
    exact = exact_edge_scores(wired, some, settings=AttributionSettings(batch=12))
    scores = {
        "exact": exact, "reversed": -exact, "random": random_scores(wired.graph, seed=0),
        "by size, smallest first": (1 / (exact.abs() + 1e-6)) * wired.graph.mask,
    }  # fmt: skip
    found = judge_scores(
        wired, some, plain_metrics(subject, some), scores,
        sizes=(0.05, 0.1, 0.2, 0.5, 1.0), batch=12, progress=QUIET,
    )  # fmt: skip
    assert found["exact"]["cmd"]["value"] < 0.5 * found["random"]["cmd"]["value"]
    worst = found["by size, smallest first"]["cmd"]["value"]
    assert worst > 1.5 * found["exact"]["cmd"]["value"]
    assert found["exact"]["cpr"]["value"] > found["random"]["cpr"]["value"] + 0.1
    assert found["reversed"]["cpr"]["value"] < found["random"]["cpr"]["value"]
    for one in found.values():
        assert one["faithfulness_signed"][-1] == pytest.approx(1)


def test_a_track_has_its_control_and_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny_llama()
    tasks = [CircuitTask("made", tuple(done_by(subject, 20)), 0)]
    settings = MibSettings(
        attribution=12, evaluation=8, methods=("eap", "weights"), sizes=(0.1, 0.5, 1.0)
    )
    first = mib_on(bench(subject, tmp_path), tasks, settings)
    assert list(first.numbers) == ["cmd_eap", "cpr_eap", "cmd_weights", "cpr_weights"]
    assert set(first.controls) == {"cmd_random", "cpr_random"}
    assert first.details["by_task"]["made"]["pairs"] == [12, 8]

    def broken(*_: object) -> Tensor:
        raise AssertionError("it was there already")

    monkeypatch.setitem(track.METHODS, "eap", broken)
    assert mib_on(bench(subject, tmp_path), tasks, settings) == first


def test_who_cannot_do_the_task_is_refused_with_the_number(tmp_path: Path) -> None:
    subject = tiny_llama()
    tasks = [CircuitTask("drawn", tuple(contrasts(40, 64)), 0)]
    with pytest.raises(Refused, match=r"drawn: the right answer beats .* in \d+% of 20 pairs"):
        mib_on(bench(subject, tmp_path), tasks, MibSettings(attribution=20, evaluation=20))
    with pytest.raises(Refused, match="no tokenizer"):
        task_of(subject, "words", [Prompted("a", "b", ("c",), ("d",))], most=8)
    with pytest.raises(Refused, match="has none"):
        mib(bench(subject, tmp_path, tmp_path))
    with pytest.raises(UserError, match="no method best"):
        mib_on(bench(subject, tmp_path), tasks, MibSettings(methods=("best",)))


def test_answers_count_by_what_tells_them_apart(tmp_path: Path) -> None:
    wren = load_subject("wren")
    one = Prompted("The cat sat", "The dog sat", (" grass", " mice"), (" fish", " mice"))
    task = task_of(wren, "years", [one, one, one._replace(wrong=(" mice", " grass"))], most=8)
    assert task.unlike == 1, "same answers tell nothing"
    assert len(task.contrasts) == 1, "no pair twice"
    (contrast,) = task.contrasts
    grass, fish = (wren.tokenizer.encode_many([word])[0][0] for word in (" grass", " fish"))
    assert (contrast.right, contrast.wrong) == ((grass,), (fish,)), "mice tell nothing"
    longer = one._replace(corrupt="The dog sat down on the mat")
    assert task_of(wren, "longer", [longer], most=8).unlike == 1
    bad = tmp_path / "my_ioi_prompts.json"
    bad.write_text(json.dumps({"pairs": []}))
    with pytest.raises(UserError, match="list `prompts`"):
        read_prompts(bad)
    with pytest.raises(UserError, match="clean_prefix"):
        read_agreement(bad)


def test_wren_does_none_of_the_public_tasks(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ioi_greaterthan_docstring"
    assert set(prompt_files(folder)) == {"ioi", "greater_than", "docstring", "animal_diet"}
    assert len(read_prompts(prompt_files(folder)["ioi"])) == 1000
    few = MibSettings(attribution=8, evaluation=16)
    with pytest.raises(Refused, match="wren does none of the tasks"):
        mib(bench(load_subject("wren"), tmp_path, folder), few)
