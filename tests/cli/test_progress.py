"""Progress is bars for a person who watches and plain lines for a log."""

import os
import pty
import subprocess
import sys
import textwrap

import pytest

from unweave.progress import QUIET, Lines, Progress, Terminal, watching

WORK = """
    import time
    from unweave.progress import watching
    progress = watching()
    with progress.task("Outer [bold]", total=2, unit="steps") as outer:
        with progress.task("Inner", total=1000, unit="tokens") as inner:
            for _ in range(10):
                inner(100)
                time.sleep(0.05)
            progress.say("a line [red]with marks[/red]")
        outer(2)
    """


def test_all_of_them_are_progress() -> None:
    for progress in (QUIET, Lines(), Terminal()):
        assert isinstance(progress, Progress)


def test_a_pipe_gets_plain_lines() -> None:
    command = [sys.executable, "-c", textwrap.dedent(WORK)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == ""
    lines = said.stderr.splitlines()
    assert lines[0] == "a line [red]with marks[/red]"
    assert lines[1].startswith("Inner: done, 1,000 tokens in ")
    assert lines[2].startswith("Outer [bold]: done, 2 steps in ")
    assert "\x1b" not in said.stderr


def test_a_terminal_gets_bars_that_leave_one_line_each() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", textwrap.dedent(WORK)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(command, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # all has been read
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    text = shown.decode()
    assert done.returncode == 0
    assert "━" in text
    assert "tokens/s" in text
    assert "a line [red]with marks[/red]" in text
    assert "Inner: done, 1,000 tokens in" in text
    assert "Outer [bold]: done, 2 steps in" in text


def test_lines_come_at_most_every_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(every=0.0).task("Often", total=4, unit="tokens") as advance:
        advance(1)
        advance(3)
    with Lines(every=3600.0).task("Seldom", total=4, unit="tokens") as advance:
        advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "Often: 25%",
        "Often: 100%",
        "Often: done",
        "Seldom: done",
    ]


def test_a_task_that_fails_leaves_the_terminal_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Terminal()

    def fail() -> None:
        with progress.task("Failing", total=1, unit="steps"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not progress._bars.live.is_started


def test_watching_follows_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(watching(), Terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(watching(), Lines)
