"""numbers.json and the picture, of all runs there are."""

import json
from pathlib import Path

COLOURS = {"component": "#1b6ca8", "cross_layer": "#c0392b", "layers": "#2e8b57"}


def collect(here: Path) -> None:
    """Read runs/*.json; write numbers.json and constructions.png."""
    numbers: dict[str, dict] = {}
    besides: dict[str, object] = {}
    for path in sorted((here / "runs").glob("*.json")):
        name, *rest = path.name.removesuffix(".json").split(".")
        one = json.loads(path.read_text())
        if rest[1:] == ["edges"] or rest == ["paired"]:
            besides[".".join((name, *rest))] = one
        else:
            numbers.setdefault(name, {})[one.pop("arm")] = one
    (here / "numbers.json").write_text(json.dumps({**numbers, "besides": besides}, indent=1) + "\n")
    draw(numbers, here / "constructions.png")


def draw(numbers: dict[str, dict], path: Path) -> None:
    """CE increase against active features per token and against parameters."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of = (
        ("active features per token", lambda one: one["length"]["active"]),
        ("bits per token", lambda one: one["length"]["bits"]),
        ("parameters", lambda one: one["parameters"]),
    )
    figure, axes = plt.subplots(1, len(axes_of), figsize=(12, 4.2), sharey=True)
    for axis, (label, x_of) in zip(axes, axes_of, strict=True):
        for arms in numbers.values():
            for name, one in arms.items():
                mode = "propagated" if "propagated" in one else "exact_patterns"
                score, x = one[mode], x_of(one)
                low, high = score["interval"]
                rise = score["ce_increase"]
                hollow = mode == "exact_patterns" or name.endswith("own_attention")
                colour = COLOURS[name.split("-")[0]]
                axis.errorbar(
                    x, rise, yerr=[[rise - low], [high - rise]], fmt="o", color=colour,
                    mfc="white" if hollow else colour, capsize=2,
                )  # fmt: skip
                label_of = f"{name}, {one['settings']['joint'] // 1000}k tokens"
                axis.annotate(
                    label_of, (x, rise), textcoords="offset points", xytext=(5, 4), size=7
                )
        axis.set_xlabel(label)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        if label == "parameters":
            axis.set_xscale("log")
    axes[0].set_ylabel("CE increase, nats per token (propagated)")
    figure.suptitle("filled: patterns from features; hollow: the subject's own patterns")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
