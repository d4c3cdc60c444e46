"""Many seeds of SCR's probes on the same means, ours; `public_probe_seeds.py` is the other side.

    python studies/sae_bench/probe_seeds.py OUT NAME --dictionaries FOLDER
    ENV/bin/python studies/sae_bench/public_probe_seeds.py OUT

Five seeds tell little of a spread as wide as SCR's. The means of texts being equal (README), what
is left to differ is how probes are trained and latents chosen, and that is cheap to repeat.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from inputs import CONTEXT
from run import SIZES, SUBJECT

from unweave.dictionaries.formats import load_foreign
from unweave.subject import load_subject
from unweave.validate.labelled import load_sets
from unweave.validate.placed import placed
from unweave.validate.protocols.ablation import AblationSettings
from unweave.validate.protocols.pooling import pool, unit_directions
from unweave.validate.protocols.scr import Crossed, corner_size, corners, scr_scores

SEEDS = range(100, 124)


def main(out: Path, name: str, dictionaries: Path) -> None:
    (dictionary,) = load_foreign(dictionaries / name).values()
    subject, one = load_subject(SUBJECT, dtype="float32"), placed(name, dictionary)
    data = {found.name: found for found in load_sets(out / "data")}["reviews"]
    kept, sides = {}, []
    for side, count in zip(("train", "test"), SIZES["scr"], strict=True):
        texts = corners(getattr(data, side), ("negative", "positive"), ("sentence", "review"))
        size = corner_size(texts, count // 4)
        used = [t[: size * (2 if place in (0, 3) else 1)] for place, t in enumerate(texts)]
        (pooled,) = pool(subject, [one], [t for corner in used for t in corner], context=CONTEXT)
        counts = tuple(len(corner) for corner in used)
        sides.append(Crossed([pooled, pooled], counts))
        for key in ("site", "latents", "padding", "at_zero"):
            kept[side + key] = getattr(pooled, key).numpy()
        kept[f"{side}counts"] = np.array(counts)
    unit = unit_directions(dictionary)
    np.savez(out / "reviews.npz", unit=unit.numpy(), **kept)
    settings = AblationSettings(context=CONTEXT, n=tuple(SIZES["n"]))
    found = [scr_scores(sides[0], sides[1], [unit, unit], settings, seed) for seed in SEEDS]
    (out / "reviews-ours.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("--dictionaries", type=Path, required=True)
    given = parser.parse_args()
    main(given.out, given.name, given.dictionaries)
