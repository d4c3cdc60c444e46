"""The collected runs as curves over the learning rate, by what they were for."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from unweave.training.laws.scaling import Point
from unweave.training.laws.transfer import RateCurve
from unweave.training.trial import Outcome

HERE = Path(__file__).parent


class Key(NamedTuple):
    part: str
    data: str
    n: int
    k: int
    tokens: int
    batch: int
    warmup: float
    seed: int


def outcomes() -> list[tuple[str, str, Outcome]]:
    rows = []
    for group in ("main", "others"):
        for line in (HERE / f"cells-{group}.jsonl").read_text().splitlines():
            row = json.loads(line)
            rows.append((row["part"], row["data"], Outcome.model_validate(row["outcome"])))
    return rows


def by_cell(rows: list[tuple[str, str, Outcome]]) -> dict[Key, dict[float, Outcome]]:
    """TopK runs by everything but the learning rate, cells climbed to the end alone."""
    cells: dict[Key, dict[float, Outcome]] = defaultdict(dict)
    for part, data, o in rows:
        t = o.trial
        if t.k is not None and o.fvu < float("inf"):
            key = Key(part, data, t.n_latents, t.k, t.tokens, t.batch, t.warmup, t.seed)
            cells[key][t.lr] = o
    return {key: runs for key, runs in cells.items() if len(runs) >= 3}


def curve(key: Key, runs: dict[float, Outcome]) -> RateCurve:
    losses = {rate: o.fvu for rate, o in runs.items()}
    return RateCurve(key.n, key.k, key.tokens, key.batch, losses)


def best(runs: dict[float, Outcome]) -> Outcome:
    return min(runs.values(), key=lambda o: o.fvu)


def point(key: Key, runs: dict[float, Outcome]) -> Point:
    """The best measured run of a cell: what was reached, not what a parabola says."""
    return Point(key.n, key.k, key.tokens, best(runs).fvu)
