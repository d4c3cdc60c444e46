"""`unweave train --config`: what a file, flags and overrides make of a run."""

import json
import sys
import types
from pathlib import Path

import pytest
from test_pipeline_families import reading, text  # noqa: F401  (a fixture)
from tiny_subject import tiny_llama

import unweave.cli.train  # the module, which its function hides
import unweave.pipeline.train
from unweave.activations.window import HarvestSettings
from unweave.cli.app import main
from unweave.errors import UserError
from unweave.pipeline.job import unfinished
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.training.dead import DeadLatents
from unweave.training.plateau import PlateauSettings
from unweave.training.schedule import Schedule

SITE = "blocks.0.mlp.out"
TINY = {
    "site": SITE, "latents": 64, "lr": 1e-2, "batch": 96, "tokens": 1600, "context": 16, "k": 4,
    "threads": 1, "log_every": 2, "harvest": HarvestSettings(window_tokens=512),
}  # fmt: skip
FILE = """
site = "blocks.1.mlp.in"
to = "blocks.1.mlp.out"
recipe = ["batchtopk", "topk-gao"]
k = [4, 8]
tokens = "400k"
lr = 0.01
epochs = 3
[schedule]
shape = "cosine"
warmup = 0.1
[dead]
silent_share = 0.2
[dead.resample]
at = [0.5]
[plateau]
lines = 4
[harvest]
window_tokens = 4096
"""


@pytest.fixture
def asked(monkeypatch) -> list[TrainSiteSettings]:
    """Settings that reach the job, which is not done."""
    found: list[TrainSiteSettings] = []
    monkeypatch.setattr(
        unweave.pipeline.train, "train_site", lambda *given, **_: found.append(given[1])
    )
    monkeypatch.setattr(sys.modules["unweave.cli.train"], "_show", lambda *_: None)
    return found


def run(*line: object) -> int:
    with pytest.raises(SystemExit) as ending:
        main(["train", "wren", "--out", "x", *(str(part) for part in line)])
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_flags_win_over_the_file_and_the_file_over_defaults(asked, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(FILE)
    assert run("--config", config, "--k", "16,32", "--lr", 0.5, "--track", "wandb") == 0
    settings = asked[0]
    assert (settings.k, settings.lr, settings.track) == ((16, 32), 0.5, "wandb")
    assert (settings.site, settings.to) == (("blocks.1.mlp.in",), ("blocks.1.mlp.out",))
    assert (settings.tokens, settings.epochs, settings.batch) == (400_000, 3, 512)
    assert settings.recipe == ("batchtopk", "topk-gao")
    assert settings.schedule == Schedule(shape="cosine", warmup=0.1)
    assert settings.dead is not None
    assert settings.dead.resample is not None
    assert (settings.dead.silent_share, settings.dead.resample.at) == (0.2, (0.5,))
    assert settings.plateau == PlateauSettings(lines=4)
    assert settings.harvest.window_tokens == 4096


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("surprise = 1", ("--site", "s"), "run.toml, surprise: Extra inputs are not permitted"),
        ("[schedule]\nwarmup = 2", ("--site", "s"), "run.toml, schedule.warmup: Input should be"),
        ('k = ["four"]', ("--site", "s"), "run.toml, k.0: Input should be a valid integer"),
        ("k = 4", (), "run.toml, site: Field required"),
        ("k = 4", ("--site", "s", "--k", "0"), "--k: Input should be greater than 0"),
        ("k = 4", ("--site", "s", "--track", "mlflow"), "--track: Input should be 'wandb' or"),
        ('tokens = "many"', ("--site", "s"), "'many' is no count"),
        (None, ("--site", "s"), "run.toml cannot be read (No such file or directory)"),
    ],
)
def test_what_does_not_do_is_named_where_it_stands(content, line, said, asked, tmp_path, capsys):
    config = tmp_path / "run.toml"
    if content is not None:
        config.write_text(content)
    assert run("--config", config, *line) == 2
    assert said in capsys.readouterr().err
    assert asked == []


def test_every_setting_says_what_it_is():
    assert not [n for n, f in TrainSiteSettings.model_fields.items() if not f.description]


def test_overrides_reach_every_trainee_and_a_plateau_ends_the_pass(text, tmp_path):  # noqa: F811
    subject = reading(tiny_llama(max_position_embeddings=16))
    common = {**TINY, "text": text, "recipe": "batchtopk,topk-gao"}
    mine = {"schedule": Schedule(shape="constant"), "dead": DeadLatents(silent_share=0.5)}
    never = PlateauSettings(lines=1, gain=0.99)  # nothing gets better by that much
    changed = train_site(
        subject, TrainSiteSettings(**common, **mine, plateau=never), out=tmp_path / "a"
    )
    plain = train_site(subject, TrainSiteSettings(**common), out=tmp_path / "b")
    trained, own = (json.loads((p / "run.json").read_text())["trained"] for p in (changed, plain))
    for name in trained:
        assert trained[name]["schedule"]["shape"] == "constant" != own[name]["schedule"]["shape"]
        assert trained[name]["dead"]["silent_share"] == 0.5 != own[name]["dead"]["silent_share"]
    lengths = [len((p / "metrics.jsonl").read_text().splitlines()) for p in (changed, plain)]
    assert lengths[0] == 4 < lengths[1], "two lines each of two trainees"


def test_a_tracker_gets_the_log_and_changes_nothing(text, tmp_path, monkeypatch):  # noqa: F811
    subject = reading(tiny_llama(max_position_embeddings=16))
    settings = TrainSiteSettings(**TINY, text=text, track="trackio")
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="trackio is not installed: pip install trackio"):
        train_site(subject, settings, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    lines: list[dict[str, float]] = []
    begun: list[dict[str, object]] = []
    module = types.ModuleType("trackio")
    module.init = lambda **given: begun.append(given)
    module.log = lines.append
    module.finish = lambda: None
    monkeypatch.setitem(sys.modules, "trackio", module)
    out = train_site(subject, settings, out=tmp_path / "out")
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["batchtopk-k4/dictionary.fvu"] for line in lines] == [
        line["dictionary.fvu"] for line in logged
    ]
    assert begun[0]["project"] == "unweave"
    assert begun[0]["config"]["lr"] == 1e-2
    untracked = settings.model_copy(update={"track": None})
    before = (out / "run.json").stat().st_mtime_ns
    train_site(subject, untracked, out=out)  # the same run: not done again, not refused
    assert (out / "run.json").stat().st_mtime_ns == before
    assert not unfinished(Path(out)).exists()
