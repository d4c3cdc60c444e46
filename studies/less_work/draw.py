"""The table and the picture of results.jsonl: held-out FVU against CPU seconds, arm by arm.

python studies/less_work/draw.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


def main() -> None:
    lines = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    raced = [line for line in lines if "curve" in line]
    sets = list(dict.fromkeys((line["kind"], line["n"], line["seed"]) for line in raced))
    figure, panels = plt.subplots(1, len(sets), figsize=(6 * len(sets), 4.6), squeeze=False)
    for panel, key in zip(panels[0], sets, strict=True):
        mine = [line for line in raced if (line["kind"], line["n"], line["seed"]) == key]
        print(table(mine, key))
        for place, line in enumerate(mine):
            seconds, values = zip(*line["curve"], strict=True)
            style = {"color": "black", "linewidth": 2.5} if line["arm"] == "plain" else {}
            style |= {} if style else {"color": f"C{place % 10}", "linestyle": "-:"[place > 9]}
            panel.plot(seconds, values, marker="o", markersize=3, label=line["arm"], **style)
        panel.set(title=f"{key[0]}, n = {key[1]}", xlabel="CPU seconds", ylabel="held-out FVU")
        low, high = (pick(v for line in mine for _, v in line["curve"][1:]) for pick in (min, max))
        panel.set(yscale="log", ylim=(0.95 * low, 1.05 * high))
        panel.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(HERE / "less_work.png", dpi=110)
    for line in lines:
        if "costs_only" in line:
            of = "without AuxK" if line.get("no_auxk") else "with AuxK"
            print(line["n"], line["batch"], of, line["arm"], f"{line['step_ms']:.0f} ms")


def table(lines: list[dict], key: tuple) -> str:
    plain = next(line for line in lines if line["arm"] == "plain")
    rows = [
        f"\n**{key[0]}, n = {key[1]}, batch {plain['batch']}, seed {key[2]}**\n",
        "| | ms a step | steps | CPU seconds | FVU | found | alive | recall | s to plain's FVU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        reached = [s for s, value in line["curve"] if value <= plain["fvu"]]
        cells = [
            line["arm"],
            f"{line['step_ms']:.0f}",
            line["steps"],
            f"{line['cpu_seconds']:.1f}",
            f"{line['fvu']:.4f}",
            "" if line["found"] is None else f"{line['found']:.1%}",
            f"{line['alive']:.1%}",
            "" if line["recall"] is None else f"{line['recall']:.1%}",
            f"{reached[0]:.1f}" if reached else "not",
        ]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
