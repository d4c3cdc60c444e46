"""The picture of the study: what each way to replace all attention costs, and which block costs."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TARGET = 0.06
INK, PALE = "#3b5b7a", "#c9c2b8"


def draw(numbers: dict[str, dict], path: Path) -> None:
    """Bars of all attention replaced, a panel a subject, and blocks one at a time below."""
    subjects = list(dict.fromkeys(one["subject"] for one in numbers.values()))
    figure, axes = plt.subplots(
        2, len(subjects), figsize=(4.6 * len(subjects), 6.4), layout="constrained", squeeze=False
    )
    for (upper, lower), subject in zip(axes.T, subjects, strict=True):
        mine = {one["run"]: one for one in numbers.values() if one["subject"] == subject}
        _whole(upper, subject, mine)
        _blocks(lower, mine)
    figure.savefig(path, dpi=110)


def _scores(run: dict) -> dict:
    return run.get("tuned", run["local"])


def _whole(axis, subject: str, runs: dict[str, dict]) -> None:
    bars: dict[str, tuple[float, tuple[float, float]]] = {}
    for name, run in runs.items():
        for group, found in _scores(run).items():
            shown = group in ("all", "whole z", "patterns only", "values only") or (
                name in ("features", "local") and group in ("rank", "untrained", "mean")
            )
            if shown and "ce_increase" in found:
                label = f"{name}: {group}" if group != "all" else name
                bars[label] = (found["ce_increase"], tuple(found["interval"]))
    names = list(bars)[::-1]
    values = [max(bars[n][0], 1e-4) for n in names]
    errors = [
        [max(0.0, v - bars[n][1][0]) for n, v in zip(names, values, strict=True)],
        [max(0.0, bars[n][1][1] - v) for n, v in zip(names, values, strict=True)],
    ]
    colours = [PALE if n.split(": ")[-1] in ("rank", "untrained", "mean") else INK for n in names]
    axis.barh(names, values, xerr=errors, color=colours, height=0.65, error_kw={"linewidth": 0.8})
    axis.axvline(TARGET, color="#b5651d", linewidth=0.8)
    axis.set(xscale="log", title=subject, xlabel="CE increase, nats/token (log)")


def _blocks(axis, runs: dict[str, dict]) -> None:
    for name, run in runs.items():
        blocks = {int(g[6:]): s for g, s in _scores(run).items() if g.startswith("block ")}
        if blocks:
            axis.plot(
                list(blocks), [s["ce_increase"] for s in blocks.values()], marker="o",
                markersize=3, linewidth=1, label=name,
            )  # fmt: skip
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set(xlabel="layer", ylabel="CE increase, one block replaced")
    axis.legend(frameon=False, fontsize=8)
