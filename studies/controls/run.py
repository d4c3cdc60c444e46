"""Which scores tell a trained network from one whose weights were shuffled?

    python studies/controls/run.py

The same TopK dictionary is trained at two sites of wren, of wren with the weights of all blocks
shuffled, and of wren with the embedding shuffled as well (three shuffles each); latents are
described from one part of the text and everything is scored on another. Three training seeds of
the trained network, one of each shuffle and a second one for stability. Writes numbers.json beside
this file, a run at a time: an interrupted study goes on where it stopped.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unweave.artifact.atomic import write_json
from unweave.describe.describe import DescribeSettings, describe_part
from unweave.describe.explain import ExplainSettings
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import load_foreign
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.subject import Subject, load_subject, token_rows
from unweave.validate.attribution_maps.randomise import EMBED, shuffled, stages
from unweave.validate.numbers.collecting import collect_codes, evidence_of
from unweave.validate.numbers.ground import Ground, MeasureSettings
from unweave.validate.numbers.measure import measure
from unweave.validate.numbers.method import Method
from unweave.validate.numbers.next_token import next_token_score
from unweave.validate.placed import placed
from unweave.validate.semantic import score_part, semantic_accuracy

HERE = Path(__file__).parent
SITES = ("blocks.2.resid_post", "blocks.2.mlp.out")
CONTEXT = 128
READ, TOKENS = 220_000, 180_000
"""Tokens read, a tenth of them held out, and those that a dictionary's own run cuts up."""
EXPLAIN_ROWS, HELDOUT_ROWS = 256, 64


def networks(trained: Subject) -> dict[str, tuple[Subject, int]]:
    """Networks by name, each with the training seed of its dictionary."""
    found = {f"trained.{seed}": (trained, seed) for seed in range(3)}
    for shuffle in range(3):
        for variant, parts in (("blocks", []), ("all", [EMBED])):
            one = shuffled(trained, [*stages(trained), *parts], seed=100 + shuffle)
            found[f"{variant}.{shuffle}"] = one, shuffle
            if shuffle == 0:
                found[f"{variant}.0 again"] = one, 50
    return found


def fitted(subject: Subject, site: str, seed: int, corpus: str) -> Dictionary:
    """A dictionary of one seed, from the corpus alone."""
    with TemporaryDirectory() as folder:
        text = Path(folder) / "corpus.txt"
        text.write_text(corpus, encoding="utf-8")
        settings = TrainSiteSettings(
            site=(site,), recipe=("topk-short",), k=(16,), lr=3e-3, text=str(text),
            tokens=TOKENS, context=CONTEXT, seed=seed, threads=1, latents=1024,
        )  # fmt: skip
        run = train_site(subject, settings, out=Path(folder) / "run")
        (dictionary,) = load_foreign(run).values()
    return dictionary.requires_grad_(False)


def scored(subject: Subject, dictionary: Dictionary, rows: tuple[Tensor, Tensor]) -> dict:
    """Every candidate score of one dictionary."""
    one = placed("it", dictionary)
    settings = MeasureSettings(amortised_over=200_000, splice_rows=len(rows[1]), choosing_rows=8)
    ground = Ground(subject, *rows, settings)
    found = measure(ground, Method("it", "dictionary", (one,)))
    more, controls = found.more, found.controls
    code = collect_codes(subject, [one], ground.rows)["it"]
    heldout = code.between(len(rows[0]) * (CONTEXT - 1), code.support.rows)
    evidence = evidence_of("it", code, ground.rows, len(rows[0]), ground.vocabulary)
    both = describe_part(evidence)
    token = describe_part(evidence, DescribeSettings(explain=ExplainSettings(kinds=("token",))))
    only_token = semantic_accuracy([score_part(evidence, token)]).fraction.value
    scores = score_part(evidence, both)
    named = [both[latent].claim.kind for latent in scores.alive.tolist()]
    floor = controls["ce_increase_mean_ablation"].value
    return {
        "auroc": more["auroc"].value,
        "semantic_share": found.semantic_share.value,
        "semantic_share_shuffled": controls["semantic_share_shuffled"].value,
        "share_beyond_token": found.semantic_share.value - only_token,
        "rules_beyond_token": float(np.mean([k not in ("token", "token_class") for k in named])),
        "math_loss_bits": found.math_loss.value,
        "semantic_loss_bits": found.semantic_loss.value,
        "semantic_loss_shuffled_bits": controls["semantic_loss_shuffled"].value,
        "mean_ablation_bits": controls["loss_mean_ablation"].value,
        "semantic_bits_recovered": controls["loss_mean_ablation"].value - found.semantic_loss.value,
        "math_nats_recovered": floor - more["ce_increase"].value,
        "semantic_nats_recovered": floor - more["semantic_ce_increase"].value,
        "l0": more["l0"].value,
        "true_next_token": next_token_score(subject, one, heldout, rows[1]).value,
        "scored_latents": int((scores.count > 0).sum()),
    }


def stability(one: Dictionary, other: Dictionary) -> float:
    """Mean over latents of the best cosine among those of another seed."""
    a, b = (F.normalize(d.directions(), dim=1) for d in (one, other))
    return (a @ b.T).amax(1).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "numbers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = load_subject("wren", dtype="float32")
    assert trained.tokenizer is not None
    text = token_rows(trained, "heldout", tokens=READ, context=CONTEXT, seed=0)
    rows = text.train[:EXPLAIN_ROWS], text.heldout[:HELDOUT_ROWS]
    # Every dictionary's text is cut from these documents, whatever its seed; none scored is there.
    corpus = "\n\n".join(trained.tokenizer.decode(row[1:].tolist()) for row in text.train)
    done = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for site in SITES:
        kept: dict[str, Dictionary] = {}
        for name, (subject, seed) in networks(trained).items():
            key = f"{site} {name}"
            if key in done and not name.startswith(("trained", "blocks.0", "all.0")):
                continue
            kept[name] = fitted(subject, site, seed, corpus)
            if key not in done:
                done[key] = scored(subject, kept[name], rows)
                write_json(arguments.out, done)
                print(key, done[key], flush=True)
        pairs = {"trained": ("trained.0", "trained.1"), "blocks": ("blocks.0", "blocks.0 again"),
                 "all": ("all.0", "all.0 again")}  # fmt: skip
        for group, (a, b) in pairs.items():
            done[f"{site} {group} stability"] = {"mmcs_between_seeds": stability(kept[a], kept[b])}
            write_json(arguments.out, done)


if __name__ == "__main__":
    main()
