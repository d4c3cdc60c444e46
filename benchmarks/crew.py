"""Contestants as processes that wait for commands, so that one run can interleave them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.contestants.contract import Task

ROOT = Path(__file__).parents[1]
HOMES = {
    "unweave": None,
    "unweave-float32": None,
    "unweave-steady": None,
    "unweave-quick": None,
    "hand-tuned": None,
    "plain": None,
    "sparsify": "sparsify",
    "sparsify-2e-3": "sparsify",
    "sparsify-signum": "sparsify",
    "saelens": "saelens",
    "saelens-autocast": "saelens",
    "dictionary_learning": "dictionary_learning",
}
"""The environment of each contestant; None: this one."""
HALF = ("unweave", "saelens-autocast", "hand-tuned")
"""Who multiplies in bfloat16 (unweave where the processor can)."""
HELDOUT = 16_384


def python_of(name: str, environments: Path | None) -> Path | None:
    """The interpreter of a contestant's environment; None where there is none."""
    home = HOMES[name.partition("@")[0]]
    if name == "hand-tuned" and "HAND_TUNED" not in os.environ:
        return None
    if home is None:
        return Path(sys.executable)
    if environments is None:
        return None
    python = environments / home / "bin" / "python"
    return python if python.exists() else None


class Member:
    """One contestant's process; with a share after an @ its run has that share of the steps."""

    def __init__(self, name: str, python: Path, task: Task, vectors: Path, batch: int) -> None:
        kind, _, share = name.partition("@")
        if share:
            task = replace(task, steps=round(float(share) * task.steps))
        self.name, self.steps = name, task.steps
        self._log = vectors.parent / f"{name}.log"
        asked = {
            "name": kind, "task": asdict(task), "vectors": str(vectors.resolve()), "batch": batch,
            "heldout": HELDOUT,
        }  # fmt: skip
        surroundings = {"WANDB_MODE": "disabled", "TQDM_DISABLE": "1", "BS": str(batch)}
        single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python.absolute()), "-m", "benchmarks.worker", json.dumps(asked)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | single | surroundings,
            )

    def ready(self) -> dict:
        """Wait until it is built."""
        return self._answer()

    def ask(self, do: str, **more: int) -> dict:
        """Send a command and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Let it go."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"{self.name} ended early: {' | '.join(said) or 'no word'}")
        return json.loads(line)


@contextmanager
def crew(
    names: Sequence[str], environments: Path | None, task: Task, vectors: Path, batch: int
) -> Iterator[dict[str, Member]]:
    """Everybody who has an environment, built and waiting; the others are left out."""
    members: dict[str, Member] = {}
    try:
        for name in names:
            if (python := python_of(name, environments)) is not None:
                members[name] = Member(name, python, task, vectors, batch)
                members[name].ready()  # one after the other: imports must not crowd each other out
        yield members
    finally:
        for member in members.values():
            member.end()


def absent(names: Sequence[str], environments: Path | None) -> list[str]:
    """Who has no environment here."""
    return [name for name in names if python_of(name, environments) is None]
