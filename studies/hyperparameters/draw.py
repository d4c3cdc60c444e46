"""The picture of the page: the law with its wider dictionaries, rules of the rate, and the data.

python studies/hyperparameters/draw.py
"""

import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from collect import HELD_OUT, KS, MAIN, WIDTHS
from read import HERE, best, by_cell, curve, outcomes

from unweave.training.laws.measured import measured

COLOURS = ("#b5651d", "#3b5b7a", "#5a7d4f", "#8a4f7d")


def main() -> None:
    cells, numbers = by_cell(outcomes()), measured()
    results = json.loads((HERE / "results.json").read_text())
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    widths = np.geomspace(WIDTHS[0], 2 * HELD_OUT, 40)
    for tokens, style in ((2**16, "-"), (2**17, ":")):
        for k, colour in zip(KS, COLOURS, strict=True):
            said = [numbers.law(n, k, tokens) for n in widths]
            label = f"k={k}" if tokens == 2**16 else None
            left.plot(widths, said, style, color=colour, linewidth=1, label=label)
    for key, runs in cells.items():
        if key.data == MAIN and key.part in ("fit", "heldout") and key.tokens >= 2**16:
            filled = COLOURS[KS.index(key.k)] if key.part == "fit" else "none"
            left.plot(
                key.n, best(runs).fvu, "o" if key.tokens == 2**16 else "s", markersize=5,
                markerfacecolor=filled, markeredgecolor=COLOURS[KS.index(key.k)],
            )  # fmt: skip
    left.set(yscale="log", xlabel="latents n", ylabel="held-out FVU")
    left.set_xscale("log", base=2)
    left.set_title("law (lines; dotted: 2^17 tokens); open: not in the fit", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    for n, colour in zip((256, 1024, HELD_OUT), COLOURS, strict=False):
        for key, runs in cells.items():
            if (key.data, key.n, key.k, key.tokens, key.batch) == (MAIN, n, 16, 2**16, 256):
                losses = sorted(curve(key, runs).losses.items())
                middle.plot(*zip(*losses, strict=True), "o-", color=colour, markersize=3)
        middle.plot([], [], "o-", color=colour, label=f"n={n}")
    middle.set(xlabel="learning rate", ylabel="held-out FVU")
    middle.set_xscale("log", base=2)
    middle.set_xticks([2e-3 * 2**j for j in range(5)], [f"{2e-3 * 2**j:g}" for j in range(5)])
    middle.set_title("k=16, 2^16 tokens: does the best rate move with n?", fontsize=9)
    middle.legend(frameon=False, fontsize=8)
    for name, found in results["data"]["table"].items():
        x, y = found["statistics"]["tails"][2], found["offset"]
        right.plot(x, y, "o", color=COLOURS[0 if name.startswith("wren") else 1], markersize=4)
        right.annotate(name, (x, y), fontsize=6, xytext=(3, 2), textcoords="offset points")
    right.set(xlabel="variance beyond 16 principal directions", ylabel="log FVU less the law's")
    right.set_title("how far other data lie from the law", fontsize=9)
    figure.savefig(HERE / "laws.png", dpi=110)


if __name__ == "__main__":
    main()
