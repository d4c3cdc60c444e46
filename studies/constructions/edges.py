"""CE increase against the share of a network of layers' weights between features that is kept.

    python studies/constructions/edges.py SUBJECT STORE NETWORK [--held N]

NETWORK: a folder in STORE that `run.py` saved. In every matrix those weights are kept that deliver
most, |weight| times the mean activation of what it reads; nothing is trained afterwards. Writes
runs/stories260K.NETWORK.edges.json beside this file.
"""

import argparse
import json
from pathlib import Path

import torch
from measure import scored
from torch import Tensor

from unweave.artifact.tensors import load_tensors
from unweave.decompile.layers.network import LayerNetwork
from unweave.subject import load_subject

HERE = Path(__file__).parent
SHARES = (1.0, 0.5, 0.2)


@torch.no_grad()
def deliveries(network: LayerNetwork, rows: Tensor) -> dict[str, Tensor]:
    """|weight| times mean activation, for every matrix between features, by name."""
    run = network(rows)
    tokens = (
        torch.bincount(rows[:, 1:].flatten(), minlength=network.spec.vocab) / rows[:, 1:].numel()
    )
    before = [tokens, *(f[:, 1:].mean((0, 1)) for f in run.features)]
    found = {"W_logits": before[-1][:, None] * network.W_logits.abs()}
    for layer, step in enumerate(run.steps):
        source = {"W_skip": before[layer], "W_in_place": before[layer], "W_move": before[layer]}
        source |= {"W_value": before[layer], "W_features": before[layer]}
        if step.values is not None and step.interactions is not None:
            values = step.values[:, 1:].mean((0, 1))
            source |= {"W_values": values, "W_from_values": values}
            source["W_from_interactions"] = step.interactions[:, 1:].mean((0, 1))
        for name, weight in network.block(layer).named_parameters():
            if name in source:
                found[f"blocks.{layer}.{name}"] = source[name][:, None] * weight.abs()
        if network.spec.patterns:
            for name in ("W_query", "W_key"):
                weight = getattr(network.look(layer), name)
                found[f"looks.{layer}.{name}"] = before[layer][:, None] * weight.abs()
    return found


@torch.no_grad()
def keep(network: LayerNetwork, delivered: dict[str, Tensor], share: float) -> int:
    """Set all but the share that delivers most to zero, in place; how many are left."""
    left = 0
    weights = dict(network.named_parameters())
    for name, amount in delivered.items():
        count = max(1, round(share * amount.numel()))
        bar = amount.flatten().topk(count).values[-1]
        weights[name].mul_(amount >= bar)
        left += int(((amount >= bar) & (amount > 0)).sum())
    return left


def main() -> None:
    """The curve of one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("store", type=Path)
    parser.add_argument("network")
    parser.add_argument("--held", type=int, default=2048)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject(asked.subject, dtype="float32")
    text = load_tensors(asked.store / "text.safetensors")
    held = text["heldout"][: asked.held // 128]
    network = LayerNetwork.load(asked.store / asked.network, subject)
    delivered = deliveries(network, text["train"][:32])
    curve = []
    for share in SHARES:
        left = keep(network, delivered, share)
        scores = scored(subject, held, lambda rows: network(rows).logits)
        curve.append({"share": share, "edges": left, **scores})
        print(curve[-1], flush=True)
    path = HERE / "runs" / f"stories260K.{asked.network}.edges.json"
    path.write_text(json.dumps(curve, indent=1) + "\n")


if __name__ == "__main__":
    main()
