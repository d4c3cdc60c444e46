"""Differences between constructions on the same held-out rows, with paired intervals.

    python studies/constructions/paired.py SUBJECT STORE [--held N]

Loads what `run.py` saved in STORE and writes runs/stories260K.paired.json beside this file.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import GROUP
from torch import Tensor

from unweave.artifact.tensors import load_tensors
from unweave.decompile.cross_layer.network import CrossLayerNetwork
from unweave.decompile.layers.network import LayerNetwork
from unweave.decompile.network import DecompiledNetwork
from unweave.subject import Subject, load_subject
from unweave.training.fit import load_parts
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import compare_logits, stack

HERE = Path(__file__).parent


def networks(subject: Subject, store: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """Everything that lies in the store, as functions from rows to logits."""
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "component": DecompiledNetwork(subject, load_parts(store / "component"))
    }
    for name in ("cross_layer-", "cross_layer-own_layer"):
        if (store / name).is_dir():
            found[name.removesuffix("-")] = CrossLayerNetwork.load(store / name, subject)
    for folder in sorted(store.glob("layers-*")):
        network = LayerNetwork.load(folder, subject)
        if network.spec.patterns:
            found[folder.name] = lambda rows, n=network: n(rows).logits
    return found


@torch.no_grad()
def main() -> None:
    """All pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("store", type=Path)
    parser.add_argument("--held", type=int, default=4096)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject(asked.subject, dtype="float32")
    held = load_tensors(asked.store / "text.safetensors")["heldout"][: asked.held // 128]
    rises = {}
    original = [subject.run(rows).logits for rows in held.split(GROUP)]
    for name, logits_of in networks(subject, asked.store).items():
        pairs = zip(original, held.split(GROUP), strict=True)
        rises[name] = stack([compare_logits(p, logits_of(r), r) for p, r in pairs]).ce_increase
    table = {}
    for first, a in rises.items():
        for second, b in rises.items():
            if first < second:
                found = mean_interval(np.asarray(a - b))
                table[f"{first} less {second}"] = [round(float(x), 4) for x in found]
    path = HERE / "runs" / "stories260K.paired.json"
    path.write_text(json.dumps({"arm": "paired", "ce_increase": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
