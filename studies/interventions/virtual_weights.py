"""Do virtual weights foresee what latents do to each other? On a decompiled network.

    OMP_NUM_THREADS=1 python studies/interventions/virtual_weights.py ARTIFACT [SUBJECT]

`edges` tests the artifact's graph; `drawn` the same sources with targets drawn among those of other
edges into the same part. Writes virtual_weights.json beside this file after every cell and skips
cells that are there already.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from unweave.artifact.folder import open_artifact
from unweave.artifact.layout import weights_of
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.subject import load_subject
from unweave.subject.rows import token_rows
from unweave.validate.interventions.agreement import agreement
from unweave.validate.interventions.edge_pairs import feature_edges, retargeted
from unweave.validate.interventions.virtual_weights import (
    VirtualEffects,
    VirtualWeightSettings,
    virtual_weight_effects,
)

OUT = Path(__file__).with_suffix(".json")
ROWS, CONTEXT, SEEDS = 128, 64, range(3)
SETTINGS = VirtualWeightSettings(sources=60, rows=16)


def main(folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    subject, artifact = load_subject(name), open_artifact(folder)
    parts = {each: Part.load(weights_of(folder, each).parent) for each in artifact.parts}
    graph = feature_edges(artifact.edges())
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for seed in SEEDS:
        rows = token_rows(
            subject, "heldout", tokens=2 * ROWS * CONTEXT, context=CONTEXT, seed=seed,
            heldout_share=0.5,
        ).heldout[:ROWS]  # fmt: skip
        for kind in ("edges", "drawn"):
            key = f"{subject.name}/{kind}/{seed}"
            if key in found:
                continue
            edges = graph if kind == "edges" else retargeted(subject, parts, graph, seed=seed)
            start = time.time()
            effects = virtual_weight_effects(subject, parts, edges, rows, SETTINGS, seed=seed)
            found[key] = told(effects)
            cells = (f"{json.dumps(key)}: {json.dumps(cell)}" for key, cell in found.items())
            OUT.write_text("{\n" + ",\n".join(cells) + "\n}\n")
            print(key, len(effects.pairs), round(time.time() - start, 1), flush=True)


def told(effects: VirtualEffects) -> dict:
    """Agreements as they are, and of pairs that meet in MLPs and along attention apart."""
    along = np.array([place_of(pair.target_part).kind == "attn" for pair in effects.pairs])
    said = effects.predicted["own"]
    return {
        "pairs": len(said), "sources": len(set(effects.source.tolist())),
        "places": round(float(effects.places.mean()), 1), "one_sign": rounded(effects.one_sign),
        "agreements": {
            "/".join(key): {what: rounded(list(number)) for what, number in one._asdict().items()}
            for key, one in effects.agreements(SETTINGS.bootstrap).items()
        },
        "by_reader": {
            f"{reader}/{'/'.join(key)}": {
                "pairs": int(mask.sum()),
                **{
                    what: rounded(list(number))
                    for what, number in agreement(
                        said[mask], moved[mask], effects.source[mask], SETTINGS.bootstrap
                    )._asdict().items()
                },
            }
            for reader, mask in (("mlp", ~along), ("attn", along))
            for key, moved in effects.measured.items()
        },
    }  # fmt: skip


def rounded(value: float | list) -> float | list | None:
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if np.isfinite(value) else None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "wren")
