"""Measure wren: held-out loss, controls, the stories model beside it, samples and the plot.

Writes numbers.json, loss.json, loss.png and samples.md next to this file, all from one
finished run of `train.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from data import KINDS
from safetensors.torch import load_file
from train import BOS_ID, heldout_loss, pack
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
SAMPLE_SEED, TEMPERATURE = 11, 0.7
PROMPTS = (
    "",
    "",
    "",
    "",
    "Once upon a time, a fox and a hen",
    'The old fisherman looked at the sea and said, "',
    "And the king said unto the people,",
    "I looked at the ship, and",
)
BIGRAM_PRIOR = 20.0  # pseudo-counts of the unigram distribution in each bigram row


def ngram_losses(train: torch.Tensor, rows: torch.Tensor, vocab: int) -> dict[str, float]:
    """Nats a token of smoothed unigram and bigram models on the rows, BOS not counted."""
    uni = torch.bincount(train[train != BOS_ID], minlength=vocab).double() + 1.0
    uni[BOS_ID] = 0.0
    uni /= uni.sum()
    pairs = torch.bincount(train[:-1] * vocab + train[1:], minlength=vocab * vocab)
    bi = pairs.view(vocab, vocab).double() + BIGRAM_PRIOR * uni
    bi /= bi.sum(-1, keepdim=True)
    seen = rows[:, 1:] != BOS_ID
    a, b = rows[:, :-1][seen], rows[:, 1:][seen]
    return {"unigram": float(-uni[b].log().mean()), "bigram": float(-bi[a, b].log().mean())}


@torch.no_grad()
def text_nats(model: torch.nn.Module, ids: list[int], temperature: float = 1.0) -> float:
    """Nats of a text's tokens given BOS (the first id), at a temperature."""
    x = torch.tensor([ids])
    logits = model(input_ids=x[:, :-1], use_cache=False).logits[0] / temperature
    return float(F.cross_entropy(logits, x[0, 1:], reduction="sum"))


def beside_teacher(wren, tok, teacher_folder: Path, held: torch.Tensor, n: int = 200) -> dict:
    """Nats a character of wren and of the stories model on the same held-out stories."""
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder).float()
    ttok = AutoTokenizer.from_pretrained(teacher_folder)
    sums = {"wren": 0.0, "stories260K": 0.0, "stories260K_at_temperature_0.7": 0.0}
    chars = used = 0
    starts = (held == BOS_ID).nonzero().squeeze(1).tolist()
    for a, b in zip(starts, [*starts[1:], len(held)], strict=True):
        ids = held[a : b - 1].tolist()  # without the end token, which the two mark differently
        text = tok.decode(ids[1:])
        theirs = [1, *ttok(text, add_special_tokens=False)["input_ids"]]
        if len(ids) > 257 or len(theirs) > 512 or used == n:
            continue
        used, chars = used + 1, chars + len(text)
        sums["wren"] += text_nats(wren, ids)
        sums["stories260K"] += text_nats(teacher, theirs)
        sums["stories260K_at_temperature_0.7"] += text_nats(teacher, theirs, 0.7)
    return {"stories": used, "characters": chars} | {k: v / chars for k, v in sums.items()}


def by_source(model, file: dict[str, torch.Tensor], context: int) -> dict[str, float]:
    """Nats a token of each kind of held-out text."""
    out = {}
    for k, name in enumerate(KINDS):
        rows = pack(file["tokens"][file["source"] == k].long(), context)
        out[name] = heldout_loss(model, rows)
    return out


def samples(model, tok) -> str:
    """Eight texts as markdown, nothing edited."""
    out = [
        "# Samples from wren",
        "",
        f"Temperature {TEMPERATURE}, no top-k or top-p, seed {SAMPLE_SEED} plus the number, up to "
        "200 new tokens, unedited. Prompts, where given, are in bold.",
    ]
    for i, prompt in enumerate(PROMPTS):
        torch.manual_seed(SAMPLE_SEED + i)
        ids = tok(prompt, return_tensors="pt")["input_ids"]
        y = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            max_new_tokens=200,
            pad_token_id=tok.eos_token_id,
        )[0]
        more = tok.decode(y[ids.shape[1] :], skip_special_tokens=True)
        more = "\n".join(f"> {line}" for line in more.split("\n"))
        head = f"**{prompt}**" if prompt else "(from BOS alone)"
        ending = "" if y[-1] == tok.eos_token_id else " (cut at 200 tokens)"
        out += ["", f"## {i + 1}{ending}", "", head, "", more]
    return "\n".join(out) + "\n"


def plot(log: dict, numbers: dict, path: Path) -> None:
    """Training and held-out loss over steps, with the n-gram controls as lines."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 3.2), dpi=110)
    ax.plot(*zip(*log["train"], strict=True), lw=0.7, color="0.6", label="training, 10 steps")
    held = [p for p in log["heldout"] if p[0] > 0]
    ax.plot(*zip(*held, strict=True), "o-", ms=3, color="C0", label="held out")
    for name, style in (("unigram", ":"), ("bigram", "--")):
        ax.axhline(numbers["nats_per_token"][name], ls=style, color="C3", lw=0.8, label=name)
    ax.set(xscale="log", xlabel="step", ylabel="nats per token", title="wren")
    ax.legend(fontsize=7, frameon=False)
    fig.tight_layout()
    fig.savefig(path)


def main() -> None:
    """Measure the last checkpoint of a run."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("data", type=Path)
    p.add_argument("checkpoints", type=Path)
    p.add_argument("teacher", type=Path, help="folder of the stories model")
    a = p.parse_args()
    torch.set_num_threads(1)
    raw = json.loads((HERE / "settings.json").read_text())
    context = raw["train"]["context"]
    folders = sorted(a.checkpoints.glob("step*"))
    model = AutoModelForCausalLM.from_pretrained(folders[-1])
    tok = AutoTokenizer.from_pretrained(folders[-1])
    file = load_file(a.data / "heldout.safetensors")
    held, train = file["tokens"].long(), load_file(a.data / "train.safetensors")["tokens"].long()
    rows = pack(held, context)
    made = json.loads((a.data / "data.json").read_text())
    shipped = heldout_loss(model, rows)
    random = heldout_loss(AutoModelForCausalLM.from_pretrained(folders[0]), rows)
    per_char = int((held != BOS_ID).sum()) / sum(made["heldout_characters"].values())
    log = json.loads((a.checkpoints / "loss.json").read_text())
    step_tokens = raw["train"]["rows"] * context
    numbers = {
        "parameters": sum(q.numel() for q in model.parameters()),
        "data": made,
        "training": {
            "steps": log["step"],
            "tokens": log["step"] * step_tokens,
            "passes_over_the_data": log["step"] * raw["train"]["rows"] / len(pack(train, context)),
            "seconds": log["seconds"],
            "tokens_per_second": log["step"] * step_tokens / log["seconds"],
        },
        "nats_per_token": {"wren": shipped, "random_weights": random}
        | ngram_losses(train, rows, raw["model"]["vocab_size"]),
        "wren_nats_per_token_by_source": by_source(model, file, context),
        "nats_per_character": {"wren": shipped * per_char, "random_weights": random * per_char},
        "same_stories_nats_per_character": beside_teacher(
            model, tok, a.teacher, held[file["source"] == 0]
        ),
        "checkpoints": {
            f.name: heldout_loss(AutoModelForCausalLM.from_pretrained(f), rows) for f in folders
        },
    }
    text = json.dumps(numbers, indent=2, default=float)
    numbers = json.loads(text, parse_float=lambda x: round(float(x), 4))
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    log["heldout"] = sorted(dict(log["heldout"]).items())
    (HERE / "loss.json").write_text(json.dumps(log) + "\n")
    plot(log, numbers, HERE / "loss.png")
    (HERE / "samples.md").write_text(samples(model, tok))
    print(text)


if __name__ == "__main__":
    main()
