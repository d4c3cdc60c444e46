"""Gated (GLU) against ReLU latents for one MLP of wren, at equal k and equal training.

    python studies/glu/run.py

TopK transcoders of wren's `blocks.2` MLP, 768 latents (the MLP's signed neurons), trained on the
same vectors: random start, and start from the network's own neurons; and a ReLU transcoder with
half as many latents again, which has as many parameters as a gated one. Held-out FVU, and the rise
of the next-token loss when the transcoder stands in for the MLP. Writes numbers.json beside this
file.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.linear import Linear
from unweave.dictionaries.glu_start import start_glu_
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.dictionaries.spec import PartSpec
from unweave.dictionaries.start import start_mlp
from unweave.subject import MLPWeights, Subject, load_subject, token_rows
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.objectives.splice import Splice
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.splice import compare_logits

HERE = Path(__file__).parent
LAYER, LATENTS, BATCH = 2, 768, 512
READ, WRITE = f"blocks.{LAYER}.mlp.in", f"blocks.{LAYER}.mlp.out"
ARMS = ("relu", "relu_neurons", "relu_equal_parameters", "glu", "glu_neurons")


def started(
    arm: str, k: int, weights: MLPWeights, x: Tensor, y: Tensor, *, seed: int
) -> tuple[Dictionary, TraineeSettings]:
    """A transcoder of one arm and how it is trained; those from neurons are set already."""
    d = x.shape[1]
    spec = DictionarySpec(
        name=f"{arm}-{k}",
        reads=(Port(site=READ, width=d),),
        writes=(Port(site=WRITE, width=d),),
        n_latents=LATENTS * 3 // 2 if arm == "relu_equal_parameters" else LATENTS,
        activation=TopK(k=k),
        encoder=GLU() if arm.startswith("glu") else Linear(),
    )
    dictionary = Dictionary(spec)
    if not arm.endswith("neurons"):
        return dictionary, TraineeSettings(lr=2e-3)
    if arm == "glu_neurons":
        start_glu_(dictionary, weights, x, y, seed=seed)
    else:
        part = start_mlp(
            PartSpec(
                name=f"L{LAYER}.mlp", input_site=READ, output_site=WRITE, d_in=d, d_out=d,
                n_latents=LATENTS, k=k,
            ),
            weights, x, y, seed=seed,
        )  # fmt: skip
        dictionary.rescale_([part.spec.input_scale], [part.spec.output_scale])
        with torch.no_grad():
            dictionary.encoder.W_enc.copy_(part.W_enc)
            dictionary.encoder.b_enc.copy_(part.b_enc)
            dictionary.W_dec.copy_(part.W_dec)
            dictionary.b_dec.copy_(part.b_dec)
    return dictionary, TraineeSettings(lr=2e-3, start=None)


def harvested(subject: Subject, rows: Tensor) -> dict[str, Tensor]:
    with Workers(1) as workers:
        settings = HarvestSettings(window_tokens=rows.numel())
        harvester = Harvester(
            subject, rows, [READ, WRITE], workers=workers, seed=0, settings=settings
        )
        return {site: v.float() for site, v in harvester.window(0).vectors.items()}


def measured(
    subject: Subject, dictionary: Dictionary, held: dict[str, Tensor], rows: Tensor, logits: Tensor
) -> dict[str, float]:
    """Held-out fidelity, and what standing in for the MLP costs."""
    x, y = held[READ], held[WRITE]
    code = dictionary.encode(x)
    fidelity = fidelity_of(fidelity_sums(y, dictionary.decode(code), code))
    with torch.no_grad():
        spliced = Splice({"d": dictionary}).run(subject, rows).logits
    assert spliced is not None
    scores = compare_logits(logits, spliced, rows)
    return {
        "fvu": fidelity.fvu,
        "l0": fidelity.l0,
        "alive": fidelity.alive,
        "ce_increase": float(scores.ce_increase.mean()),
        "kl": float(scores.kl.mean()),
    }


def runs(seeds: int, ks: list[int], steps: int) -> Iterator[dict]:
    subject = load_subject("wren", dtype="float32")
    text = token_rows(subject, "heldout", tokens=80_000, context=128, seed=0, heldout_share=0.15)
    weights = subject.mlp_weights(LAYER)
    training, held = harvested(subject, text.train), harvested(subject, text.heldout)
    rows = text.heldout[:48]
    with torch.no_grad():
        logits = subject.run(rows).logits
    assert logits is not None
    first = VectorBatch({site: v[:8192] for site, v in training.items()})
    for seed in range(seeds):
        made = {}
        for k in ks:
            for arm in ARMS:
                x, y = training[READ], training[WRITE]
                dictionary, settings = started(arm, k, weights, x, y, seed=seed)
                if arm.endswith("neurons") and seed == 0:
                    before = measured(subject, dictionary.eval(), held, rows, logits)
                    yield {"arm": arm, "k": k, "seed": seed, "steps": 0, **before}
                trainee = Trainee(
                    {"d": dictionary}, settings, steps=steps, batch=BATCH, seed=50 + seed,
                    name=f"{arm}-{k}",
                )  # fmt: skip
                made[arm, k] = dictionary, trainee
        source = ArraySource(training, batch=BATCH, steps=steps, seed=seed)
        train(
            [trainee for _, trainee in made.values()],
            source,
            begin=first,
            settings=TrainSettings(log_every=steps),
        )
        for (arm, k), (dictionary, _) in made.items():
            found = measured(subject, dictionary, held, rows, logits)
            yield {"arm": arm, "k": k, "seed": seed, "steps": steps, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--out", type=Path, default=HERE / "numbers.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for run in runs(asked.seeds, asked.k, asked.steps):
        found.append({k: round(v, 4) if isinstance(v, float) else v for k, v in run.items()})
        print(found[-1], flush=True)
    settings = {"layer": LAYER, "latents": LATENTS, "batch": BATCH, "steps": asked.steps}
    asked.out.write_text(json.dumps({**settings, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
