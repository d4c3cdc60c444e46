"""Tables and a plot of numbers.json: python studies/programs/report.py

Puts the tables between the marks in README.md and draws squeeze.png.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
METHODS = (
    "patching", "gradient", "weights", "attention", "pairs, exact", "pairs, EAP", "pairs, EAP-IG",
)  # fmt: skip
SOFTENED = ("patching", "gradient", "pairs, exact", "pairs, EAP", "pairs, EAP-IG")
Entries = dict[str, dict[str, Any]]


def main() -> None:
    numbers = json.loads((HERE / "numbers.json").read_text())
    tables = {
        "edges": edges(numbers["edges"]),
        "sharpness": sharpness(numbers["sharpness"]),
        "tracr": tracr(numbers["tracr"]),
        "squeeze": squeeze(numbers["squeeze"]),
        "trigrams": trigrams(numbers["trigrams"]),
    }
    page = (HERE / "README.md").read_text()
    for name, table in tables.items():
        mark = re.compile(rf"<!-- {name} -->.*?<!-- end of {name} -->", re.DOTALL)
        assert mark.search(page), name
        page = mark.sub(f"<!-- {name} -->\n\n{table}\n\n<!-- end of {name} -->", page)
    (HERE / "README.md").write_text(page)
    draw(numbers["squeeze"])


def by_case(entries: Entries) -> dict[str, list[dict[str, Any]]]:
    """Entries of all seeds together, by what stands before the seed."""
    found = defaultdict(list)
    for name, entry in entries.items():
        found[re.sub(r", seed \d+$", "", name)].append(entry)
    return dict(sorted(found.items(), key=lambda case: order(case[0])))


def order(name: str) -> tuple[str, float]:
    """Programs by name, then widths or nats from high to low."""
    title, _, number = name.rpartition(", ")
    known = re.fullmatch(r"[\d.]+", number)
    return (title, -float(number)) if known else (name, 0.0)


def spread(values: Iterable[float], places: int = 2) -> str:
    known = list(values)
    if len(known) < 2:
        return f"{known[0]:.{places}f}" if known else "–"
    return f"{mean(known):.{places}f} ± {stdev(known):.{places}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def edges(entries: Entries) -> str:
    rows = []
    for name, runs in by_case(entries).items():
        first = runs[0]
        row = [name, spread(run["accuracy"] for run in runs)]
        row.append(f"{first['true_edges']} of {first['edges']}")
        row += [f"{spread(run['methods'][method]['auroc'] for run in runs)}" for method in METHODS]
        rows.append([*row, f"{first['random_auroc']:.2f} ± {first['random_auroc_sd']:.2f}"])
    means = [
        f"{mean(run['methods'][method]['auroc'] for run in entries.values()):.2f}"
        for method in METHODS
    ]
    shares = [
        f"{mean(run['methods'][method]['precision'] for run in entries.values()):.2f}"
        for method in METHODS
    ]
    chance = mean(run["chance"] for run in entries.values())
    rows.append(["**mean**", "", "", *means, "0.50"])
    rows.append(["precision", "", "", *shares, f"{chance:.2f}"])
    return table(["program", "accuracy", "true edges", *METHODS, "random order"], rows)


def sharpness(entries: Entries) -> str:
    rows = []
    for name, runs in by_case(entries).items():
        program, nats = name.rsplit(", ", 1)
        row = [program, nats, spread(run["accuracy"] for run in runs)]
        row += [spread(run["methods"][m]["auroc"] for run in runs) for m in SOFTENED]
        rows.append(row)
    return table(["program", "nats", "accuracy", *SOFTENED], rows)


def tracr(entries: Entries) -> str:
    deep = {name: e for name, e in entries.items() if e["edges"] > 13}
    rows = []
    for title, some in (
        ("one block, one head", {k: entries[k] for k in entries if k not in deep}),
        ("deeper", deep),
    ):
        row = [title, str(len(some)), str(sum(e["examples"] for e in some.values()))]
        row += [str(sum(e["wrong"] for e in some.values()))]
        row += [str(sum(e["components_agree"] for e in some.values()))]
        for method in METHODS[:4]:
            row.append(spread((e["methods"][method]["auroc"] for e in some.values()), 3))
        rows.append(row)
    head = ["networks", "how many", "examples", "wrong", "components as stated", *METHODS[:4]]
    return table(head, rows)


def squeeze(entries: Entries) -> str:
    rows = []
    for name, runs in by_case(entries).items():
        first = runs[0]
        row = [name.rsplit(", ", 1)[0], f"{first['directions']}", f"{first['width']}"]
        row += [spread(run[key] for run in runs) for key in ("accuracy", "untrained")]
        row.append(spread(run["interference"]["nearest"] for run in runs))
        for key in ("fvu", "value_f1", "value_cosine", "mmcs", "mmcs_reverse"):
            both = [[run[c][key] for run in runs if c in run] for c in ("topk", "random")]
            row.append(" / ".join(spread(values) for values in both))
        rows.append(row)
    head = ["program", "directions", "width", "accuracy", "W untrained", "nearest cosine", "FVU"]
    head += ["F1 of values", "cosine of differences", "MMCS", "MMCS reverse"]
    return table(head, rows)


def trigrams(entries: Entries) -> str:
    rows = []
    for name, runs in by_case(entries).items():
        verdicts = [v for run in runs for v in run["verdicts"]]
        own = [max(v["evidence"]) for v in verdicts if v["heads"]]
        shared = [v for v in verdicts if not v["heads"]]
        row = [name]
        for key in ("learnt", "localised", "distributed"):
            row.append(", ".join(str(run[key]) for run in runs))
        row += [spread(own), ", ".join(f"{v['accuracy']:.3f}" for v in shared)]
        rows.append([*row, ", ".join(f"{max(v['evidence']):.2f}" for v in shared)])
    head = ["model", "learnt", "localised", "distributed", "evidence in the own head"]
    head += ["of the others: accuracy", "largest share of the evidence"]
    return table(head, rows)


def draw(entries: Entries) -> None:
    cases = by_case(entries)
    names = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in cases))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for name in names:
        own = [
            (float(case.rsplit(", ", 1)[1]), runs)
            for case, runs in cases.items()
            if case.rsplit(", ", 1)[0] == name
        ]
        shares = [share for share, _ in own]
        axes[0].plot(
            shares, [mean(r["accuracy"] for r in runs) for _, runs in own], "o-", ms=4, label=name
        )
        if len(own) < 2:
            continue
        line = axes[1].plot(
            shares,
            [mean(r["topk"]["value_f1"] for r in runs) for _, runs in own],
            "o-",
            ms=4,
            label=name,
        )[0]
        axes[1].plot(
            shares,
            [mean(r["random"]["value_f1"] for r in runs) for _, runs in own],
            "o:",
            ms=3,
            color=line.get_color(),
        )
        axes[2].plot(
            shares,
            [mean(r["interference"]["nearest"] for r in runs) for _, runs in own],
            "o-",
            ms=4,
        )
    for axis, title in zip(
        axes,
        (
            "accuracy",
            "F1 of values (dotted: random directions)",
            "cosine with the nearest other direction",
        ),
        strict=True,
    ):
        axis.set(xlabel="dimensions / directions", title=title, ylim=(0, 1.03))
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(HERE / "squeeze.png", dpi=110)


if __name__ == "__main__":
    main()
