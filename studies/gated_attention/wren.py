"""A gated block with more heads in the place of one of wren's attention blocks.

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

CONTEXT, ROWS, STEPS, JUDGED = 64, 8, 600, 96
SETTINGS = GatedSettings(
    alpha=0.0,
    lr=3e-3,
    beta2=0.99,
    rise=(0.0, 0.5),
    schedule=Schedule(shape="cosine", warmup=0.02, decay_from=0.5),
    log_every=20,
)
WRITES = 0.1
"""A head is active at a token if it writes more than this share of what all write there."""


def fresh(subject: Subject, layer: int) -> GatedBlock:
    return gated_block_for(subject, layer, seed=0, context=CONTEXT, opening=0.5)


def heads_of(written: Tensor) -> dict[str, float]:
    """By what heads write, [rows, pos, heads, d_model]: how many speak at a place."""
    whole = written.sum(2)
    share = written.norm(dim=-1) / whole.norm(dim=-1, keepdim=True)
    left = (whole[:, :, None] - written).square().sum(-1).amin(-1)
    return {
        "heads": written.shape[2],
        "active a token": (share > WRITES).float().sum(-1).mean().item(),
        "missed by one head": (left.sum() / whole.square().sum()).item(),
    }


def loss(logits: Tensor | None, rows: Tensor) -> float:
    assert logits is not None
    return F.cross_entropy(logits[:, 1:-1].flatten(0, 1), rows[:, 2:].flatten()).item()


@torch.no_grad()
def original(subject: Subject, layer: int, rows: Tensor) -> dict[str, float]:
    """The subject's own heads, and what it costs to have their mean instead."""
    z, y = f"blocks.{layer}.attn.z", f"blocks.{layer}.attn.out"
    plain = subject.run(rows, capture=[z, y])
    by_head = plain.sites[z][:, 1:].unflatten(-1, (subject.n_heads, subject.d_head))
    written = torch.einsum("rphd,hdm->rphm", by_head, subject.attention_weights(layer).W_O)
    there = plain.sites[y]
    mean = there[:, 1:].mean((0, 1)).expand_as(there[:, 1:])
    without = subject.run(rows, replace={y: torch.cat([there[:, :1], mean], 1)})
    rise = loss(without.logits, rows) - loss(plain.logits, rows)
    return {**heads_of(written), "CE increase of the mean": rise}


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
    causal = torch.ones(rows.shape[1], rows.shape[1]).tril().bool()
    return {
        "FVU": (error / (there - there.mean(0)).square().sum()).item(),
        "CE increase": loss(other.logits, rows) - loss(plain.logits, rows),
        **heads_of(block.by_head(x)[:, 1:]),
        "gates open a pair": (passed.gate[:, :, causal] > 0).float().sum(1).mean().item(),
    }


def main(layer: int) -> None:
    torch.set_num_threads(1)
    subject = load_subject("wren", dtype="float32")
    text = token_rows(subject, "heldout", tokens=300_000, context=CONTEXT, heldout_share=0.1)
    train, held = torch.as_tensor(text.train).long(), torch.as_tensor(text.heldout).long()[:JUDGED]
    y = subject.run(train[:64], capture=[f"blocks.{layer}.attn.out"], logits=False)
    spread = y.sites[f"blocks.{layer}.attn.out"][:, 1:].flatten(0, 1).var(0).mean().item()
    out = {"layer": layer, "steps": STEPS, "rows a step": ROWS, "context": CONTEXT}
    found: dict[str, dict] = {
        "original": original(subject, layer, held),
        "untrained": measured(subject, fresh(subject, layer), held),
    }
    # The price is in units of what is to be written: its mean variance a coordinate.
    for name, price in (("plain heads", 0.0), ("no price", 0.0), *PRICES):
        block = fresh(subject, layer)
        if name == "plain heads":
            block.open_gates_()
        source = SubjectRows([subject], train, layer=layer, rows=ROWS, steps=STEPS, seed=1)
        began = time.process_time()
        train_gated_blocks([block], source, SETTINGS.model_copy(update={"alpha": price * spread}))
        spent = {"price": price, "processor seconds": round(time.process_time() - began)}
        found[name] = measured(subject, block, held) | spent
        print(name, found[name], flush=True)
        write_json(Path(__file__).parent / "wren.json", out | {"blocks": found})


PRICES = tuple((f"price {price}", price) for price in (0.01, 0.03, 0.1, 0.3))

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
