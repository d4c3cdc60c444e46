"""Dictionaries at a site: a whole folder, several from one pass, and no trace of a cut."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_pipeline_families import reading, text  # noqa: F401  (a fixture)
from tiny_subject import tiny_llama

from unweave.activations.window import HarvestSettings
from unweave.artifact.hashing import sha256_of_file
from unweave.cli.app import main
from unweave.dictionaries.cross_layer import load_cross_layer
from unweave.dictionaries.dictionary_files import load_dictionary
from unweave.errors import UserError
from unweave.pipeline.job import unfinished
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.subject import Subject

SCRIPT = Path(__file__).with_name("train_killed_at_writes.py")
SITE = "blocks.0.mlp.out"
TINY = {
    "site": (SITE,), "latents": 64, "lr": 1e-2, "batch": 96, "tokens": 1600, "context": 16,
    "threads": 1, "log_every": 4, "harvest": HarvestSettings(window_tokens=512),
}  # fmt: skip


@pytest.fixture(scope="module")
def subject() -> Subject:
    return reading(tiny_llama(max_position_embeddings=16))


@pytest.fixture(scope="module")
def trained(subject, text, tmp_path_factory) -> Path:  # noqa: F811
    settings = TrainSiteSettings(
        **{**TINY, "text": text, "recipe": ("batchtopk", "topk-gao", "e2e-ds-braun"), "k": (2, 8)}
    )
    return train_site(subject, settings, out=tmp_path_factory.mktemp("train") / "out")


def test_everything_is_there_and_hashed(trained, subject):
    run = json.loads((trained / "run.json").read_text())
    there = {p.relative_to(trained).as_posix() for p in trained.rglob("*") if p.is_file()}
    assert there == {*run["files"], "run.json"}
    for path, record in run["files"].items():
        assert record["sha256"] == sha256_of_file(trained / path)
    assert run["subject"]["fingerprint"] == subject.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", run["text"]["sha256"])
    assert run["settings"]["k"] == [2, 8]
    assert run["trained"]["batchtopk-k2"]["lr"] == 0.01
    assert run["code"]["version"]
    assert not unfinished(trained).exists()


def test_every_recipe_was_trained_with_every_k(trained):
    names = [f"{r}-k{k}" for r in ("batchtopk", "topk-gao", "e2e-ds-braun") for k in (2, 8)]
    assert sorted(p.name for p in (trained / "dictionaries").iterdir()) == sorted(names)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {line["trainee"] for line in lines} == set(names)
    one = load_dictionary(trained / "dictionaries" / "topk-gao-k8")
    assert one.spec.activation.k == 8
    assert one.spec.reads[0].site == SITE


def test_scores_are_held_out_and_say_what_the_network_loses(trained):
    scores = json.loads((trained / "scores.json").read_text())["trained"]
    few, many = (scores[f"topk-gao-k{k}"] for k in (2, 8))
    for found, k in ((few, 2), (many, 8)):
        inside = found["dictionaries"]["dictionary"]
        assert inside["l0"] == pytest.approx(k, abs=0.01)
        assert 0 < inside["fvu"] < 1
        assert {"cosine", "mse", "l2_ratio", "gamma", "alive", "density"} <= set(inside)
        for number in ("ce_increase", "kl", "recovered_zero", "recovered_mean"):
            assert found[number]["low"] <= found[number]["value"] <= found[number]["high"]
    fvu = [found["dictionaries"]["dictionary"]["fvu"] for found in (few, many)]
    assert fvu[1] < fvu[0]
    assert many["kl"]["value"] < few["kl"]["value"]
    assert few["kl"]["value"] > 0


def test_the_same_again_is_not_done_again_and_another_is_refused(trained, subject, text):  # noqa: F811
    settings = {
        **TINY, "text": text, "recipe": ("batchtopk", "topk-gao", "e2e-ds-braun"), "k": (2, 8)
    }  # fmt: skip
    before = (trained / "run.json").stat().st_mtime_ns
    train_site(subject, TrainSiteSettings(**settings), out=trained)
    assert (trained / "run.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds another run already"):
        train_site(subject, TrainSiteSettings(**{**settings, "seed": 7}), out=trained)


def test_many_in_one_pass_are_what_one_is_alone(trained, subject, text, tmp_path):  # noqa: F811
    settings = TrainSiteSettings(**{**TINY, "text": text, "recipe": ("batchtopk",), "k": (8,)})
    alone = train_site(subject, settings.model_copy(update={"threads": 2}), out=tmp_path / "x")
    for file in ("weights.safetensors", "spec.json"):
        place = f"dictionaries/batchtopk-k8/{file}"
        assert (alone / place).read_bytes() == (trained / place).read_bytes()


def test_sets_and_pairs_of_sites(subject, text, tmp_path):  # noqa: F811
    reads = tuple(f"blocks.{i}.mlp.in" for i in range(2))
    writes = tuple(f"blocks.{i}.mlp.out" for i in range(2))
    common = {**TINY, "text": text, "k": (4,)}
    settings = TrainSiteSettings(**{**common, "site": reads, "to": writes, "recipe": ("clt",)})
    out = train_site(subject, settings, out=tmp_path / "clt")
    members = load_cross_layer(out / "dictionaries" / "clt-k4")
    assert [len(m.spec.writes) for m in members.values()] == [2, 1]
    settings = TrainSiteSettings(
        **{**common, "site": reads[:1], "to": writes[:1], "recipe": ("skip-transcoder",)}
    )
    out = train_site(subject, settings, out=tmp_path / "pair")
    assert load_dictionary(out / "dictionaries" / "skip-transcoder-k4").W_skip is not None


def test_dying_at_any_write_changes_nothing(text, tmp_path):  # noqa: F811
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), text, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["codes"][0] == found["codes"][-1] == 0, done.stderr
    assert set(found["codes"]) == {0, 9}, done.stderr
    assert found["codes"].count(9) >= 4
    assert found["equal"]
    assert found["left"] == ["cut", "whole"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"site": ("blocks.0.mlp.outt",)}, "has no site blocks.0.mlp.outt"),
        ({"site": ("blocks.9.mlp.out",)}, "its blocks are 0 to 1"),
        ({"site": ("blocks.0.attn.pattern",)}, "holds no vectors of one width"),
        ({"site": (SITE, SITE)}, "given twice"),
        ({"site": (SITE,), "to": ("blocks.0.mlp.in",)}, "is computed before"),
        ({"recipe": ("topk",)}, "There is no recipe topk; nearest"),
        ({"recipe": ("gated",), "k": ()}, "give k or penalty"),
        ({"k": (65,)}, "k=65 exceeds its 64 latents"),
        ({"recipe": ("mp-sae",), "to": ("blocks.0.resid_post",)}, "give it one site"),
        ({"recipe": ("e2e-ds-braun",), "site": ("blocks.1.mlp.out",)}, "sites that come later"),
        ({"tokens": 20}, "fewer than two rows"),
        ({"batch": 5000}, "fills a batch of 5000"),
        ({"text": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(changes, said, subject, text, tmp_path):  # noqa: F811
    asked = {**TINY, "text": text, "recipe": ("topk-gao",), "k": (4,), **changes}
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        train_site(subject, TrainSiteSettings(**asked), out=tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--site blocks.0.mlp.outt", "wren has no site blocks.0.mlp.outt"),
        ("--site blocks.0.mlp.out --recipe topk", "There is no recipe topk"),
        ("--site blocks.0.mlp.out --k four", "--k: Input should be a valid integer"),
        ("--site blocks.0.mlp.out --k 0", "--k: Input should be greater than 0"),
        ("--site blocks.0.mlp.out --tokens 30", "30 tokens are fewer than two rows"),
        ("--recipe batchtopk", "--site"),
    ],
)
def test_the_command_line_says_it_in_a_sentence(line, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        main(["train", "wren", "--text", "heldout", *line.split(), "--out", str(tmp_path / "out")])
    assert ending.value.code == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.replace("│", " ").split())
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_trains_and_shows(tmp_path, capsys):
    out = tmp_path / "out"
    line = f"train wren --site blocks.1.mlp.out --recipe topk-gao,batchtopk --k 8 --latents 256 \
        --text heldout --tokens 8k --batch 256 --lr 5e-3 --threads 1 --out {out}"
    with pytest.raises(SystemExit) as ending:
        main(line.split())
    assert ending.value.code == 0
    printed = capsys.readouterr().out
    assert "topk-gao-k8" in printed
    assert "CE rise (nats)" in printed
    assert load_dictionary(out / "dictionaries" / "batchtopk-k8").n_latents == 256


def test_recipes_are_listed_with_their_sources(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["recipes"])
    assert ending.value.code == 0
    printed = capsys.readouterr().out
    for name in ("anthropic-2024-04", "clt", "e2e-ds-braun"):
        assert name in printed
    assert "2405.12241" in " ".join(printed.split())


@pytest.fixture(scope="module")
def every_layer(subject, text, tmp_path_factory) -> Path:  # noqa: F811
    settings = TrainSiteSettings(
        **{
            **TINY, "text": text, "site": "blocks.*.mlp.in", "to": "blocks.*.mlp.out", "each": True,
            "recipe": "topk-short", "k": 4,
        }
    )  # fmt: skip
    return train_site(subject, settings, out=tmp_path_factory.mktemp("each") / "out")


def test_each_layer_gets_a_transcoder_of_its_own(every_layer):
    names = [f"topk-short-k4-blocks.{layer}.mlp.out" for layer in range(2)]
    assert sorted(p.name for p in (every_layer / "dictionaries").iterdir()) == names
    for layer, name in enumerate(names):
        spec = load_dictionary(every_layer / "dictionaries" / name).spec
        assert [p.site for p in spec.reads] == [f"blocks.{layer}.mlp.in"]
        assert [p.site for p in spec.writes] == [f"blocks.{layer}.mlp.out"]
    assert set(json.loads((every_layer / "scores.json").read_text())["trained"]) == set(names)
    run = json.loads((every_layer / "run.json").read_text())
    assert run["settings"]["site"] == ["blocks.0.mlp.in", "blocks.1.mlp.in"]


def test_a_layer_among_all_is_the_one_trained_alone(every_layer, subject, text, tmp_path):  # noqa: F811
    settings = TrainSiteSettings(
        **{
            **TINY, "text": text, "site": "blocks.1.mlp.in", "to": "blocks.1.mlp.out",
            "recipe": "topk-short", "k": 4,
        }
    )  # fmt: skip
    alone = train_site(subject, settings, out=tmp_path / "alone") / "dictionaries"
    among = every_layer / "dictionaries" / "topk-short-k4-blocks.1.mlp.out" / "weights.safetensors"
    other = every_layer / "dictionaries" / "topk-short-k4-blocks.0.mlp.out" / "weights.safetensors"
    bytes_alone = (alone / "topk-short-k4" / "weights.safetensors").read_bytes()
    assert among.read_bytes() == bytes_alone
    assert other.read_bytes() != bytes_alone


def test_sites_that_make_no_pairs_are_refused(subject, text, tmp_path):  # noqa: F811
    changes = {"site": "blocks.*.mlp.in", "to": "blocks.1.mlp.out", "each": True, "text": text}
    with pytest.raises(UserError, match="make no pairs"):
        train_site(subject, TrainSiteSettings(**{**TINY, **changes}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_vectors_are_held_changes_no_byte_of_a_bfloat16_subject(text, tmp_path):  # noqa: F811
    half = reading(tiny_llama(max_position_embeddings=16))
    half.model.bfloat16()
    found = []
    for store in ("float32", "subject"):
        for threads in (1, 2):
            harvest = HarvestSettings(window_tokens=512, store=store)
            settings = TrainSiteSettings(
                **{**TINY, "text": text, "recipe": ("topk-short", "jumprelu-2025-01"), "k": 4,
                   "penalty": (), "harvest": harvest, "threads": threads}
            )  # fmt: skip
            out = train_site(half, settings, out=tmp_path / f"{store}{threads}")
            found.append({
                path.parent.name: path.read_bytes()
                for path in sorted((out / "dictionaries").glob("*/weights.safetensors"))
            })  # fmt: skip
    assert len(found[0]) == 2
    assert all(one == found[0] for one in found[1:])
