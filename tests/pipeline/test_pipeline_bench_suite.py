"""The suite: each protocol once, in pieces or in one go the same, refusals said, their layout."""

import json
from pathlib import Path

import pytest
import torch
from tiny_subject import bump, tiny_rows
from word_world import SITE, bench_of, classes, crossed, reader, word_latents

from unweave.artifact.hashing import sha256_of_file
from unweave.cli import bench_suite as command
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.pipeline import bench_suite as suite_of
from unweave.pipeline.bench_suite import BenchSuiteSettings, bench_suite
from unweave.pipeline.saebench_output import saebench_output
from unweave.pipeline.suite_records import SuiteRun
from unweave.validate.protocols import core as core_file
from unweave.validate.protocols import scr as scr_file
from unweave.validate.protocols.protocol import Bench, Outcome, Protocol
from unweave.validate.protocols.suite import protocols_named

OURS = ("core", "sparse_probing", "scr", "tpp")


@pytest.fixture
def given(tmp_path, monkeypatch) -> tuple[Path, BenchSuiteSettings]:
    """A dictionary and a folder of data; core reads a few rows in the place of a text."""
    rows = tiny_rows(8, 12)
    monkeypatch.setattr(core_file, "core_rows", lambda bench, settings: rows)
    dictionary = bump(Dictionary(autoencoder(SITE, 32, 64, TopK(k=4))))
    save_dictionary(dictionary, tmp_path / "dictionary")
    bench_of(reader(), word_latents(reader()), tmp_path, classes(40), crossed(120))
    settings = BenchSuiteSettings(data=tmp_path / "data", share=0.06, tasks=OURS)
    return tmp_path / "dictionary", settings


def files(folder: Path) -> dict[str, str]:
    """Digests of every file; run.json holds the time and is looked at apart."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"]
    return {
        str(p.relative_to(folder)): sha256_of_file(p) for p in paths if "saebench" not in str(p)
    }


def test_cut_off_at_any_protocol_or_set_it_ends_the_same(given, tmp_path, monkeypatch):
    path, settings = given
    whole = bench_suite(path, reader(), settings, out=tmp_path / "whole")
    assert [found.refused for found in whole.found] == [None] * len(OURS)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scr_file, "scr_scores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench_suite(path, reader(), settings, out=tmp_path / "cut")
    cut = files(tmp_path / "cut")
    assert "protocols/sparse_probing.json" in cut
    assert "protocols/tpp.json" not in cut
    once = bench_suite(path, reader(), settings, out=tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert once.found == whole.found


def test_what_is_done_is_not_done_again_and_more_may_be_asked(given, tmp_path, monkeypatch):
    path, settings = given
    few = settings.model_copy(update={"tasks": ("tpp",)})
    first = bench_suite(path, reader(), few, out=tmp_path / "out")

    def never(bench: Bench) -> Outcome:
        raise AssertionError("it has been done")

    def named(names: tuple[str, ...]) -> list[Protocol]:
        found = protocols_named(names)
        return [p._replace(run=never) if p.name == "tpp" else p for p in found]

    monkeypatch.setattr(suite_of, "protocols_named", named)
    more = settings.model_copy(update={"tasks": ("core", "tpp")})
    second = bench_suite(path, reader(), more, out=tmp_path / "out")
    assert [found.protocol for found in second.found] == ["core", "tpp"]
    assert second.found[1] == first.found[0]
    assert second.run.begun_ms == first.run.begun_ms


def test_a_refusal_is_kept_and_asked_again(given, tmp_path):
    path, settings = given
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "two.csv").write_text("text,label\n" + "w3 w4,x\nw5 w6,y\n" * 10)
    less = settings.model_copy(update={"tasks": ("tpp",), "data": tmp_path / "other"})
    told = bench_suite(path, reader(), less, out=tmp_path / "out")
    assert "three labels" in (told.found[0].refused or "")
    (tmp_path / "other" / "two.csv").write_text("text,label\n" + "w3 w4,x\nw5 w6,y\nw7 w8,z\n" * 20)
    assert bench_suite(path, reader(), less, out=tmp_path / "out").found[0].outcome


def test_what_cannot_be_done_is_told_in_a_sentence(given, tmp_path):
    path, settings = given
    asked = {"tasks": ("tpp",)}
    bench_suite(path, reader(), settings.model_copy(update=asked), out=tmp_path / "out")
    asked["seed"] = 1
    with pytest.raises(UserError, match="another dictionary, subject, setting"):
        bench_suite(path, reader(), settings.model_copy(update=asked), out=tmp_path / "out")
    with pytest.raises(UserError, match="no protocol absorbtion"):
        bench_suite(path, reader(), BenchSuiteSettings(tasks=("absorbtion",)), out=tmp_path / "x")
    save_dictionary(Dictionary(autoencoder("unknown", 32, 8, TopK(k=2))), tmp_path / "stray")
    with pytest.raises(UserError, match="give --site"):
        bench_suite(tmp_path / "stray", reader(), settings, out=tmp_path / "x")
    with pytest.raises(UserError, match="holds 2 dictionaries"):
        bench_suite(tmp_path, reader(), settings, out=tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no folder of a bench suite"):
        bench_suite(path, reader(), settings, out=tmp_path / "full")
    with pytest.raises(UserError):
        bench_suite(path, reader(), settings.model_copy(update={"site": "blocks.9.resid_post"}),
                    out=tmp_path / "x")  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_the_results_are_as_saebench_writes_them(given, tmp_path, shared_data):
    jsonschema = pytest.importorskip("jsonschema")
    path, settings = given
    done = bench_suite(path, reader(), settings, out=tmp_path / "out")
    for name in OURS:
        schema = shared_data / "schemas" / f"saebench_eval_output_schema_{name}.json"
        checker = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
        written = json.loads(
            (tmp_path / "out" / "saebench" / f"{name}_eval_results.json").read_text()
        )
        checker.validate(written)
        theirs = json.loads(
            (
                shared_data / "schemas" / "saebench_expected" / f"{name}_expected_results.json"
            ).read_text()
        )
        for group, values in theirs["eval_result_metrics"].items():
            assert set(written["eval_result_metrics"][group]) <= set(schema_names(schema, group))
            assert values.keys() & written["eval_result_metrics"][group].keys()
        broken = written | {"eval_result_metrics": {}}
        assert list(checker.iter_errors(broken))
    found = {f.protocol: f.outcome for f in done.found}
    core = json.loads((tmp_path / "out" / "saebench" / "core_eval_results.json").read_text())
    metrics, ours = core["eval_result_metrics"], found["core"].numbers
    assert metrics["sparsity"]["l0"] == ours["l0"].value
    published = ours["explained_variance_as_published"].value
    assert metrics["reconstruction_quality"]["explained_variance"] == published


def schema_names(schema: Path, group: str) -> list[str]:
    """Field names of a group of metrics."""
    read = json.loads(schema.read_text())
    categories = next(d for name, d in read["$defs"].items() if name.endswith("MetricCategories"))
    where = categories["properties"][group]
    reference = where.get("$ref") or where["allOf"][0]["$ref"]
    return list(read["$defs"][reference.split("/")[-1]]["properties"])


def test_protocols_without_a_layout_of_theirs_have_no_such_file():
    one = {"value": 1.0, "unit": "share"}
    outcome = Outcome(protocol="other", numbers={"a": one}, controls={"b": one})
    run = SuiteRun(
        subject="s", subject_sha256="0", dictionary="d", dictionary_sha256="1", site="x",
        settings={}, version="1", commit=None, begun_ms=0,
    )  # fmt: skip
    assert saebench_output(outcome, run) is None


def test_the_command_shows_numbers_beside_controls(given, tmp_path, monkeypatch, capsys):
    path, _ = given
    monkeypatch.setattr(suite_of, "load_subject", lambda name, **_: reader())
    command.bench_suite(
        path, subject="reader", out=tmp_path / "out", tasks="sparse_probing, tpp",
        data=tmp_path / "data", share=0.06,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "sae_top_1_test_accuracy" in shown
    assert "random_top_1_test_accuracy" in shown
    assert "tpp_threshold_2_total_metric" in shown
    with pytest.raises(UserError, match="--share"):
        command.bench_suite(path, subject="reader", out=tmp_path / "x", share=2.0)


def test_a_dictionary_may_be_put_at_another_site(given, tmp_path):
    path, _ = given
    here = suite_of.placed_at(path, None)
    there = suite_of.placed_at(path, "blocks.1.resid_pre")
    assert here.reads == (SITE,)
    assert there.reads == there.writes == ("blocks.1.resid_pre",)
    bench = Bench(reader(), there, tmp_path)
    assert torch.equal(bench.dictionary.coder.directions(), here.coder.directions())
