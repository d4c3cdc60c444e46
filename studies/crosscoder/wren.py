"""Two real checkpoints: wren and wren tuned further on plays, through one crosscoder.

    python studies/crosscoder/wren.py PLAYS.txt

Tunes a copy of wren on a text that it has never seen, trains L1-of-norms and BatchTopK crosscoders
of both at `blocks.3.resid_post`, and counts exclusive latents before and after latent scaling on
held-out text (half stories, half plays). The control is wren beside itself. Writes wren.json.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unweave.activations.paired import PairedHarvester, paired_site
from unweave.activations.window import HarvestSettings
from unweave.activations.workers import Workers
from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.crosscoder import beside, crosscoder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.initial import Start
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.subject import Subject, load_subject, token_rows, wrap_module
from unweave.training.batches import ArraySource
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.diffing import diff_sites

HERE = Path(__file__).parent
SITE, LATENTS, L0, BATCH, CONTEXT = "blocks.3.resid_post", 512, 16, 512, 128


def loss_of(model: torch.nn.Module, rows: Tensor) -> Tensor:
    logits = model(rows).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def tuned(subject: Subject, rows: Tensor, held: Tensor, *, steps: int) -> tuple[Subject, dict]:
    """A copy of a subject, trained on rows of text, with its held-out loss before and after."""
    model = copy.deepcopy(subject.model).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    with torch.no_grad():
        before = loss_of(model, held).item()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randint(len(rows), (8,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1.0, (step + 1) / 10, (steps - step) / (0.3 * steps))
        loss = loss_of(model, rows[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = loss_of(model.eval(), held).item()
    losses = {"plays_before": round(before, 4), "plays_after": round(after, 4)}
    return wrap_module(model, name="tuned", tokenizer=subject.tokenizer), losses


def harvested(subjects: dict[str, Subject], rows: Tensor) -> dict[str, Tensor]:
    with Workers(1) as workers:
        settings = HarvestSettings(window_tokens=rows.numel())
        both = PairedHarvester(subjects, rows, [SITE], workers=workers, seed=0, settings=settings)
        return {site: v.clone() for site, v in both.window(0).vectors.items()}


def trained(kind: str, vectors: dict[str, Tensor], *, seed: int, steps: int) -> Dictionary:
    activation = ReLU() if kind == "l1" else BatchTopK(k=L0)
    widths = {site: v.shape[1] for site, v in vectors.items()}
    dictionary = Dictionary(crosscoder(widths, LATENTS, activation))
    penalties = (Penalty(form=L1(), weight=1.0, target_l0=L0),) if kind == "l1" else ()
    settings = TraineeSettings(lr=2e-3, penalties=penalties, start=Start(decoder_norm=0.5))
    source = ArraySource(vectors, batch=BATCH, steps=steps, seed=seed)
    trainee = Trainee({"x": dictionary}, settings, steps=steps, batch=BATCH, seed=seed + 7)
    train([trainee], source, settings=TrainSettings(log_every=steps))
    return dictionary


def measured(dictionary: Dictionary, held: dict[str, Tensor]) -> dict:
    x = beside(dictionary, held)
    code = dictionary.encode(x)
    fidelity = fidelity_of(fidelity_sums(x, dictionary.decode(code), code))
    diff = diff_sites(dictionary, held)
    own = diff.classes.only_second & (diff.scaling.fired > 0)
    return {
        "l0": round(fidelity.l0, 3),
        "fvu": round(fidelity.fvu, 4),
        "alive": round(fidelity.alive, 4),
        **diff.counts,
        "genuine_first": diff.genuine["only_first"],
        "genuine_second": diff.genuine["only_second"],
        "second_failed_by_error": int((own & (diff.scaling.nu_err.abs() >= 0.2)).sum()),
        "second_failed_by_reconstruction": int((own & (diff.scaling.nu_rec.abs() >= 0.5)).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plays", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tune-steps", type=int, default=60)
    parser.add_argument("--pairs", nargs="+", default=["tuned", "identical"])
    parser.add_argument("--out", type=Path, default=HERE / "wren.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = load_subject("wren", dtype="float32")
    stories, plays = (
        token_rows(base, text, tokens=tokens, context=CONTEXT, seed=0, heldout_share=0.2)
        for text, tokens in (("heldout", 40_000), (str(asked.plays), 160_000))
    )
    held_plays, n = plays.heldout[: len(stories.heldout)], len(stories.train)
    other, losses = base, {}
    if "tuned" in asked.pairs:
        other, losses = tuned(base, plays.train, held_plays, steps=asked.tune_steps)
        print(losses, flush=True)
    runs = []
    for pair in asked.pairs:
        second = other if pair == "tuned" else base
        subjects = {"base": base, pair: second}
        vectors = harvested(subjects, torch.cat([stories.train, plays.train[:n]]))
        held = harvested(subjects, torch.cat([stories.heldout, held_plays]))
        first, second_ = (held[paired_site(name, SITE)] for name in subjects)
        moved = ((first - second_).square().sum() / first.square().sum()).item()
        for seed in range(asked.seeds):
            for kind in ("l1", "batchtopk"):
                dictionary = trained(kind, vectors, seed=seed, steps=asked.steps)
                runs.append({"pair": pair, "kind": kind, "seed": seed, "moved": round(moved, 4)})
                runs[-1] |= measured(dictionary, held)
                print(runs[-1], flush=True)
    settings = {"site": SITE, "latents": LATENTS, "steps": asked.steps, "losses": losses}
    asked.out.write_text(json.dumps({**settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
