"""One contestant in a process of its own, stepped on command.

    python -m benchmarks.worker TASK      (TASK is JSON; written for `crew.Member`, not for people)

The trainer's own loop runs untouched: it asks for its next batch and waits there until it is told
to go on, so that several contestants can take turns. The clocks run only while it holds a batch.
Commands come as lines of JSON and are answered in lines of JSON:

    {"do": "steps", "n": 4}   seconds of each step, CPU and wall, and what went before the first
    {"do": "score"}           fidelity on the held-out rows; the clocks stand still
    {"do": "memory"}          resident bytes: before anything was built, and at most since then
    {"do": "end"}
"""

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from benchmarks.contestants.contract import Task

BUILDERS = {
    "unweave": ("ours", "unweave", {}),
    "unweave-float32": ("ours", "unweave", {"float32": True}),
    "unweave-steady": ("ours", "unweave", {"steady": True}),
    "unweave-quick": ("ours", "unweave", {"quick": True}),
    "sparsify": ("sparsify", "sparsify", {}),
    "sparsify-2e-3": ("sparsify", "sparsify", {"lr": 2e-3}),
    "sparsify-signum": ("sparsify", "sparsify", {"signum": True}),
    "saelens": ("saelens", "saelens", {}),
    "saelens-autocast": ("saelens", "saelens", {"autocast": True}),
    "dictionary_learning": ("dictionary_learning", "dictionary_learning", {}),
    "hand-tuned": ("hand_tuned", "hand_tuned", {}),
    "plain": ("plain", "plain", {}),
}
"""By name: module, function, and how it differs from what the task says."""
FLOAT = 4


class Batches:
    """The training rows of a file of float32, by plain reads: no page of it counts as ours."""

    def __init__(self, path: Path, task: Task, batch: int, heldout: int, channel: "Channel"):
        self._path, self._task, self._channel = path, task, channel
        self._rows = path.stat().st_size // (FLOAT * task.width)
        self.steps, self.batch, self.extra, self.heldout_rows = task.steps, batch, 0, heldout
        self._per_epoch = (self._rows - heldout) // batch
        self._buffer = np.empty((batch, task.width), np.float32)

    def __len__(self) -> int:
        """The number of steps."""
        return self.steps

    def __iter__(self):
        """Every batch once, whenever the channel says so."""
        for step in range(self.steps + self.extra):
            self._channel.stop()
            if step < self.steps:
                self._channel.wait()
            # The same buffer each time, as a trainer's window of activations would be.
            x = self.rows(step % self._per_epoch * self.batch, self._buffer)
            drawn = (x, x.flip(1)) if self._task.kind == "transcoder" else x
            self._channel.start()
            yield drawn

    def rows(self, start: int, into: np.ndarray) -> torch.Tensor:
        """Fill an array with the rows from `start` on."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(start * self._task.width * FLOAT)
            left = memoryview(into).cast("B")
            while len(left):
                left = left[file.readinto(left) :]
        return torch.from_numpy(into)

    def first(self) -> torch.Tensor:
        """The first batch."""
        return self.rows(0, np.empty_like(self._buffer))

    def heldout(self) -> torch.Tensor:
        """The last rows, which no batch has."""
        rows = np.empty((self.heldout_rows, self._task.width), np.float32)
        return self.rows(self._rows - self.heldout_rows, rows)


class Channel:
    """Commands, answers and the clocks."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever a peer prints goes to the log
        self._allowed, self._owed, self._since = 0, False, (0.0, 0.0)
        self._cpu: list[float] = []
        self._wall: list[float] = []
        self.serve = lambda command: {}

    def say(self, **answer: object) -> None:
        """Send one answer."""
        self._answers.write(json.dumps(answer) + "\n")

    def start(self) -> None:
        """The trainer has its batch: let the clocks run."""
        self._since = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """The trainer wants its next batch: note what the last one took."""
        self._cpu.append(time.process_time() - self._since[0])
        self._wall.append(time.perf_counter() - self._since[1])

    def wait(self) -> None:
        """Return when a step is to be made."""
        if self._allowed == 0:
            self._listen()
        self._allowed -= 1

    def finish(self) -> None:
        """The run is over: answer what is still asked, until the end."""
        self._allowed = 0
        while True:
            self._listen()

    def _listen(self) -> None:
        """Answer the last command for steps, then others, until there is one for steps again."""
        if self._owed:
            self.say(cpu=self._cpu, wall=self._wall)
            self._cpu, self._wall, self._owed = [], [], False
        while not self._owed:
            command = json.loads(sys.stdin.readline() or '{"do": "end"}')
            if command["do"] == "end":
                os._exit(0)
            if command["do"] == "steps":
                self._allowed, self._owed = command["n"], True
            else:
                self.say(**self.serve(command["do"]))


def main() -> None:
    """Build the contestant, train on command, answer."""
    asked = json.loads(sys.argv[1])
    channel, task = Channel(), Task(**asked["task"])
    torch.set_num_threads(1)
    data = Batches(Path(asked["vectors"]), task, asked["batch"], asked["heldout"], channel)
    module, builder, options = BUILDERS[asked["name"]]
    build = getattr(import_module(f"benchmarks.contestants.{module}"), builder)
    base = resident_before(module)
    contestant = build(data, task, **options)

    def serve(command: str) -> dict:
        return _memory(base) if command == "memory" else _score(contestant, data, task)

    channel.serve = serve
    channel.say(ready=True, torch=torch.__version__)
    channel.start()
    contestant.fit()
    channel.stop()
    channel.finish()


def _score(contestant, data: Batches, task: Task) -> dict:
    x = data.heldout()
    fired, left = torch.zeros(task.latents, dtype=torch.long), 0.0
    with torch.no_grad():
        for tile in x.split(2048):
            output, counts = contestant.apply(tile)
            target = tile.flip(1) if task.kind == "transcoder" else tile
            left += float((output - target).double().square().sum())
            fired += counts
    spread = float((x - x.mean(0)).double().square().sum())
    return {
        "fvu": left / spread,
        "l0": float(fired.sum()) / len(x),
        "dead": float((fired == 0).double().mean()),
    }


def resident_before(module: str) -> int:
    """Resident bytes once everything is imported and torch has multiplied in both precisions."""
    ours = ("ours", "plain", "hand_tuned")
    peer = None if module in ours else {"saelens": "sae_lens"}.get(module, module)
    if peer:
        import_module(peer)
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype, requires_grad=True)
        (a @ a).sum().backward()
    torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def _memory(base: int) -> dict:
    return {"base": base, "peak": resident("VmHWM")}


def resident(field: str) -> int:
    """Bytes that the kernel counts for this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    main()
