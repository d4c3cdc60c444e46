"""Files appear whole or not at all, whatever happens while they are written."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from unweave.artifact.atomic import (
    is_partial,
    new_file,
    new_folder,
    sweep,
    write_bytes,
    write_json,
    write_json_lines,
    write_text,
)
from unweave.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run `script` in a process of its own, which says `ready` when it has got there."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_json_is_the_same_for_equal_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": [1, 0.1, None], "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": [1, 0.1, None]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "é" in (tmp_path / "a").read_text("utf-8")


def test_json_refuses_nan_and_writes_nothing(tmp_path: Path) -> None:
    for write in (write_json, lambda path, value: write_json_lines(path, [value])):
        with pytest.raises(ValueError, match="JSON compliant"):
            write(tmp_path / "a", {"x": float("nan")})
    assert names(tmp_path) == []


def test_json_lines_are_one_object_a_line(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "log", [{"b": 1, "a": "x\ny"}, {}])
    assert (tmp_path / "log").read_text() == '{"a": "x\\ny", "b": 1}\n{}\n'


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_alone(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    write_text(tmp_path / "file", "old")

    def interrupted() -> None:
        with new_file(tmp_path / "file") as partial:
            partial.write_text("half of the n")
            raise failure

    with pytest.raises(failure):
        interrupted()
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "er" / "file", "x")
    assert (tmp_path / "deep" / "er" / "file").read_text() == "x"


def test_a_kill_before_the_rename_leaves_the_old_file_and_a_partial_to_sweep(
    tmp_path: Path,
) -> None:
    target = tmp_path / "file"
    write_text(target, "old")
    process = start(
        """
        import os, sys, time
        from pathlib import Path
        from unweave.artifact import atomic
        def never(source, target):
            print("ready", flush=True)
            time.sleep(60)
        os.replace = never
        atomic.write_text(Path(sys.argv[1]), "new" * 1000)
        """,
        target,
    )
    assert sweep(tmp_path) == []  # its writer lives
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert target.read_text() == "old"
    (left,) = (path for path in tmp_path.iterdir() if path != target)
    assert is_partial(left)
    assert sweep(tmp_path) == [left]
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with new_folder(tmp_path / "sub" / "folder") as partial:
            write_text(partial / "inner" / content, content)
            assert not (tmp_path / "sub" / "folder" / "inner" / content).exists()
    assert names(tmp_path / "sub") == ["folder"]
    assert names(tmp_path / "sub" / "folder" / "inner") == ["second"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with new_folder(tmp_path / "folder") as partial:
        write_text(partial / "old", "x")

    def interrupted() -> None:
        with new_folder(tmp_path / "folder") as partial:
            write_text(partial / "new", "x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


def test_partials_of_an_earlier_process_with_our_number_are_stale(tmp_path: Path) -> None:
    # In a container every run may have the same process number.
    left = tmp_path / f".file.{os.getpid()}-0123abcd.partial"
    left.mkdir()
    (left / "inside").write_text("x")
    with new_file(tmp_path / "file") as ours:
        ours.write_text("x")
        assert sweep(tmp_path) == [left]
    assert names(tmp_path) == ["file"]


def test_sweep_keeps_what_only_looks_similar(tmp_path: Path) -> None:
    for name in (".file.partial", "file.1-0123abcd.partial", ".x.99999999-zz.partial"):
        (tmp_path / name).write_text("mine")
    assert sweep(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full .*file was not written; make room"):
        write_bytes(tmp_path / "file", b"new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_size_limit_is_said_in_one_sentence(tmp_path: Path) -> None:
    script = """
        import resource, signal, sys
        from pathlib import Path
        from unweave.artifact.atomic import write_bytes
        from unweave.errors import UserError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(Path(sys.argv[1]), bytes(100_000))
        except UserError as error:
            print(error)
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "file")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "file would grow past the largest file allowed here" in said
    assert names(tmp_path) == []


def test_an_unwritable_folder_is_said_in_one_sentence(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from unweave.artifact.atomic import write_bytes
        from unweave.errors import UserError
        if os.geteuid() == 0:
            os.seteuid(65534)  # permissions do not bind root
        try:
            write_bytes(Path(sys.argv[1]), b"x")
        except UserError as error:
            print(error)
        """
    folder = tmp_path / "locked"
    folder.mkdir()
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    folder.chmod(0o555)
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder / "file")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "file cannot be written (permission denied): choose a folder" in said


def test_a_file_in_the_place_of_a_folder_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"inner cannot be written .*choose another place"):
        write_text(tmp_path / "file" / "inner", "x")
