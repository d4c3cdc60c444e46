"""Make numbers.json, worlds.png and the tables of README.md from runs.jsonl.

python studies/worlds/report.py
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
from kinds import CEILING, KINDS
from run import NARROW, NARROW_KINDS, NARROW_WORLDS, done

from unweave.validate.truth.seeds import Spread, over_seeds
from unweave.validate.worlds.catalogue import WORLDS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
Found = dict[str, Spread]
DIRECTIONS = [w for w in WORLDS if not w.startswith(("language", "modular"))]
LANGUAGES = [w for w in WORLDS if w.startswith("language")]
MODULAR = [w for w in WORLDS if w.startswith("modular")]
COLOURS = dict(zip(KINDS, plt.get_cmap("tab20").colors, strict=False))


def main() -> None:
    runs = defaultdict(list)
    for line in done():
        key = line["stage"], line["world"], line["kind"], line["latents"]
        runs[key].append(line["numbers"])
    found = {key: over_seeds(lines) for key, lines in runs.items()}
    kept = {" | ".join(map(str, key)): plain(one) for key, one in found.items()}
    text = re.sub(r"\[\s+([^\[\]]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", dump(kept))
    (HERE / "numbers.json").write_text(text + "\n")
    tables = {"recovery": recovery(found), "absorption": absorption(found)}
    tables |= {"hedging": hedging(found), "languages": languages(found)}
    tables |= {"modular": modular(found), "networks": networks(found)}
    fill(HERE / "README.md", tables)
    draw(found, HERE / "worlds.png")


def plain(found: Found) -> dict[str, list[float]]:
    """Mean, standard deviation and number of seeds."""
    return {n: [round(s.mean, 4), round(s.std, 4), s.seeds] for n, s in found.items()}


def dump(value: Any) -> str:
    return json.dumps(value, indent=1)


def say(found: Found, name: str, digits: int = 2) -> str:
    if name not in found:
        return "–"
    spread = found[name]
    if spread.seeds == 1:
        return f"{spread.mean:.{digits}f}"
    return f"{spread.mean:.{digits}f} ± {spread.std:.{digits}f}"


def beside(found: Found, name: str, digits: int = 2) -> str:
    """A number, and chance in brackets."""
    chance = found.get(f"{name} by chance")
    return say(found, name, digits) + (f" ({chance.mean:.{digits}f})" if chance else "")


def seeds(found: Found) -> str:
    return str(max(s.seeds for s in found.values()))


def row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def head(*names: str) -> list[str]:
    return [row(*names), "|" + "---|" * len(names)]


def recovery(found: dict[Any, Found]) -> list[str]:
    rows = []
    for world in DIRECTIONS:
        names = "MMCS", "MMCS reverse", "recall", "precision", "duplicates", "spurious", "F1"
        rows += ["", f"**{world}**", ""]
        rows += head("dictionary", "seeds", "L0", "FVU", "fire", *names, "slope")
        for kind in KINDS:
            one = found.get(("main", world, kind, None))
            if one is None:
                continue
            fields = "mmcs", "mmcs_reverse", "recall", "precision"
            counts = "duplicates", "spurious"
            rows.append(
                row(
                    kind,
                    seeds(one),
                    say(one, "fidelity.l0", 1),
                    say(one, "fidelity.fvu", 3),
                    say(one, "recovery.alive", 0),
                    *(beside(one, f"recovery.{n}") for n in fields),
                    *(beside(one, f"recovery.{n}", 0) for n in counts),
                    say(one, "recovery.f1"),
                    say(one, "recovery.slope"),
                )
            )
    return rows


def absorption(found: dict[Any, Found]) -> list[str]:
    rows = head(
        "dictionary", "parents found of 16", "silent: with child (alone)",
        "taken over: with child (alone)",
    )  # fmt: skip
    for kind in KINDS:
        one = found.get(("main", "planted, families", kind, None), {})
        if "absorption.parents" in one:
            rows.append(
                row(
                    kind,
                    say(one, "absorption.parents", 0),
                    beside(one, "absorption.silent"),
                    beside(one, "absorption.taken_over"),
                )
            )
    return rows


def hedging(found: dict[Any, Found]) -> list[str]:
    rows = []
    for world in NARROW_WORLDS:
        widths = (*NARROW, 256)
        rows += ["", f"**{world}** (128 features)", ""]
        rows += head("dictionary", *(f"{n} latents: writes / reads" for n in widths))
        for kind in (*NARROW_KINDS, "PCA", "ICA", CEILING):
            cells = []
            for n in widths:
                key = ("main", world, kind, None) if n == 256 else ("narrow", world, kind, n)
                one = found.get(key, {})
                cells.append(f"{beside(one, 'hedging.writes')} / {beside(one, 'hedging.reads')}")
            rows.append(row(kind, *cells))
    return rows


def languages(found: dict[Any, Found]) -> list[str]:
    rows = []
    for world in LANGUAGES:
        rows += ["", f"**{world}**", ""]
        rows += head("dictionary", "seeds", "L0", "FVU", "AUROC", "F1", "one-to-one F1")
        for kind in KINDS:
            one = found.get(("main", world, kind, None))
            if one:
                rows.append(
                    row(
                        kind,
                        seeds(one),
                        say(one, "fidelity.l0", 1),
                        say(one, "fidelity.fvu", 3),
                        beside(one, "states.auroc"),
                        beside(one, "states.f1"),
                        say(one, "states.matched_f1"),
                    )
                )
        bounds = found.get(("main", world, "topk", None))
        if bounds:
            for name, told in (("token", "the token itself"), ("bayes", "Bayes's best guess")):
                cells = [
                    say(bounds, f"states.{name}_{n} by chance")
                    for n in ("auroc", "f1", "matched_f1")
                ]
                rows.append(row(told, "", "", "", *cells))
            rows.append(
                row(
                    "the belief", "", "", "", say(bounds, "states.belief_auroc by chance"), "–", "–"
                )
            )
    return rows


def modular(found: dict[Any, Found]) -> list[str]:
    rows = []
    for world in MODULAR:
        rows += ["", f"**{world}**", ""]
        rows += head(
            "dictionary", "seeds", "L0", "FVU", "fire", "nearest latent", "angle of best two",
            "touched", "covered",
        )  # fmt: skip
        for kind in KINDS:
            one = found.get(("main", world, kind, None))
            if one:
                rows.append(
                    row(
                        kind,
                        seeds(one),
                        say(one, "fidelity.l0", 1),
                        say(one, "fidelity.fvu", 3),
                        say(one, "planes.alive", 0),
                        *(beside(one, f"planes.{n}") for n in ("nearest", "angle")),
                        *(say(one, f"planes.{n}") for n in ("touched", "covered")),
                    )
                )
    return rows


def networks(found: dict[Any, Found]) -> list[str]:
    rows = head("language", "CE", "Bayes", "last token alone", "untrained")
    for world in LANGUAGES:
        one = found.get(("networks", world, "network", None), {})
        names = "trained.ce", "bayes.ce", "last token.ce", "untrained.ce"
        rows.append(row(world, *(say(one, n, 4) for n in names)))
    rows += ["", *head("R² of beliefs", "trained", "untrained", "shuffled", "last token")]
    for world in LANGUAGES:
        one = found.get(("networks", world, "network", None), {})
        for layer in (0, 1):
            site = f"blocks.{layer}.resid_post"
            cells = [f"trained.{site}.R2", f"untrained.{site}.R2", f"trained.{site}.R2 shuffled"]
            rows.append(
                row(f"{world}, {site}", *(say(one, n, 3) for n in (*cells, "last token.R2")))
            )
    site = "blocks.1.resid_post"
    one = found.get(("networks", "language, nested", "network", None), {})
    cells = (say(one, f"{k}.{site}.R2 of topics", 3) for k in ("trained", "untrained"))
    rows.append(row(f"language, nested: topics, {site}", *cells, "–", "–"))
    one = found.get(("networks", "modular, trained", "network", None), {})
    rows += ["", *head("modular addition, p = 59", "trained", "random answers", "untrained")]
    for name in (
        "held-out accuracy", "accuracy", "key", "effective", "accuracy without key",
        "accuracy without others", "margin", "margin without strongest",
    ):  # fmt: skip
        cells = [say(one, f"{k}.{name}") for k in ("trained", "random answers", "untrained")]
        rows.append(row(name, *cells))
    return rows


def fill(path: Path, tables: dict[str, list[str]]) -> None:
    text = path.read_text()
    for name, rows in tables.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        table = "\n".join(rows).strip()
        text = f"{before}{start}\n\n{table}\n\n{end}{rest.split(end)[1]}"
    path.write_text(text)


def draw(found: dict[Any, Found], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    kinds = [k for k in KINDS if k != CEILING]
    for place, kind in enumerate(kinds):
        values, chance = [], []
        for world in DIRECTIONS:
            one = found.get(("main", world, kind, None), {})
            values.append(one["recovery.mmcs"].mean if "recovery.mmcs" in one else float("nan"))
            by = one.get("recovery.mmcs by chance")
            chance.append(by.mean if by else float("nan"))
        at = [x + 0.08 * (place - len(kinds) / 2) for x in range(len(DIRECTIONS))]
        axes[0].plot(at, values, "o", color=COLOURS[kind], label=kind, markersize=5)
        axes[0].plot(at, chance, "_", color=COLOURS[kind], markersize=6)
    names = [w.replace("planted, ", "") for w in DIRECTIONS]
    axes[0].set_xticks(range(len(DIRECTIONS)), names, rotation=45, ha="right")
    axes[0].set(title="MMCS (dash: a random twin)", ylim=(0, 1.02))
    axes[0].legend(frameon=False, fontsize=7, ncol=2, loc="lower left")
    for axis, world in zip(axes[1:], NARROW_WORLDS, strict=True):
        for kind in NARROW_KINDS:
            points = [
                (n, found[key]["hedging.writes"])
                for n in (*NARROW, 256)
                if "hedging.writes"
                in found.get(
                    key := ("main", world, kind, None) if n == 256 else ("narrow", world, kind, n),
                    {},
                )
            ]
            if points:
                axis.errorbar(
                    [n for n, _ in points],
                    [s.mean for _, s in points],
                    yerr=[s.std for _, s in points],
                    color=COLOURS[kind],
                    label=kind,
                    marker="o",
                    markersize=4,
                )
        axis.axhline(0, color="grey", linewidth=0.6)
        axis.axvline(128, color="grey", linewidth=0.6, linestyle=":")
        axis.set(xscale="log", xlabel="latents (128 features)", title=f"hedging, {world}")
        axis.set_xticks([*NARROW, 256], [str(n) for n in (*NARROW, 256)])
        axis.minorticks_off()
    axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
