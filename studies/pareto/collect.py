"""Numbers, pictures and tables of the study, from what `run.py` left in its store.

python studies/pareto/collect.py STORE
"""

import json
import sys
from pathlib import Path

from unweave.artifact.measurements import Measurement, read_measurements
from unweave.artifact.pictures import plotting, save_picture
from unweave.artifact.scores import Interval
from unweave.report.draw.fronts import draw_fronts, family
from unweave.validate.fronts import (
    SHORTEST,
    Point,
    Reference,
    Which,
    fronts_of,
    hypervolume,
    points_of,
)

HERE = Path(__file__).parent
PLOTS = ("wren", "transcoders", "everything", "smollm2")
MAPS = ("wren", "smollm2")
OURS = ("dictionary", "transcoder", "decompiled")


def main(store: Path) -> None:
    numbers: dict = {}
    tables = []
    for phase in PLOTS:
        if (store / phase / "measurements.json").is_file():
            numbers[phase], table = plot(store / phase, phase)
            tables.append(table)
    for name in MAPS:
        path = store / f"maps-{name}" / "maps.json"
        if path.is_file():
            found = json.loads(path.read_text())
            numbers[f"maps-{name}"] = found
            tables.append(maps_table(name, found))
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    (HERE / "tables.md").write_text("# All numbers\n\n" + "\n\n".join(tables) + "\n")
    draw_maps({n: numbers[f"maps-{n}"] for n in MAPS if f"maps-{n}" in numbers})


def plot(folder: Path, phase: str) -> tuple[dict, str]:
    found = read_measurements(folder / "measurements.json")
    old = json.loads((folder / "fronts.json").read_text())["fronts"]["mathematical"]
    reference = Reference(old["reference_length"], old["reference_loss"])
    fronts = fronts_of(found, reference)
    draw_fronts(found, fronts, [HERE / f"{phase}.png"])
    rows = [row(method, found.methods) for method in found.methods]
    numbers = {
        "subject": found.subject.name, "place": found.place, "mode": found.mode,
        "text": found.text.model_dump(), "amortised_over": found.amortised_over,
        "rivals_seed": found.seed, "reference": reference._asdict(),
        "fronts": {which: front.model_dump(mode="json") for which, front in fronts.items()},
        "hypervolume_by_family": by_family(found.methods, reference),
        "methods": rows,
    }  # fmt: skip
    return numbers, table(f"{phase}: {found.subject.name}, {found.place}", rows)


def by_family(methods: list[Measurement], reference: Reference) -> dict:
    """What each family conquers alone, controls too."""
    families: dict[str, list[Measurement]] = {}
    for method in methods:
        families.setdefault(family(method.name), []).append(method)
    return {
        name: {
            which: {
                axis: round(hypervolume(points_of(members, which), at(reference, which), axis), 4)
                for axis in ("log", "linear")
            }
            for which in SHORTEST
        }
        for name, members in families.items()
    }


def at(reference: Reference, which: Which) -> Reference:
    return reference._replace(shortest=SHORTEST[which])


def row(method: Measurement, methods: list[Measurement]) -> dict:
    """A method's numbers, and how it stands beside the dictionaries that we trained."""
    ours = [m for m in methods if m.kind in OURS and m.name != method.name]
    mine = {
        "name": method.name, "kind": method.kind,
        "l0": method.more["l0"].value, "latents": method.more["latents"].value,
        "value_bits": method.more["value_bits"].value,
        "math_length": method.math_length.value, "math_loss": ends(method.math_loss),
        "ce_increase": ends(method.more["ce_increase"]),
        "semantic_length": method.semantic_length.value,
        "semantic_loss": ends(method.semantic_loss),
        "semantic_loss_shuffled": method.controls["semantic_loss_shuffled"].value,
        "semantic_share": method.semantic_share.value,
        "semantic_share_shuffled": method.controls["semantic_share_shuffled"].value,
    }  # fmt: skip
    for which, name in (("mathematical", "math"), ("semantic", "words")):
        (point,), others = points_of([method], which), points_of(ours, which)
        mine[f"{name}_too_long"], mine[f"{name}_too_inaccurate"] = beside(point, others)
    return mine


def beside(point: Point, ours: list[Point]) -> tuple[float | None, float | None]:
    """Its length over that of the shortest of ours as accurate; its loss over the best as short."""
    lengths = [o.length for o in ours if o.loss <= point.loss]
    losses = [o.loss for o in ours if o.length <= point.length]
    return (
        point.length / min(lengths) if lengths and min(lengths) > 0 else None,
        point.loss / min(losses) if losses and min(losses) > 0 else None,
    )


def ends(number: Interval) -> list[float | None]:
    return [number.value, number.low, number.high]


def table(title: str, rows: list[dict]) -> str:
    head = (
        f"## {title}\n\n| method | kind | L0 | B | bits | KL, bits (95%) | too long | "
        "too inaccurate | words, bits | KL of words | of shuffled words | share | of shuffled | "
        "too wordy |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    lines = [
        f"| {r['name']} | {r['kind']} | {r['l0']:.1f} | {r['value_bits']:.0f} "
        f"| {r['math_length']:.1f} | {r['math_loss'][0]:.3f} ({r['math_loss'][1]:.3f}-"
        f"{r['math_loss'][2]:.3f}) | {times(r['math_too_long'])} "
        f"| {times(r['math_too_inaccurate'])} | {r['semantic_length']:.3f} "
        f"| {r['semantic_loss'][0]:.2f} | {r['semantic_loss_shuffled']:.2f} "
        f"| {r['semantic_share']:.3f} | {r['semantic_share_shuffled']:.3f} "
        f"| {times(r['words_too_long'])} |"
        for r in sorted(rows, key=lambda r: r["math_length"])
    ]
    return "\n".join([head, *lines])


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def maps_table(name: str, found: dict) -> str:
    lines = [
        f"## Attribution maps: {name}\n",
        "| method | Spearman of sizes, all shuffled | signed | floor | passes | deletion gain | "
        "insertion gain | linear FVU | incomplete by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, verdict in found["sanity"].items():
        last = [k for k in verdict["kept"] if k["way"] == "cascading"][-1]
        true = found["truth"][method]
        lines.append(
            f"| {method} | {shown(last['sizes'])} | {shown(last['signed'])} "
            f"| {verdict['floor']['value']:.2f} | {'yes' if verdict['passes'] else 'no'} "
            f"| {shown(true['deletion_gain'])} | {shown(true['insertion_gain'])} "
            f"| {true['linear_fvu']['value']:.2f} | {true['incompleteness']:.2f} |"
        )
    lines += ["", "| told | maps | bits a token | KL, bits |", "|---|---|---|---|"]
    for method, told in found["told"].items():
        lines += [
            f"| {method} | {t['tokens']} | {t['length']:.0f} | {shown(t['loss'])} |" for t in told
        ]
    return "\n".join(lines)


def shown(interval: dict) -> str:
    return f"{interval['value']:.2f} ({interval['low']:.2f}-{interval['high']:.2f})"


def draw_maps(found: dict[str, dict]) -> None:
    """What is left of maps while weights are shuffled from the top down."""
    plt = plotting("studies")
    figure, panels = plt.subplots(
        1, max(len(found), 1), figsize=(6 * max(len(found), 1), 4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for panel, (name, maps) in zip(panels[0], found.items(), strict=True):
        for method, verdict in maps["sanity"].items():
            kept = [k for k in verdict["kept"] if k["way"] == "cascading"]
            line = panel.plot(
                ["none", *(k["stage"] for k in kept)],
                [1.0, *(k["sizes"]["value"] for k in kept)],
                "x--" if verdict["control"] else "o-", label=method, markersize=4,
            )  # fmt: skip
            panel.axhline(
                verdict["floor"]["value"], color=line[0].get_color(), linewidth=0.5, linestyle=":"
            )
        panel.set(
            title=f"{name}: maps while weights are shuffled",
            xlabel="shuffled from the top down to",
            ylabel="Spearman of sizes with the original map",
        )  # fmt: skip
        panel.tick_params(axis="x", rotation=30)
    panels[0][0].legend(frameon=False, fontsize=8)
    save_picture(figure, HERE / "maps.png")
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
