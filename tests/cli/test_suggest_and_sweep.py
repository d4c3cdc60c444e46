"""`unweave suggest` and `unweave sweep` at the command line."""

import json
from pathlib import Path

import pytest

from unweave.cli import main
from unweave.cli.budget import read_budget
from unweave.errors import UserError

SITE = ("--site", "blocks.1.mlp.out", "--threads", "1")


def run(*arguments: object) -> int:
    """The exit code of a command line, carried out in this process."""
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_a_suggestion_is_shown_with_intervals_and_reasons(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ("suggest", "wren", *SITE, "--tokens", "8k", "--budget", "1e11", "--k", "8")
    assert run(*line) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("latents", "8 (TopK)", "learning rate", "batch 256", "warm-up", "FVU", " to "):
        assert said in shown
    assert "CE increase unknown" not in shown
    assert "narrowest affordable" in shown
    penalised = (*line[:-2], "--form", "l1", "--fvu", "0.3")
    assert run(*penalised) == 0
    assert "L1 weight" in capsys.readouterr().out


def test_a_sweep_leaves_outcomes_law_and_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sizes = ("--widths", "32", "64", "128", "--k", "2", "4", "--rates", "0.008")
    line = ("sweep", "wren", *SITE, "--tokens", "4k", *sizes, "--out", tmp_path / "s")
    assert run(*line) == 0
    shown = capsys.readouterr().out
    assert "Of 6 dictionaries" in shown
    assert "The law refitted" in shown
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == ["law.json", "outcomes.jsonl", "pareto.png"]
    outcomes = (tmp_path / "s" / "outcomes.jsonl").read_text()
    assert len(outcomes.splitlines()) == 6
    assert run(*line) == 0
    assert (tmp_path / "s" / "outcomes.jsonl").read_text() == outcomes, "nothing is done twice"
    assert json.loads((tmp_path / "s" / "law.json").read_text())["coefficients"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("suggest wren --tokens 8k", "--site"),
        ("suggest wren --site x --tokens 8k --budget soon", "--budget soon is no budget"),
        ("suggest wren --site x --tokens 8k --form l7", "--form: String should match"),
        ("suggest wren --site blocks.99.mlp.out --tokens 2k", "blocks.99.mlp.out"),
        (
            "sweep wren --site x --tokens 8k --out o --widths -3",
            "--widths: Input should be greater than 0",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert run(*line.split()) == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.replace("│", " ").split())
    assert "Traceback" not in printed.err


def test_budgets_are_times_or_operations() -> None:
    assert read_budget(None) == {}
    assert read_budget("90s") == {"seconds": 90}
    assert read_budget("1.5h") == {"seconds": 5400}
    assert read_budget("5e13") == {"flops": 5e13}
    for wrong in ("-3", "0", "inf", "nan", "5 parsecs"):
        with pytest.raises(UserError, match="no budget"):
            read_budget(wrong)
