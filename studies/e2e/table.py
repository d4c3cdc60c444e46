"""Turn results.jsonl into the tables of README.md and the pictures.

    python studies/e2e/table.py

Tables stand in README.md between marks, and are replaced there.
"""

import itertools
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLOURS = {"local": "#777777", "e2e": "#b5651d", "e2e+ds": "#3b5b7a"}
Line = dict


def read() -> list[Line]:
    return [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]


def at(curve: list[Line], x: str, y: str, wanted: float) -> float | None:
    """The y of a curve of local dictionaries at a given x, by interpolation of logarithms; None
    where the curve does not reach."""
    points = sorted((line[x], line[y]) for line in curve if line[x] > 0 and line[y] > 0)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= wanted <= x1:
            share = math.log(wanted / x0) / math.log(x1 / x0)
            return y0 * (y1 / y0) ** share
    return None


def compared(lines: list[Line]) -> list[str]:
    """One row per end-to-end dictionary beside the local curve of its site, seed and tokens."""
    rows = [
        "| subject, layer, seed | kind | L0 | alive | CE increase | local at equal L0 | ratio "
        "| local's L0 at equal CE increase | ratio | L2 ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        if line["kind"] in ("local", "random"):
            continue
        curve = [
            other
            for other in lines
            if other["kind"] == "local"
            and all(
                other[k] == line[k] for k in ("subject", "layer", "seed", "activation", "times")
            )
        ]
        same_l0 = at(curve, "l0", "ce_increase", line["l0"])
        same_l0 = same_l0 or next(
            (o["ce_increase"] for o in curve if o["weight"] == line["weight"] == line["l0"]), None
        )
        same_ce = at(curve, "ce_increase", "l0", line["ce_increase"])
        rows.append(
            f"| {line['subject']} {line['layer']}, {line['seed']} | {named(line)} "
            f"| {line['l0']:.1f} | {line['alive']:.0%} | {interval(line)} "
            f"| {shown(same_l0)} | {ratio(line['ce_increase'], same_l0)} "
            f"| {shown(same_ce, 1)} | {ratio(same_ce, line['l0'])} | {line['l2_ratio']:.2f} |"
        )
    return rows


def named(line: Line) -> str:
    sparse = (
        f"L1 {line['weight']:g}" if line["activation"] == "relu" else f"TopK {line['weight']:g}"
    )
    return f"{line['kind']}, {sparse}" + (f", x{line['times']}" if line["times"] > 1 else "")


def interval(line: Line) -> str:
    low, high = line["ce_increase_ends"]
    return f"{line['ce_increase']:.3f} ({low:.3f}-{high:.3f})"


def shown(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def ratio(above: float | None, below: float | None) -> str:
    return "-" if above is None or below is None else f"{above / below:.2f}"


def everything(lines: list[Line]) -> list[str]:
    """All lines with all that is measured."""
    rows = [
        "| subject, layer, seed | kind | L0 | alive | CE increase | KL | top-1 "
        "| recovered (zero / mean) | FVU (normed) | L2 ratio | gamma | later sites | CPU s |",
        "|---" * 13 + "|",
    ]
    for line in sorted(lines, key=lambda o: (o["subject"], o["layer"], o["seed"])):
        down = " ".join(f"{x:.2f}" for x in line["downstream"][:4])
        rows.append(
            f"| {line['subject']} {line['layer']}, {line['seed']} | {named(line)} "
            f"| {line['l0']:.1f} | {line['alive']:.0%} | {line['ce_increase']:.3f} "
            f"| {line['kl']:.3f} | {line['top1_agreement']:.2f} "
            f"| {line['recovered_zero']:.3f} / {line['recovered_mean']:.3f} "
            f"| {line['fvu']:.3f} ({line['fvu_normalised']:.3f}) | {line['l2_ratio']:.2f} "
            f"| {line['gamma']:.2f} | {down} | {line['cpu_seconds']:.0f} |"
        )
    return rows


def draw(lines: list[Line]) -> None:
    places = sorted({(line["subject"], line["layer"]) for line in lines})
    figure, axes = plt.subplots(
        1, len(places), figsize=(3.6 * len(places), 3.4), layout="constrained", squeeze=False
    )
    for axis, place in zip(axes[0], places, strict=True):
        here = [line for line in lines if (line["subject"], line["layer"]) == place]
        curves = defaultdict(list)
        for line in here:
            if line["kind"] in COLOURS and line["times"] == 1 and line["l0"] > 1:
                curves[line["kind"], line["activation"], line["seed"]].append(line)
        for (kind, activation, seed), curve in curves.items():
            points = sorted((line["l0"], line["ce_increase"]) for line in curve)
            style = "o-" if activation == "relu" else "s--"
            label = f"{kind}, {'L1' if activation == 'relu' else 'TopK'}" if not seed else None
            axis.plot(
                *zip(*points, strict=True), style, color=COLOURS[kind], ms=4, lw=1, label=label
            )
        for line in here:
            if line["times"] > 1 or line["kind"].startswith("local>"):
                mark = "*" if line["times"] > 1 else "^"
                colour = "#777777" if line["kind"] == "local" else "#6a994e"
                label = named(line) if not line["seed"] else None
                axis.plot(line["l0"], line["ce_increase"], mark, color=colour, ms=7, label=label)
        axis.set(
            xscale="log", yscale="log", xlabel="L0", title=f"{place[0]}, before block {place[1]}"
        )
        axis.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
        axis.minorticks_off()
    axes[0][0].set_ylabel("CE increase, nats/token")
    axes[0][-1].legend(frameon=False, fontsize=6)
    figure.savefig(HERE / "curves.png", dpi=110)


def main() -> None:
    lines = read()
    text = (HERE / "README.md").read_text()
    for name, rows in (("compared", compared(lines)), ("everything", everything(lines))):
        new = f"<!-- {name} -->\n" + "\n".join(rows) + f"\n<!-- end {name} -->"
        text = re.sub(f"<!-- {name} -->.*<!-- end {name} -->", lambda _, n=new: n, text, flags=re.S)
    (HERE / "README.md").write_text(text)
    draw(lines)


if __name__ == "__main__":
    main()
