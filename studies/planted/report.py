"""Make numbers.json, recovery.png and the tables of README.md from runs.jsonl.

python studies/planted/report.py
"""

import json
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
from parts import CLASSICAL, TRAINED
from run import FRONTIER, FRONTIER_L0, chosen_rates, done

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FIELDS = (
    "l0", "fvu", "gamma", "alive", "mmcs", "mmcs_reverse", "found", "recall", "precision",
    "duplicates", "spurious", "f1", "slope", "absorption", "parent_missed", "weight", "seconds",
)  # fmt: skip
BETWEEN = ("l0", "fvu", "alive", "recall", "precision", "duplicates", "spurious", "slope")
ORDER = [*TRAINED, *CLASSICAL, "control: untrained", "ceiling: the truth + OMP"]
LEVELS = (0.1, 0.2, 0.3)
"""FVU at which penalties are compared."""

FREE_RATE = ("tune", "copies")
"""Stages that choose rates of their own."""

Line = dict[str, Any]
Numbers = dict[str, Any]


def main() -> None:
    rates = chosen_rates()
    lines = [n for n in done() if n["stage"] in FREE_RATE or n["rate"] == rates.get(n["part"])]
    numbers = {
        "rates": {f"{n['part']} @ {n['rate']}": n["fvu"] for n in lines if n["stage"] == "tune"},
        "worlds": {
            world: summary([n for n in of(lines, "main", "apart", "slow") if n["world"] == world])
            for world in sorted({n["world"] for n in of(lines, "main", "apart")})
        },
        "frontier": {
            f"{part} @ L0 {k}": found
            for k in FRONTIER_L0
            for part, found in summary([n for n in of(lines, "frontier") if n["k"] == k]).items()
        },
        "at_equal_fvu": {str(level): at_level(lines, level) for level in LEVELS},
        "copies": by(of(lines, "copies"), "rate", "steps"),
        "width": by(of(lines, "width"), "latents"),
    }
    text = re.sub(
        r"\[\s+([^\[\]]+?)\s+\]",
        lambda m: f"[{' '.join(m[1].split())}]",
        json.dumps(numbers, indent=1),
    )
    (HERE / "numbers.json").write_text(text + "\n")
    draw(numbers, HERE / "recovery.png")
    tables = {"all": parts_table(numbers["worlds"]["all"]), "frontier": penalty_table(numbers)}
    tables["apart"] = worlds_table(numbers["worlds"])
    tables |= {name: short_table(numbers[name]) for name in ("copies", "width")}
    fill(HERE / "README.md", tables)


def of(lines: list[Line], *stages: str) -> list[Line]:
    return [line for line in lines if line["stage"] in stages]


def summary(lines: list[Line]) -> Numbers:
    """Per part the number of seeds, and mean and standard deviation over them of every field."""
    parts = defaultdict(list)
    for line in lines:
        parts[line["part"]].append(line)
    return {
        part: {"seeds": len(parts[part])} | {f: spread([n[f] for n in parts[part]]) for f in FIELDS}
        for part in ORDER
        if part in parts
    }


def by(lines: list[Line], *fields: str) -> Numbers:
    """Summaries apart by some fields, by names that say which."""
    kinds = sorted({tuple(n[f] for f in fields) for n in lines})
    return {
        ", ".join([part, *(f"{f} {v}" for f, v in zip(fields, kind, strict=True))]): found
        for kind in kinds
        for part, found in summary(
            [n for n in lines if tuple(n[f] for f in fields) == kind]
        ).items()
    }


def spread(values: list[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = stdev(known) if len(known) > 1 else 0.0
    return [round(mean(known), 4), round(sd, 4)]


def at_level(lines: list[Line], level: float) -> Numbers:
    """Per penalty what it takes to reach an FVU, between the L0 that were run, seed by seed."""
    runs = defaultdict(list)
    for line in of(lines, "frontier"):
        runs[line["part"], line["seed"]].append(line)
    found = defaultdict(list)
    for (part, _), points in runs.items():
        points.sort(key=lambda n: n["fvu"])
        for better, worse in pairwise(points):
            if better["fvu"] <= level <= worse["fvu"]:
                t = (level - better["fvu"]) / (worse["fvu"] - better["fvu"])
                found[part].append({f: (1 - t) * better[f] + t * worse[f] for f in BETWEEN})
                break
    return {
        part: {"seeds": len(found[part])}
        | {f: spread([n[f] for n in found[part]]) for f in BETWEEN}
        for part in FRONTIER
        if part in found
    }


def say(pair: list[float] | None, digits: int = 2) -> str:
    if pair is None:
        return "–"
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def head(*names: str) -> list[str]:
    return [row(*names), "|" + "---|" * len(names)]


def parts_table(found: Numbers) -> str:
    rows = head(
        "part", "seeds", "L0", "FVU", "latents that fire", "found", "precision", "duplicates",
        "spurious", "MMCS", "F1", "slope", "parent silent: with child / alone",
    )  # fmt: skip
    for part, n in found.items():
        rows.append(
            row(
                part,
                str(n["seeds"]),
                say(n["l0"], 1),
                say(n["fvu"], 3),
                say(n["alive"], 0),
                say(n["recall"]),
                say(n["precision"]),
                say(n["duplicates"], 0),
                say(n["spurious"], 0),
                say(n["mmcs"]),
                say(n["f1"]),
                say(n["slope"]),
                f"{say(n['absorption'])} / {say(n['parent_missed'])}",
            )
        )
    return "\n".join(rows)


def penalty_table(numbers: Numbers) -> str:
    names = ("seeds", "L0", "FVU", "latents that fire", "found", "duplicates", "spurious", "slope")
    rows = head("penalty", "held equal", *names)

    def add(part: str, equal: str, n: Numbers) -> None:
        rows.append(
            row(
                part,
                equal,
                str(n["seeds"]),
                say(n["l0"], 1),
                say(n["fvu"], 3),
                say(n["alive"], 0),
                say(n["recall"]),
                say(n["duplicates"], 0),
                say(n["spurious"], 0),
                say(n["slope"]),
            )
        )

    for part in FRONTIER:
        if (n := numbers["frontier"].get(f"{part} @ L0 4")) is not None:
            add(part, "L0 = 4", n)
    for level in LEVELS:
        for part, n in numbers["at_equal_fvu"][str(level)].items():
            add(part, f"FVU = {level}", n)
    return "\n".join(rows)


def worlds_table(worlds: Numbers) -> str:
    shown = [world for world in ("zipf", "pairs", "families", "all") if world in worlds]
    rows = head("part", *(f"{world}: found / duplicates / spurious" for world in shown))
    for part in ORDER:
        cells = []
        for world in shown:
            n = worlds[world].get(part)
            numbers = n and (n["recall"][0], n["duplicates"][0], n["spurious"][0])
            cells.append("–" if not numbers else "{:.2f} / {:.0f} / {:.0f}".format(*numbers))
        if any(cell != "–" for cell in cells):
            rows.append(row(part, *cells))
    return "\n".join(rows)


def short_table(found: Numbers) -> str:
    names = ("seeds", "L0", "FVU", "latents that fire", "found", "duplicates", "slope", "weight")
    rows = head("penalty", *names)
    for name, n in sorted(found.items()):
        rows.append(
            row(
                name,
                str(n["seeds"]),
                say(n["l0"], 1),
                say(n["fvu"], 3),
                say(n["alive"], 0),
                say(n["recall"]),
                say(n["duplicates"], 0),
                say(n["slope"]),
                say(n["weight"]),
            )
        )
    return "\n".join(rows)


def draw(numbers: Numbers, path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    for part in FRONTIER:
        points = [numbers["frontier"].get(f"{part} @ L0 {k}") for k in FRONTIER_L0]
        points = [n for n in points if n is not None]
        for axis, field in ((left, "l0"), (middle, "alive")):
            axis.errorbar(
                [n["fvu"][0] for n in points],
                [n[field][0] for n in points],
                xerr=[n["fvu"][1] for n in points],
                yerr=[n[field][1] for n in points],
                label=part,
                marker="o",
                markersize=3,
                linewidth=1,
            )
    left.set(xlabel="FVU", ylabel="L0", title="penalties: active latents for a reconstruction")
    middle.set(xlabel="FVU", ylabel="latents that fire", title="... and dictionary that it takes")
    middle.axhline(128, color="grey", linewidth=0.8, linestyle="--")
    middle.annotate("planted", (0.02, 128), xycoords=("axes fraction", "data"), va="bottom")
    left.legend(frameon=False, fontsize=8)
    bars(right, numbers["worlds"]["all"])
    figure.savefig(path, dpi=100)


def bars(axis: Any, found: Numbers) -> None:
    """What the latents that fire are: matched, duplicates, in between, spurious."""
    names, start = list(found)[::-1], [0.0] * len(found)
    kinds = {"matched": "#3b7a57", "duplicates": "#b5651d", "in between": "#c9c9c9"}
    for kind, colour in (kinds | {"spurious": "#8b1e3f"}).items():
        widths = [kinds_of(found[name])[kind] for name in names]
        axis.barh(names, widths, left=start, color=colour, label=kind, height=0.7)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axis.axvline(128, color="grey", linewidth=0.8, linestyle="--")
    axis.set(xlabel="latents that fire", title="what they are (Zipf, pairs, families at once)")
    axis.tick_params(axis="y", labelsize=8)
    axis.legend(frameon=False, fontsize=8)


def kinds_of(n: Numbers) -> dict[str, float]:
    matched = n["recall"][0] * 128
    known = {
        "matched": matched,
        "duplicates": n["duplicates"][0],
        "spurious": n["spurious"][0],
    }
    return known | {"in between": max(0.0, n["alive"][0] - sum(known.values()))}


def fill(path: Path, tables: dict[str, str]) -> None:
    """Put each table between its marks."""
    text = path.read_text()
    for name, table in tables.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        block = re.compile(f"{marks[0]}.*?{marks[1]}", re.DOTALL)
        text = block.sub(lambda _, m=marks, t=table: f"{m[0]}\n\n{t}\n\n{m[1]}", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
