"""What both sides of the comparison are given: texts, rows of tokens, and one dictionary.

OUT/data/NAME/{train,test}.jsonl   text, label, cue
OUT/rows.npy                       rows of tokens for the core metrics
OUT/DICTIONARY.safetensors         W_enc, b_enc, W_dec, b_dec, k or threshold; raw units,
                                   decoder rows of norm one, as SAEBench asks for
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from unweave.dictionaries.dictionary import Dictionary
from unweave.subject import Subject
from unweave.subject.rows import token_rows
from unweave.validate.labelled import Example, LabelledSet, load_sets

CONTEXT = 48
"""Tokens of a text."""
ROWS, ROW = 64, 128
"""Rows of tokens of the core metrics, and tokens in one."""

PEOPLE = {
    "male": [
        "James", "Robert", "John", "Michael", "David", "William", "Thomas", "Daniel", "Mark",
        "Paul", "Steven", "Andrew", "Kevin", "Brian", "George", "Edward", "Peter", "Henry",
        "Walter", "Frank",
    ],
    "female": [
        "Mary", "Linda", "Susan", "Karen", "Nancy", "Betty", "Helen", "Sandra", "Donna", "Carol",
        "Ruth", "Sharon", "Laura", "Sarah", "Anna", "Emily", "Julia", "Alice", "Rose", "Clara",
    ],
}  # fmt: skip
WORDS = {"male": ("He", "he", "his"), "female": ("She", "she", "her")}
TRADES = {
    "professor": (
        "teaches {field} at {place} University", "has published papers on {field}",
        "gives lectures on {field} to undergraduate students", "holds a chair in {field}",
        "supervises doctoral students in {field}", "leads a research group on {field}",
    ),
    "nurse": (
        "cares for patients at {place} Hospital", "works night shifts in the {ward} ward",
        "is registered in {ward} nursing", "helps patients recover after surgery",
        "gives medicine to patients in the {ward} unit", "trained in {ward} care at {place} Clinic",
    ),
}  # fmt: skip
FIELDS = [
    "physics", "history", "linguistics", "economics", "mathematics", "chemistry", "philosophy",
    "geology",
]  # fmt: skip
WARDS = ["paediatric", "cardiac", "emergency", "surgical", "oncology", "maternity", "intensive"]
PLACES = [
    "Riverside", "Oakdale", "Lincoln", "Hillcrest", "Westfield", "Newport", "Ashford", "Lakeview",
    "Stanton",
]  # fmt: skip


def bios(count: int, seed: int) -> list[Example]:
    """`count` made-up biographies of each trade and gender; the trade shows in what is done, the
    gender in first name and pronouns.
    """
    draw = random.Random(seed)
    found = []
    for trade, does in TRADES.items():
        for gender, names in PEOPLE.items():
            for _ in range(count):
                Sub, sub, pos = WORDS[gender]
                first, *rest = draw.sample(does, 3)
                fill = {"field": draw.choice(FIELDS), "ward": draw.choice(WARDS)}
                said = [line.format(place=draw.choice(PLACES), **fill) for line in (first, *rest)]
                years = draw.randint(3, 30)
                found.append(Example(
                    f"{draw.choice(names)} {said[0]}. {Sub} {said[1]}, and {sub} {said[2]}. In"
                    f" {pos} {years} years there {sub} has seen much.", trade, gender,
                ))  # fmt: skip
    draw.shuffle(found)
    return found


def reviews(sets: dict[str, LabelledSet], seed: int) -> tuple[list[Example], list[Example]]:
    """Sentiment crossed with where the text is from: a sentence of SST-2, or the opening of a
    review of the movie review corpus. Train and test texts are those of the two corpora.
    """
    draw, sides = random.Random(seed), []
    for side in ("train", "test"):
        found = [
            Example(e.text, e.label, source)
            for name, source in (("sst2", "sentence"), ("movie_reviews", "review"))
            for e in getattr(sets[name], side)
            if len(e.text) > 40
        ]
        draw.shuffle(found)
        sides.append(found)
    return sides[0], sides[1]


def halves(found: LabelledSet, most: int, per: tuple[int, int], seed: int) -> LabelledSet:
    """At most `per` texts of each of the `most` commonest labels; the cue splits them evenly and
    means nothing, since published TPP balances every class by one.
    """
    draw = random.Random(seed)
    sides = []
    for side, count in zip((found.train, found.test), per, strict=True):
        kept = []
        for label in found.labels[:most]:
            texts = [e.text for e in side if e.label == label and len(e.text) > 40]
            drawn = draw.sample(texts, min(count, len(texts)))
            kept += [Example(t, label, "ab"[place % 2]) for place, t in enumerate(drawn)]
        sides.append(tuple(kept))
    return LabelledSet(found.name, *sides)


def write_inputs(
    out: Path, subject: Subject, files: Path, dictionaries: dict[str, Dictionary]
) -> None:
    """Write everything; `files` is a folder of public data sets."""
    sets = {found.name: found for found in load_sets(files)}
    small = {
        "ag_news": halves(sets["ag_news"], 4, (300, 120), 0),
        "sst2": halves(sets["sst2"], 2, (300, 120), 1),
        "wiki_topics": halves(sets["wiki_topics"], 5, (240, 100), 2),
    }
    small["bios"] = LabelledSet("bios", tuple(bios(260, 3)), tuple(bios(130, 4)))
    small["reviews"] = LabelledSet("reviews", *map(tuple, reviews(sets, 5)))
    for name, found in small.items():
        for side in ("train", "test"):
            path = out / "data" / name / f"{side}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = (json.dumps(e._asdict(), ensure_ascii=False) for e in getattr(found, side))
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rows = token_rows(
        subject, "wiki", tokens=2 * ROWS * ROW, context=ROW, heldout_share=0.5, seed=0
    )
    np.save(out / "rows.npy", rows.heldout[:ROWS].numpy())
    for name, dictionary in dictionaries.items():
        save_file(raw_weights(dictionary), out / f"{name}.safetensors")


def raw_weights(dictionary: Dictionary) -> dict[str, torch.Tensor]:
    """Weights in raw units with decoder rows of norm one: latents are in units of the site."""
    spec, scale = dictionary.spec, dictionary.spec.reads[0].scale
    assert spec.reads == spec.writes
    length = dictionary.W_dec.detach().norm(dim=1)
    W_enc, b_dec = dictionary.W_enc.detach() * length[:, None], dictionary.b_dec.detach() / scale
    b_enc = dictionary.b_enc.detach() * length / scale
    if not spec.pre_bias:  # theirs takes b_dec away before encoding
        b_enc = b_enc + W_enc @ b_dec
    found = {"W_enc": W_enc.T, "b_enc": b_enc, "W_dec": dictionary.W_dec.detach() / length[:, None]}
    found["b_dec"] = b_dec
    if spec.activation.kind == "topk":
        found["k"] = torch.tensor(spec.activation.k)
    else:
        found["threshold"] = dictionary.activation.threshold.detach() * length.mean() / scale
    return {name: tensor.float().contiguous() for name, tensor in found.items()}
