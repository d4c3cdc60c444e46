"""What dictionaries cost the network beside truncation and noise of the same FVU.

    python studies/hyperparameters/splice.py

Writes splice.json. Dictionaries are trained here with the rates of the law's first reading.
"""

import torch
from read import HERE
from worlds import WREN, data, subject, text

from unweave.artifact.atomic import write_json
from unweave.dictionaries.dictionary import Dictionary
from unweave.training.batches import ArraySource
from unweave.training.laws.spliced import loss, relation
from unweave.training.trainee import Trainee
from unweave.training.trainer import train
from unweave.training.trial import LEARNER, SITE, Trial, judged

NAMES = ("wren-resid2-self", "wren-mlp3-self", "wren-attn1-self")
SIZES = ((256, 4), (512, 16), (1024, 8))
ROWS = 48


def main() -> None:
    torch.set_num_threads(1)
    found = {"relations": {}, "dictionaries": []}
    for name in NAMES:
        vectors, rows = data(name), text("self").heldout[:ROWS]
        site = WREN[name][1]
        said = relation(subject(), rows, site, vectors.train[:32_768])
        found["relations"][name] = [point._asdict() for point in said.points]
        original = loss(subject(), rows, site, None)
        for n, k in SIZES:
            dictionary = trained(vectors.train, n, k)
            fvu = judged({SITE: dictionary}, vectors.heldout)["fvu"]
            truncation, noise = said.at(fvu)
            rise = loss(subject(), rows, site, dictionary) - original
            found["dictionaries"].append(
                {
                    "data": name, "n": n, "k": k, "fvu": fvu, "ce_increase": rise,
                    "truncation": truncation, "noise": noise,
                }
            )  # fmt: skip
            print(found["dictionaries"][-1], flush=True)
    write_json(HERE / "splice.json", found)


def trained(vectors: torch.Tensor, n: int, k: int) -> Dictionary:
    trial = Trial(n_latents=n, k=k, lr=8e-3, tokens=2**16)
    dictionary = Dictionary(trial.spec(SITE, vectors.shape[1]))
    source = ArraySource({SITE: vectors}, batch=trial.batch, steps=trial.steps, seed=5)
    trainee = Trainee(
        {SITE: dictionary}, trial.settings(), steps=trial.steps, batch=trial.batch, seed=LEARNER
    )
    train([trainee], source)
    return dictionary


if __name__ == "__main__":
    main()
