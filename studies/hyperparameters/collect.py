"""Train the grid: every cell's learning rate is climbed in factors of two to its best.

    python studies/hyperparameters/collect.py main
    python studies/hyperparameters/collect.py others

One line a run in cells-main.jsonl or cells-others.jsonl, made in an order that leaves something
useful whenever it is cut; the same command goes on where it stopped.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from worlds import GAUSSIAN, NAMES, PLANTED, WREN, data

from unweave.training.trial import Outcome, Trial, run_trials

HERE = Path(__file__).parent
MAIN = "wren-resid2-self"
WIDTHS, KS = (256, 512, 1024, 2048), (4, 8, 16, 32)
HELD_OUT = 4096
RATES = tuple(1e-3 * 2**j for j in range(-2, 8))
"""The grid of learning rates; a cell's climb starts in its middle."""
FIRST = 4


class Cell(NamedTuple):
    """A setting up to its learning rate."""

    part: str
    """What the cell is for: fit, heldout, batch, warmup, l1."""
    data: str
    n: int
    tokens: int
    k: int | None = None
    l1: float | None = None
    batch: int = 256
    warmup: float = 0.05
    seed: int = 0
    climb: bool = True

    def trial(self, rate: int) -> Trial:
        return Trial(
            n_latents=self.n,
            k=self.k,
            l1=self.l1,
            lr=RATES[rate],
            tokens=self.tokens,
            batch=self.batch,
            warmup=self.warmup,
            seed=self.seed,
        )


def cells() -> Iterator[Cell]:
    """All of them, the most needed first."""
    yield from main_cells()
    yield from other_cells()


def main_cells() -> Iterator[Cell]:
    """The site on which the law is fitted and held to a wider dictionary."""
    for n in WIDTHS:
        for k in KS:
            yield Cell("fit", MAIN, n, 2**16, k)
    for seed in (1, 2):
        for k in KS:
            yield Cell("heldout", MAIN, HELD_OUT, 2**16, k, seed=seed)
        if seed == 1:
            for n in WIDTHS:
                for k in KS:
                    yield Cell("fit", MAIN, n, 2**15, k)
    for n in (256, 1024):
        for k in (4, 16):
            yield Cell("fit", MAIN, n, 2**17, k)
    for batch in (128, 512, 1024):
        yield Cell("batch", MAIN, 512, 2**16, 16, batch=batch)
    for warmup in (0.0, 0.2):
        yield Cell("warmup", MAIN, 512, 2**16, 16, warmup=warmup)
    for l1 in (2.0, 5.0, 12.0):
        yield Cell("l1", MAIN, 512, 2**16, l1=l1)
    yield Cell("l1", MAIN, 1024, 2**16, l1=5.0)
    for seed in (1, 2):
        for k in (4, 16):
            yield Cell("heldout", MAIN, HELD_OUT, 2**17, k, seed=seed)


def other_cells() -> Iterator[Cell]:
    """The other data, on which only what depends on the data is measured."""
    others = [name for name in NAMES if name != MAIN]
    for name in others:
        for n, k in ((256, 4), (256, 16), (1024, 4), (1024, 16)):
            yield Cell("fit", name, n, 2**16, k)
    for l1 in (2.0, 5.0, 12.0):
        for name in ("wren-mlp3-self", "planted-uniform", "planted-wide"):
            yield Cell("l1", name, 512, 2**16, l1=l1)
    for seed in (1, 2):
        for name in ("wren-mlp3-self", "planted-zipf0.7"):
            yield Cell("heldout", name, HELD_OUT, 2**16, 8, seed=seed)
    for name in others:
        yield Cell("fit", name, 512, 2**15, 8)


class Store:
    """The outcomes so far, in memory and as lines of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[tuple[str, str, str], Outcome] = {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            row = json.loads(line)
            outcome = Outcome.model_validate(row["outcome"])
            self.found[row["part"], row["data"], outcome.trial.model_dump_json()] = outcome

    def get(self, cell: Cell, rate: int) -> Outcome | None:
        return self.found.get((cell.part, cell.data, cell.trial(rate).model_dump_json()))

    def run(self, cell: Cell, rates: list[int]) -> None:
        new = [cell.trial(rate) for rate in rates if self.get(cell, rate) is None]
        if not new:
            return
        source = data(cell.data)
        with self._path.open("a", encoding="utf-8") as file:
            for outcome in run_trials(new, source.train, source.heldout):
                key = cell.part, cell.data, outcome.trial.model_dump_json()
                self.found[key] = outcome
                row = {"part": cell.part, "data": cell.data, "outcome": outcome.model_dump()}
                file.write(json.dumps(row) + "\n")


def climb(cell: Cell, store: Store, start: int) -> int:
    """Best place in `RATES`, with both neighbours measured unless it is at an end of the grid."""
    low, high = max(0, start - 1), min(len(RATES) - 1, start + 1)
    while True:
        store.run(cell, list(range(low, high + 1)))
        losses = {rate: value(store.get(cell, rate)) for rate in range(low, high + 1)}
        best = min(losses, key=losses.__getitem__)
        if best == low and low > 0:
            low -= 1
        elif best == high and high < len(RATES) - 1:
            high += 1
        else:
            return best


def value(outcome: Outcome | None) -> float:
    if outcome is None or not outcome.fvu < float("inf"):
        return float("inf")
    return outcome.fvu


def main(group: str) -> None:
    torch.set_num_threads(1)
    store, began = Store(HERE / f"cells-{group}.jsonl"), time.monotonic()
    starts: dict[tuple[str, str], int] = {}
    everything = [cell for cell in cells() if (cell.data == MAIN) == (group == "main")]
    for number, cell in enumerate(everything, 1):
        if cell.part == "l1":
            store.run(cell, [FIRST - 1])
            continue
        kin = cell.part if cell.part in ("batch", "warmup") else "fit", cell.data
        best = climb(cell, store, starts.get(kin, FIRST))
        starts[kin] = best
        outcome = store.get(cell, best)
        assert outcome is not None
        print(
            f"{number}/{len(everything)} {time.monotonic() - began:.0f} s {cell.part} {cell.data}"
            f" n={cell.n} k={cell.k} T={cell.tokens} B={cell.batch}: lr {RATES[best]:g}"
            f" FVU {outcome.fvu:.4f} dead {outcome.dead:.3f}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    assert set(NAMES) == {*WREN, *PLANTED, GAUSSIAN}
    if sys.argv[1:] not in (["main"], ["others"]):
        sys.exit(__doc__)
    main(sys.argv[1])
