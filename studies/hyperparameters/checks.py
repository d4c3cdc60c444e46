"""What stands beside the law: k against what is planted, the coordinate check, what is saved."""

import math

import numpy as np
from collect import HELD_OUT, KS, MAIN, WIDTHS
from statistics_of import statistics
from worlds import PLANTED, data

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.laws.transfer import RULES, coordinate_check
from unweave.training.trial import Trial


def planted_k() -> dict:
    """Features per vector over TwoNN dimension in planted worlds, each foretold by the others."""
    ratio = {n: math.log(w.mean_active / statistics(n).intrinsic) for n, w in PLANTED.items()}
    mean = float(np.mean([*ratio.values()]))
    left_out = {
        n: {
            "planted": PLANTED[n].mean_active,
            "dimension": statistics(n).intrinsic,
            "foretold": statistics(n).intrinsic
            * math.exp(np.mean([v for other, v in ratio.items() if other != n])),
        }
        for n in ratio
    }
    return {"factor": math.exp(mean), "scatter": float(np.std([*ratio.values()])), **left_out}


def coordinates() -> dict:
    """Powers of the width that sizes follow after one step, on the law's vectors."""
    vectors = data(MAIN).train[:512]
    kinds = {"TopK": (TopK(k=16), {}), "ReLU": (ReLU(), {"decoder": "free"})}
    found = {}
    for kind, (activation, more) in kinds.items():
        for rule, power in RULES.items():
            checked = coordinate_check(
                lambda n, a=activation, m=more: autoencoder("site", 128, n, a, **m),
                vectors,
                rate=lambda n, p=power: 4e-3 * (n / 256) ** p,
            )
            found[f"{kind}, {rule}"] = {**checked.slopes, "flagged": list(checked.flagged)}
    return found


def cost() -> dict:
    """Operations of a suggestion with its probe, and of the sweeps that find the same."""

    def one(n: int, k: int, tokens: int) -> float:
        return Trial(n_latents=n, k=k, lr=1.0, tokens=tokens).flops(128)

    probe = one(256, 8, 2**15) + one(1024, 8, 2**15) + one(512, 16, 2**15)
    final = one(HELD_OUT, 8, 2**16)
    grid = sum(one(n, 8, 2**16) * 4 for n in (*WIDTHS, HELD_OUT))
    rates = 4 * final
    full = sum(one(n, k, 2**16) * 4 for n in (*WIDTHS, HELD_OUT) for k in KS)
    return {
        "probe": probe, "suggested": probe + final, "rates_only": rates,
        "sweep_n_rate": grid, "sweep_n_k_rate": full,
        "ratio_rates_only": rates / (probe + final), "ratio_n_rate": grid / (probe + final),
        "ratio_n_k_rate": full / (probe + final),
    }  # fmt: skip
