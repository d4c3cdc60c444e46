"""From the runs to the numbers that ship with unweave, and to results.json.

    python studies/hyperparameters/analyse.py

Writes src/unweave/training/laws/measured.json (what `suggest` builds on) and results.json (what the
page says): the law against the nearest neighbour and the truth on wider dictionaries, rules of the
learning rate, how data matter, coverage of intervals, controls, and what a sweep would have cost.
"""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from checks import coordinates, cost, planted_k
from collect import MAIN, WIDTHS
from read import HERE, Key, best, by_cell, curve, outcomes, point
from statistics_of import statistics

import unweave.training.laws as laws
from unweave.artifact.atomic import write_json
from unweave.training.laws.measured import (
    LAW_WIDTH,
    Z90,
    CEScatter,
    DeadLaw,
    L1Law,
    Measured,
    dead_basis,
)
from unweave.training.laws.scaling import FitSettings, Point, ScalingLaw, fit_scaling
from unweave.training.laws.shift import Belief, DataShift, fit_shift
from unweave.training.laws.transfer import (
    RateLaw,
    fit_rate_law,
    rule_losses,
)
from unweave.training.trial import Outcome

MEASURED = Path(laws.__file__).parent / "measured.json"
Cells = dict[Key, dict[float, Outcome]]


def main() -> None:
    rows = outcomes()
    cells = by_cell(rows)
    mine = {k: r for k, r in cells.items() if k.part == "fit" and k.data == MAIN}
    points = [point(k, r) for k, r in mine.items()]
    law = fit_scaling(points)
    rate = fit_rate_law([curve(k, r) for k, r in mine.items()])
    others: dict[str, list[Point]] = defaultdict(list)
    for key, runs in cells.items():
        if key.part == "fit" and key.data != MAIN and key.n != 512:
            others[key.data].append(point(key, runs))
    whole = {name: found for name, found in others.items() if len(found) >= 4}
    about = {name: statistics(name) for name in (MAIN, *whole)}
    data = {name: (about[name], found) for name, found in whole.items()}
    data[MAIN] = about[MAIN], points
    shift = fit_shift(data, law)
    noise = float(np.sqrt(np.mean(np.square(law.residuals))))
    numbers = Measured(
        provenance=provenance(len(rows), sorted(data)),
        law=law,
        shift=shift,
        noise=noise,
        rate=rate,
        **rate_between(cells, rate),
        dead=dead_law(cells),
        l1=l1_law(rows, law, data, noise),
        ce=ce_scatter(),
        k_per_dimension=planted_k()["factor"],
        batch=256,
        warmup=0.05,
        flops_per_second=float(np.quantile([o.flops / o.seconds for _, _, o in rows], 0.95)),
    )
    write_json(MEASURED, json.loads(numbers.model_dump_json()))
    results = {
        "law": {n: law.spread(n)._asdict() for n in law.coefficients},
        "fit_scatter": noise,
        "forms": forms(points),
        "heldout": heldout(cells, points, law, rate),
        "elsewhere": elsewhere(cells, data, law, shift, noise),
        "shuffled": shuffled(cells, points),
        "rate": json.loads(rate.model_dump_json()),
        "rules": rules(cells),
        "data": about_data(data, law, shift, cells, rate),
        "coverage": coverage(data, law, noise),
        "batch": factor(cells, "batch"),
        "warmup": factor(cells, "warmup"),
        "l1": json.loads(numbers.l1.model_dump_json()),
        "dead": json.loads(numbers.dead.model_dump_json()),
        "cost": cost(),
        "coordinates": coordinates(),
        "planted_k": planted_k(),
        "runs": len(rows),
        "flops": float(sum(o.flops for _, _, o in rows)),
    }
    write_json(HERE / "results.json", json.loads(json.dumps(results)))


def provenance(runs: int, data: list[str]) -> dict[str, str]:
    return {
        "study": "studies/hyperparameters (collect.py, splice.py, analyse.py)",
        "subject": "wren",
        "data": ", ".join(data),
        "runs": str(runs),
        "made": "2026-11-25",
        "recipe": "TopK autoencoder, unit decoder rows, random start, AuxK, Adam, batch 256",
    }


def rate_between(cells: Cells, rate: RateLaw) -> dict[str, float]:
    """How best rates differ between data sets: with the width of their vectors, and otherwise."""
    by_data = defaultdict(list)
    for key, runs in cells.items():
        if key.part == "fit":
            found = curve(key, runs).best()[0]
            by_data[key.data].append(math.log(found / rate(key.n, key.k, key.tokens / key.batch)))
    x = np.array([math.log(statistics(name).width / LAW_WIDTH) for name in by_data])
    y = np.array([np.mean(found) for found in by_data.values()])
    # Through the origin: the law's own data have the law's width.
    power = float((x * y).sum() / (x * x).sum())
    return {"rate_width": power, "rate_scatter": float(np.std(y - power * x))}


def dead_law(cells: Cells) -> DeadLaw:
    fit = [(k, best(r)) for k, r in cells.items() if k.part == "fit"]
    design = np.array([dead_basis(k.n, k.k, k.tokens) for k, _ in fit])
    # Half a latent on either side keeps shares of none and of all finite.
    target = np.array([logit((o.dead * k.n + 0.5) / (k.n + 1)) for k, o in fit])
    weights = np.linalg.lstsq(design, target, rcond=None)[0]
    missed = target - design @ weights
    return DeadLaw(weights=tuple(map(float, weights)), scatter=float(np.std(missed)))


def logit(share: float) -> float:
    return math.log(share / (1 - share))


COLLAPSED = 0.7
"""FVU above which a run with a penalty has lost its latents and says nothing about L0."""


def l1_law(rows: list, law: ScalingLaw, data: dict, noise: float) -> L1Law:
    design, target, excess = [], [], []
    for part, name, o in rows:
        if part != "l1" or o.fvu > COLLAPSED:
            continue
        design.append([1.0, math.log(o.trial.l1 / math.sqrt(statistics(name).width))])
        target.append(math.log(o.l0))
        if name in data and o.l0 < 48:
            found = own(data[name], law, noise)
            at = math.log(law(o.trial.n_latents, o.l0, o.trial.tokens))
            excess.append(math.log(o.fvu) - at - found.at(o.trial.n_latents, o.l0)[0])
    a, b = np.array(design), np.array(target)
    weights = np.linalg.lstsq(a, b, rcond=None)[0]
    return L1Law(
        weights=tuple(map(float, weights)),
        scatter=float(np.std(b - a @ weights)),
        excess=float(np.mean(excess)),
        excess_scatter=float(np.std(excess)),
    )


def own(found: tuple, law: ScalingLaw, noise: float) -> Belief:
    """What a data set's own cells say of its distance from the law, and nothing else."""
    _, points = found
    wide = ((4.0, 0.0, 0.0), (0.0, 0.25, 0.0), (0.0, 0.0, 0.25))
    return Belief(mean=(0.0, 0.0, 0.0), covariance=wide).updated(points, law, noise)


def elsewhere(cells: Cells, data: dict, law: ScalingLaw, shift: DataShift, noise: float) -> list:
    """Wider dictionaries on other data: the law, shifted by four cells of theirs or by statistics
    alone, beside the nearest of those cells."""
    found = []
    for key, runs in sorted(cells.items()):
        if key.part != "heldout" or key.data not in data or key.data == MAIN:
            continue
        truth, points = best(runs).fvu, data[key.data][1]
        base = math.log(law(key.n, key.k, key.tokens) / truth)
        kept = {name: value for name, value in data.items() if name != key.data}
        plain = fit_shift(kept, law).prior(data[key.data][0])
        sharp = plain.updated(points, law, noise)
        found.append(
            {
                "data": key.data, "n": key.n, "k": key.k, "seed": key.seed, "truth": truth,
                "law_error": base + sharp.at(key.n, key.k)[0],
                "statistics_error": base + plain.at(key.n, key.k)[0],
                "nearest_error": math.log(nearest(points, key).fvu / truth),
            }
        )  # fmt: skip
    return found


def ce_scatter() -> CEScatter:
    found = json.loads((HERE / "splice.json").read_text())["dictionaries"]
    ratio = [math.log(d["ce_increase"] / math.sqrt(d["truncation"] * d["noise"])) for d in found]
    return CEScatter(excess=float(np.mean(ratio)), scatter=float(np.std(ratio)))


def forms(points: list[Point]) -> dict:
    """How the law foretells n=2048 from narrower ones, beside the nearest neighbour's FVU."""
    narrow = [p for p in points if p.n <= 1024]
    wide = [p for p in points if p.n == 2048]
    law = fit_scaling(narrow, FitSettings(resamples=1))
    ours = [math.log(law(p.n, p.k, p.tokens) / p.fvu) for p in wide]
    near = [math.log(nearest(narrow, p).fvu / p.fvu) for p in wide]
    return {"law": rms(ours), "nearest": rms(near), "cells": len(wide)}


def nearest(points: list[Point], to: Point | Key) -> Point:
    def distance(p: Point) -> float:
        logs = (p.n / to.n, p.k / to.k, p.tokens / to.tokens)
        return sum(math.log(x) ** 2 for x in logs)

    return min(points, key=distance)


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def heldout(cells: Cells, points: list[Point], law: ScalingLaw, rate: RateLaw) -> list[dict]:
    """Wider dictionaries that the fit has not seen: prediction, neighbour's guess and truth."""
    fit = {k: r for k, r in cells.items() if k.part == "fit" and k.data == MAIN}
    found = []
    for key, runs in sorted(cells.items()):
        if key.part != "heldout" or key.data != MAIN:
            continue
        truth, near = best(runs), nearest(points, key)
        near_key = next(k for k in fit if (k.n, k.k, k.tokens) == (near.n, near.k, near.tokens))
        ours = rate(key.n, key.k, key.tokens / key.batch)
        theirs = curve(near_key, fit[near_key]).best()[0]
        curved = curve(key, runs)
        said = law.predict(key.n, key.k, key.tokens)
        found.append(
            {
                "n": key.n, "k": key.k, "tokens": key.tokens, "seed": key.seed,
                "truth": truth.fvu, "law": said._asdict(), "nearest": near.fvu,
                "nearest_cell": [near.n, near.k, near.tokens],
                "law_error": math.log(said.value / truth.fvu),
                "nearest_error": math.log(near.fvu / truth.fvu),
                "inside": said.low <= truth.fvu <= said.high,
                "best_rate": truth.trial.lr, "law_rate": ours, "nearest_rate": theirs,
                "law_rate_loss": math.log(curved.loss_at(ours) / curved.best()[1]),
                "nearest_rate_loss": math.log(curved.loss_at(theirs) / curved.best()[1]),
                "dead": truth.dead,
            }
        )  # fmt: skip
    return found


def shuffled(cells: Cells, points: list[Point]) -> dict:
    """The control: the same fit to the same FVUs dealt out to other cells."""
    wide = [(k, best(r).fvu) for k, r in cells.items() if k.part == "heldout" and k.data == MAIN]
    errors, widths = [], []
    for seed in range(5):
        dealt = np.random.default_rng(seed).permutation([p.fvu for p in points])
        law = fit_scaling(
            [p._replace(fvu=float(f)) for p, f in zip(points, dealt, strict=True)],
            FitSettings(resamples=20, seed=seed),
        )
        for key, truth in wide:
            said = law.predict(key.n, key.k, key.tokens)
            errors.append(math.log(said.value / truth))
            widths.append(math.log(said.high / said.low))
    return {"rms_error": rms(errors), "interval": float(np.mean(widths)), "deals": 5}


def rules(cells: Cells) -> dict:
    """What each rule of transfer loses from the narrowest to wider dictionaries, in log FVU."""
    found = defaultdict(list)
    for key, runs in cells.items():
        start = key._replace(part="fit", n=WIDTHS[0], seed=0)
        if key.data == MAIN and key.part in ("fit", "heldout") and key.n > 512 and start in cells:
            losses = rule_losses(curve(start, cells[start]), curve(key, runs))
            for rule, loss in losses.items():
                found[f"{rule} to {key.n}"].append(loss)
    return {name: {"mean": float(np.mean(v)), "cells": len(v)} for name, v in found.items()}


def about_data(data: dict, law: ScalingLaw, shift: DataShift, cells: Cells, rate: RateLaw) -> dict:
    table = {}
    for name, (about, points) in data.items():
        offs = [math.log(p.fvu / law(p.n, p.k, p.tokens)) for p in points]
        rates = [
            math.log(curve(k, r).best()[0] / rate(k.n, k.k, k.tokens / k.batch))
            for k, r in cells.items()
            if k.part == "fit" and k.data == name
        ]
        table[name] = {
            "statistics": about.model_dump(),
            "offset": float(np.mean(offs)),
            "log_rate_offset": float(np.mean(rates)),
        }
    return {
        "table": table,
        "used": list(shift.used),
        "weights": [list(row) for row in shift.weights],
        "missed": shift.missed,
        "missed_without": shift.missed_without,
    }


def coverage(data: dict, law: ScalingLaw, noise: float) -> dict:
    """How often 90 % intervals hold the truth on a data set that the regression never saw: from
    statistics alone, and after three of the data's own cells."""
    plain, probed, errors, probed_errors = [], [], [], []
    for name, (about, points) in data.items():
        if name == MAIN:
            continue
        kept = {other: found for other, found in data.items() if other != name}
        prior = fit_shift(kept, law).prior(about)
        sharp = prior.updated(points[:3], law, noise)
        for p in points:
            error, inside = _error(prior, p, law, noise)
            plain.append(inside)
            errors.append(error)
        for p in points[3:]:
            error, inside = _error(sharp, p, law, noise)
            probed.append(inside)
            probed_errors.append(error)
    return {
        "statistics": float(np.mean(plain)), "probed": float(np.mean(probed)),
        "rms_statistics": rms(errors), "rms_probed": rms(probed_errors),
        "cells": len(plain), "probed_cells": len(probed),
    }  # fmt: skip


def _error(belief: Belief, p: Point, law: ScalingLaw, noise: float) -> tuple[float, bool]:
    shift, variance = belief.at(p.n, p.k)
    variance += noise**2 + float(law.draws(p.n, p.k, p.tokens).var())
    error = math.log(p.fvu / law(p.n, p.k, p.tokens)) - shift
    return error, abs(error) <= Z90 * math.sqrt(variance)


def factor(cells: Cells, part: str) -> list[dict]:
    base = Key("fit", MAIN, 512, 16, 2**16, 256, 0.05, 0)
    keys = [base, *(k for k in cells if k.part == part)]
    return [
        {
            "batch": k.batch, "warmup": k.warmup, "fvu": best(cells[k]).fvu,
            "rate": curve(k, cells[k]).best()[0],
        }
        for k in sorted(keys, key=lambda k: (k.batch, k.warmup))
        if k in cells
    ]  # fmt: skip


if __name__ == "__main__":
    main()
