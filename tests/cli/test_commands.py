"""What a person at the command line gets: answers, sentences, exit codes."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import unweave.pipeline
from unweave import __version__
from unweave.artifact import layout
from unweave.cli import main
from unweave.errors import UserError
from unweave.pipeline import DecompileSettings
from unweave.progress import Progress


def run(*arguments: object) -> int:
    """The exit code of a command line, carried out in this process."""
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = """
        import sys
        from unweave.cli import main
        try:
            main(["--help"])
        except SystemExit as ending:
            heavy = {"torch", "transformers", "numpy", "pyarrow", "pydantic", "safetensors"}
            print("heavy:", sorted(heavy & sys.modules.keys()), ending.code)
        """
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", textwrap.dedent(script)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert answer.endswith("heavy: [] 0\n")
    for name in (
        "subjects",
        "texts",
        "decompile",
        "train",
        "recipes",
        "report",
        "check",
        "--version",
    ):
        assert name in answer
    assert min(times) < 0.8, f"CPU seconds: {times}; 0.4 on a quiet machine"


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, unweave; print({'torch', 'transformers', 'cyclopts'} & sys.modules.keys())"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.stdout == "set()\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("decompil wren", 'Did you mean "decompile"'),
        ("decompile wren", "--out"),
        ("decompile wren --out x --token 3", "Did you mean --tokens"),
        ("decompile wren --out x --tokens 4x", "'4x' is no count: write 400000, 400k or 2M"),
        ("decompile wren --out x --seed a", "--seed"),
        ("subjects fetch nobody", "no subject is known as nobody; known: wren, smollm2-135m"),
        ("texts fetch nothing", "no text is known as nothing"),
        ("check /nowhere", "No folder /nowhere"),
        ("report /nowhere", "No folder /nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert run(*line.split()) == 2
    printed = capsys.readouterr()
    assert said in " ".join(printed.err.replace("│", " ").split())
    assert printed.out == ""
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(("command", "known"), [("subjects", "wren"), ("texts", "wiki")])
def test_what_is_known_by_name_is_listed(
    capsys: pytest.CaptureFixture[str], command: str, known: str
) -> None:
    assert run(command) == 0
    assert known in capsys.readouterr().out


def test_a_good_artifact_is_said_to_be_good(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    files = sum(path.is_file() for path in artifact.rglob("*")) - 1
    assert run("check", artifact) == 0
    assert capsys.readouterr().out == f"{files} files, all as the manifest says\n"


def test_every_fault_of_an_artifact_is_a_line(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    (artifact / layout.SAMPLES).unlink()
    (artifact / "evil\x1b[2J\nname [bold]").write_text("x")
    assert run("check", artifact) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "evil\\x1b[2J name [bold] lies in the folder but not in the manifest",
        "samples.json is in the manifest but not in the folder",
    ]
    assert printed.err.endswith("is not what its manifest says: 2 violations\n")


def test_the_report_is_written_anew_and_the_artifact_stays_good(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    before = (artifact / layout.REPORT).read_bytes()
    assert run("report", artifact) == 0
    assert (artifact / layout.REPORT).read_bytes() != before
    assert run("check", artifact) == 0


class FakeJob:
    """Stands in for the main job: keeps what it was asked and hands out a finished artifact."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: DecompileSettings | None = None
        self.failure: BaseException | None = None

    def __call__(
        self, subject: str, *, settings: DecompileSettings, out: Path, progress: Progress
    ) -> Path:
        if self.failure is not None:
            raise self.failure
        self.subject, self.settings, self.out = subject, settings, out
        return self.folder


@pytest.fixture
def job(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJob:
    fake = FakeJob(artifact)
    monkeypatch.setattr(unweave.pipeline, "decompile", fake)
    return fake


def test_flags_reach_the_job_and_the_numbers_are_shown(
    capsys: pytest.CaptureFixture[str], job: FakeJob
) -> None:
    line = "decompile wren --text self --tokens 2M --seed 3 --threads 1 --out runs/x"
    assert run(*line.split()) == 0
    assert (job.subject, job.out) == ("wren", Path("runs/x"))
    assert job.settings == DecompileSettings(text="self", tokens=2_000_000, seed=3, threads=1)
    shown = capsys.readouterr().out
    for expected in (
        "mean ablation",
        "propagated",
        "nats (0.400 to 0.600)",
        "four numbers",
        "self",
    ):
        assert expected in shown
    assert str(job.folder / layout.REPORT) in shown.replace("\n", "")


def test_flags_win_over_the_file(job: FakeJob, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('tokens = "400k"\nseed = 5\nk_mlp = 4\n[measure]\ntokens = 99\n')
    assert run("decompile", "wren", "--out", "x", "--config", config, "--seed", 6) == 0
    assert job.settings is not None
    assert (job.settings.tokens, job.settings.seed, job.settings.k_mlp) == (400_000, 6, 4)
    assert job.settings.measure.tokens == 99


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("surprise = 1", "settings.toml, surprise: Extra inputs are not permitted"),
        ("[measure]\ntokens = -1", "settings.toml, measure.tokens: Input should be greater than 0"),
        ('tokens = "many"', "'many' is no count"),
        ("a = ", "is no TOML file of settings"),
        (None, "settings.toml cannot be read (No such file or directory)"),
    ],
)
def test_a_file_of_settings_that_does_not_do(
    capsys: pytest.CaptureFixture[str],
    job: FakeJob,
    tmp_path: Path,
    content: str | None,
    said: str,
) -> None:
    config = tmp_path / "settings.toml"
    if content is not None:
        config.write_text(content)
    assert run("decompile", "wren", "--out", "x", "--config", config) == 2
    assert said in capsys.readouterr().err
    assert job.settings is None


def test_a_flag_that_the_settings_refuse(capsys: pytest.CaptureFixture[str], job: FakeJob) -> None:
    assert run("decompile", "wren", "--out", "x", "--threads", "-1") == 2
    assert "--threads: Input should be greater than 0" in capsys.readouterr().err


def test_a_hostile_sentence_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], job: FakeJob
) -> None:
    job.failure = UserError("no file \x1b]0;owned\x07[red]x[/red]\nunweave: all is well")
    assert run("decompile", "wren", "--out", "x") == 2
    printed = capsys.readouterr().err
    assert printed == "unweave: no file \\x1b]0;owned\\x07[red]x[/red] unweave: all is well\n"


def test_a_defect_shows_its_traceback(job: FakeJob) -> None:
    job.failure = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        main(["decompile", "wren", "--out", "x"])


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    script = """
        import signal, sys, time, types
        # A background shell hands on that SIGINT is to be ignored; a terminal does not.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from unweave.cli import main
        def job(subject, **rest):
            with rest["progress"].task("Working", total=10, unit="tokens"):
                print("ready", flush=True)
                time.sleep(60)
        sys.modules["unweave.pipeline"] = types.ModuleType("pipeline")
        sys.modules["unweave.pipeline"].decompile = job
        sys.modules["unweave.cli.decompile"].resolve = lambda flags, config: None
        main(["decompile", "wren", "--out", sys.argv[1]])
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == "unweave: stopped; the same command goes on from here\n"


def test_a_reader_that_leaves_is_no_defect(artifact: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        command = [sys.executable, "-m", "unweave.cli", "check", str(artifact)]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 0
