"""Train wren on one CPU thread, seeded, resumable, with checkpoints as plain model folders.

The schedule is fixed by `settings.json` (warm-up, then straight lines to zero), which was chosen
from the measured speed so that training fits its time. Each row of a batch starts with BOS and a
document; documents are reshuffled and repacked every epoch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from muon import MatrixAndRest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
BOS_ID, NEWLINE_ID = 0, 200  # data.py checks both against the tokenizer


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the run, beside the data and the model's shape."""

    steps: int
    aim: int
    turn: int
    rows: int
    context: int
    optimizer: str
    lr_matrix: float
    lr_rest: float
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    checkpoints: tuple[int, ...]
    eval_every: int
    compile: bool


def pack(tokens: torch.Tensor, context: int, order: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of context + 1 tokens from documents in the given order, each starting with BOS.

    BOS means a beginning: what a row's end cuts off a story is dropped, and a document longer
    than two rows (a chapter) goes on, after a fresh BOS, at its next paragraph.
    """
    starts = (tokens == BOS_ID).nonzero().squeeze(1).tolist()
    ends = [*starts[1:], len(tokens)]
    bos = torch.tensor([BOS_ID])
    rows, row, room = [], [], context + 1
    for i in range(len(starts)) if order is None else order.tolist():
        doc = tokens[starts[i] : ends[i]]
        rest = doc
        while len(rest):
            row.append(rest[:room])
            rest, room = rest[room:], max(0, room - len(rest))
            if room == 0:
                rows.append(torch.cat(row))
                row, room = [], context + 1
                breaks = (rest == NEWLINE_ID).nonzero()
                if len(doc) <= 2 * context or len(breaks) == 0:
                    break
                rest = torch.cat([bos, rest[int(breaks[0]) + 1 :]])
    return torch.stack(rows)


def epoch_rows(tokens: torch.Tensor, context: int, seed: int, epoch: int) -> torch.Tensor:
    """All rows of one epoch, in that epoch's order."""
    g = torch.Generator().manual_seed(seed * 1000 + epoch)
    order = torch.randperm(int((tokens == BOS_ID).sum()), generator=g)
    rows = pack(tokens, context, order)
    return rows[torch.randperm(len(rows), generator=g)]


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """Mean nats a token over rows, not counting the (certain) BOS after a document's end."""
    total, count = 0.0, 0
    for part in rows.split(16):
        logits = model(input_ids=part[:, :-1], use_cache=False).logits
        target = part[:, 1:].masked_fill(part[:, 1:] == BOS_ID, -100)
        total += float(F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum"))
        count += int((target != -100).sum())
    return total / count


def rate(step: int, s: TrainSettings) -> float:
    """Warm-up to one, a straight line towards zero at `aim`, and from `turn` to zero at `steps`.

    The turn lets a run on a busy machine be brought to its end early and still be repeated.
    """
    line = (s.aim - min(step, s.turn)) / (s.aim - s.warmup)
    left = (s.steps - step) / (s.steps - s.turn) if step > s.turn else 1.0
    return min((step + 1) / s.warmup, line) * left


def save_folder(model: LlamaForCausalLM, tokenizer: Path, folder: Path) -> None:
    """A plain model folder that loads by itself."""
    model.save_pretrained(folder)
    for f in tokenizer.iterdir():
        shutil.copyfile(f, folder / f.name)
    for f in folder.iterdir():
        f.chmod(0o644)


def save_resume(folder: Path, model: LlamaForCausalLM, opt: MatrixAndRest, log: dict) -> None:
    """All state needed to go on from here; the log holds the step."""
    state = {f"model.{k}": v for k, v in model.named_parameters()}
    new = folder / "resume.new"
    save_file(state | opt.tensors(), new, {"log": json.dumps(log)})
    new.replace(folder / "resume.safetensors")
    (folder / "loss.json").write_text(json.dumps(log) + "\n")


def load_resume(folder: Path, model: LlamaForCausalLM, opt: MatrixAndRest) -> dict:
    """Put the saved state back and return the log."""
    tensors = load_file(folder / "resume.safetensors")
    with torch.no_grad():
        for k, v in model.named_parameters():
            v.copy_(tensors[f"model.{k}"])
    opt.load(tensors)
    return json.loads((folder / "loss.json").read_text())


def train(s: TrainSettings, shape: dict, data: Path, out: Path, stop_after: float) -> None:
    """The run; `stop_after` seconds ends it early, keeping the state, for short trials."""
    torch.set_num_threads(1)
    torch.manual_seed(s.seed)
    model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa"))
    tokens = load_file(data / "train.safetensors")["tokens"].long()
    held = pack(load_file(data / "heldout.safetensors")["tokens"].long(), s.context)[::3]
    opt = MatrixAndRest(
        model.named_parameters(), s.lr_matrix, s.lr_rest, s.weight_decay, s.optimizer == "muon"
    )
    out.mkdir(parents=True, exist_ok=True)
    log: dict = {"step": 0, "seconds": 0.0, "train": [], "heldout": []}
    if (out / "resume.safetensors").exists():
        log = load_resume(out, model, opt)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    loss_fn = torch.compile(loss_of, dynamic=False) if s.compile else loss_of
    rows, epoch, done = epoch_rows(tokens, s.context, s.seed, 0), 0, 0
    begin, before, mean = time.time(), log["seconds"], []
    for step in range(s.steps + 1):
        while (step - done + 1) * s.rows > len(rows):
            epoch, done = epoch + 1, step
            rows = epoch_rows(tokens, s.context, s.seed, epoch)
        if step < log["step"]:
            continue
        last = step == s.steps or time.time() - begin > stop_after
        if step % s.eval_every == 0 or last:
            ce = heldout_loss(model, held)
            log["heldout"] = [x for x in log["heldout"] if x[0] < step] + [[step, round(ce, 4)]]
            log |= {"step": step, "seconds": round(before + time.time() - begin, 1)}
            print(f"step {step} heldout {ce:.4f} {log['seconds']}s epoch {epoch}", flush=True)
            save_resume(out, model, opt, log)
        if step in s.checkpoints or step == s.steps:
            save_folder(model, data / "tokenizer", out / f"step{step:05d}")
        if last:
            break
        at = (step - done) * s.rows
        loss = loss_fn(rows[at : at + s.rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip)
        opt.step(rate(step, s))
        mean.append(float(loss.detach()))
        if step % 10 == 9:
            log["train"].append([step + 1, round(sum(mean) / len(mean), 4)])
            mean = []


def main() -> None:
    """Run with the settings file, or with a few of them replaced for a trial."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON")
    p.add_argument("--stop-after", type=float, default=1e9, metavar="SECONDS")
    a = p.parse_args()
    raw = json.loads((HERE / "settings.json").read_text())
    changed = {k: json.loads(v) for k, v in (x.split("=", 1) for x in a.set)}
    train(TrainSettings(**raw["train"] | changed), raw["model"], a.data, a.out, a.stop_after)


if __name__ == "__main__":
    main()
