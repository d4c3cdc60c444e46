"""A gated block with twice the heads in the place of one of wren's attention blocks.

    OMP_NUM_THREADS=1 python studies/gated_attention/wren.py [LAYER]

Writes wren.json beside this file.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unweave.artifact.atomic import write_json
from unweave.dictionaries.attention.gated_block import GatedBlock, gated_block_for
from unweave.subject import Subject, load_subject
from unweave.subject.rows import token_rows
from unweave.training.attention.gated import GatedSettings, train_gated_blocks
from unweave.training.attention.gated_batches import SubjectRows
from unweave.training.schedule import Schedule

CONTEXT, ROWS, STEPS = 64, 8, 500
SETTINGS = GatedSettings(
    alpha=0.0,
    lr=3e-3,
    beta2=0.99,
    rise=(0.2, 0.7),
    schedule=Schedule(shape="cosine", warmup=0.02, decay_from=0.5),
    log_every=20,
)


def fresh(subject: Subject, layer: int, seed: int = 0) -> GatedBlock:
    return gated_block_for(subject, layer, seed=seed, context=CONTEXT, opening=0.5)


@torch.no_grad()
def measured(subject: Subject, block: GatedBlock, rows: Tensor) -> dict[str, float]:
    """On held-out rows; the first position of each, which is always the same, is left alone."""
    reads, writes = block.spec.reads, block.spec.writes
    plain = subject.run(rows, capture=[reads, writes])
    x, y = plain.sites[reads], plain.sites[writes]
    passed = block.watch(x)
    there = y[:, 1:].flatten(0, 1)
    error = (passed.output[:, 1:].flatten(0, 1) - there).square().sum()
    spliced = torch.cat([y[:, :1], passed.output[:, 1:]], 1)
    other = subject.run(rows, replace={writes: spliced})
    mean = there.mean(0).expand_as(y[:, 1:])
    without = subject.run(rows, replace={writes: torch.cat([y[:, :1], mean], 1)})
    causal = torch.ones(rows.shape[1], rows.shape[1]).tril().bool()
    gate = passed.gate[:, :, causal]
    moved = passed.pattern.sum(-1)[..., 1:]
    base = loss(plain.logits, rows)
    return {
        "fvu": (error / (there - there.mean(0)).square().sum()).item(),
        "ce increase": loss(other.logits, rows) - base,
        "ce increase of the mean": loss(without.logits, rows) - base,
        "heads": block.spec.n_heads,
        "open heads a pair": (gate > 0).float().sum(1).mean().item(),
        "heads a pair open by over .01": (gate > 0.01).float().sum(1).mean().item(),
        "heads a token that move over .01": (moved > 0.01).float().sum(1).mean().item(),
    }


def loss(logits: Tensor | None, rows: Tensor) -> float:
    assert logits is not None
    return F.cross_entropy(logits[:, 1:-1].flatten(0, 1), rows[:, 2:].flatten()).item()


def main(layer: int) -> None:
    torch.set_num_threads(1)
    subject = load_subject("wren", dtype="float32")
    text = token_rows(subject, "heldout", tokens=300_000, context=CONTEXT, heldout_share=0.1)
    train, held = torch.as_tensor(text.train).long(), torch.as_tensor(text.heldout).long()[:128]
    found: dict[str, dict] = {"untrained": measured(subject, fresh(subject, layer), held)}
    for name, alpha in (
        ("plain heads", 0.0),
        ("no price", 0.0),
        ("alpha .1", 0.1),
        ("alpha .5", 0.5),
    ):
        block = fresh(subject, layer)
        if name == "plain heads":
            block.open_gates_()
        source = SubjectRows([subject], train, layer=layer, rows=ROWS, steps=STEPS, seed=1)
        began = time.process_time()
        train_gated_blocks([block], source, SETTINGS.model_copy(update={"alpha": alpha}))
        spent = {"processor seconds": round(time.process_time() - began)}
        found[name] = measured(subject, block, held) | spent
        print(name, found[name], flush=True)
        out = {"layer": layer, "steps": STEPS, "rows": ROWS, "context": CONTEXT, "blocks": found}
        write_json(Path(__file__).parent / "wren.json", out)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
