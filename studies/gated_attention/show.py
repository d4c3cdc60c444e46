"""The table of README.md and gated.png, from numbers.json.

python studies/gated_attention/show.py
"""

import json
from pathlib import Path

from matplotlib import pyplot as plt
from run import counts

HERE = Path(__file__).parent
LEAST = "of these, the start of which one head a place misses least"
ROWS = {
    "original": "original models, every seed tried",
    "gated": "2x heads, 8 starts a model",
    "gated, chosen": "of these, the start with the least loss",
    "no price": "2x heads, no penalty",
    "no gates": "2x heads, plain",
    "published start": "2x heads, half of the gates shut, penalty at once",
    "untrained": "2x heads, random weights",
    "wide": "4x heads, 8 starts a model",
    "wide, chosen by loss": "of these, the start with the least loss",
    "wide, chosen by missed": f"**{LEAST}**",
    "wide, no price": "4x heads, no penalty, 4 starts a model",
    "wide, no price, chosen by missed": LEAST,
    "original, fresh": "fresh original models, every seed tried",
    "wide, fresh models": "4x heads, 4 starts a fresh model",
    "wide, fresh models, chosen by loss": "of these, the start with the least loss",
    "wide, fresh models, chosen by missed": f"**{LEAST}**",
    "wide, fresh models, again": "and 4 starts more where that misses over .08",
}

DRAWN = {
    "original": "original",
    "no price": "2x heads, no penalty",
    "gated": "2x heads",
    "gated, chosen": "2x heads, least loss",
    "wide": "4x heads",
    "wide, chosen by missed": "4x heads, chosen",
    "original, fresh": "fresh original",
    "wide, fresh models, chosen by missed": "fresh, 4x heads, chosen",
}


def table() -> None:
    """Write the table of README.md between its marks."""
    page = HERE / "README.md"
    before, rest = page.read_text().split("<!-- table -->")
    after = rest.split("<!-- end -->")[1]
    lines = [
        "| task | what | learnt | localised | distributed | runs with all localised |",
        "|---|---|---|---|---|---|",
    ]
    for case, found in json.loads((HERE / "numbers.json").read_text()).items():
        for kind, said in ROWS.items():
            if (runs := runs_of(found, kind)) is not None:
                lines.append(f"| {case} | {said} | {_cells(runs)} |")
        for name, trigrams in found["hand-set"].items():
            some = _cells([{"trigrams": trigrams}]).rsplit("|", 1)[0]
            lines.append(f"| {case} | hand-set: {name} | {some}| |")
    inner = "\n".join(lines)
    page.write_text(f"{before}<!-- table -->\n{inner}\n<!-- end -->{after}")


def runs_of(found: dict, kind: str) -> list[dict] | None:
    """The runs of a kind, or those of them that were chosen by a number."""
    if kind in found:
        return found[kind]["runs"]
    whole, _, by = kind.rpartition(", ")
    chosen = found.get(whole, {}).get(by)
    return None if chosen is None else [found[whole]["runs"][n] for n in chosen]


def _cells(runs: list[dict]) -> str:
    number = counts(runs)
    total = sum(len(run["trigrams"]) for run in runs)
    learnt = f"{total - number['unlearnt']} of {total}"
    whole = f"{number['whole']} of {len(runs)}"
    if 1 < (models := len({run.get("model") for run in runs})) < len(runs):
        each = [counts([r for r in runs if r["model"] == m])["whole"] for m in range(models)]
        whole += f" ({', '.join(map(str, each))} of {len(runs) // models} by model)"
    return f"{learnt} | {number['localised']} | {number['distributed']} | {whole}"


def plot() -> None:
    found = json.loads((HERE / "numbers.json").read_text())
    figure, axes = plt.subplots(1, len(found), figsize=(2 + 3.2 * len(found), 3.6), sharey=True)
    for axis, (case, each) in zip(axes, found.items(), strict=True):
        runs = {kind: some for kind in DRAWN if (some := runs_of(each, kind)) is not None}
        here, base = list(runs), [0.0] * len(runs)
        for what, colour in (("localised", "#2a7"), ("distributed", "#d55"), ("unlearnt", "#bbb")):
            total = [sum(len(run["trigrams"]) for run in runs[kind]) for kind in here]
            share = [counts(runs[k])[what] / n for k, n in zip(here, total, strict=True)]
            axis.barh([DRAWN[kind] for kind in here], share, left=base, color=colour, label=what)
            base = [a + b for a, b in zip(base, share, strict=True)]
        axis.set_title(case)
        axis.set_xlabel("share of trigrams")
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(HERE / "gated.png", dpi=110)


if __name__ == "__main__":
    table()
    plot()
