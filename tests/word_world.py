"""A subject that reads words, and dictionaries whose latents are known: one a word, or worse."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from tiny_subject import START, tiny_llama
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.subject import Subject, wrap_module
from unweave.subject.tokenizer import Tokenizer
from unweave.validate.labelled import Example, LabelledSet
from unweave.validate.placed import Placed
from unweave.validate.protocols.protocol import Bench

SITE = "blocks.0.resid_pre"
FILLERS = [f"w{i}" for i in range(30, 60)]


class Words:
    """Every word `w17` is token 17."""

    bos_token_id, eos_token_id = START, 2

    def __len__(self) -> int:
        return 64

    def __call__(self, text: Sequence[str], *, add_special_tokens: bool) -> dict:
        return {"input_ids": [[int(word[1:]) for word in line.split()] for line in text]}

    def decode(self, ids: Sequence[int], *, clean_up_tokenization_spaces: bool) -> str:
        return " ".join(f"w{i}" for i in ids)

    def save_pretrained(self, folder: Path) -> None:
        raise AssertionError("nobody saves this")


def reader() -> Subject:
    return wrap_module(tiny_llama().model, name="reader", tokenizer=Tokenizer(Words()))


class WordLatents:
    """One latent for each group of words; it writes the mean of their embeddings."""

    def __init__(self, embed: Float[Tensor, "vocab d"], groups: list[int]) -> None:
        self.embed, self.groups = embed, torch.tensor(groups)
        self.n_latents = int(self.groups.max()) + 1
        sums = embed.new_zeros(self.n_latents, embed.shape[1]).index_add_(0, self.groups, embed)
        self.rows = sums / torch.bincount(self.groups)[:, None]

    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        word = torch.cdist(x.float(), self.embed).argmin(1)
        latent = self.groups[word][:, None]
        return SparseCode.from_topk(latent, torch.ones(len(x), 1), self.n_latents)

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        return code.dense() @ self.rows

    def directions(self) -> Float[Tensor, "latents d_out"]:
        return self.rows


def word_latents(subject: Subject, merged: Sequence[Sequence[int]] = ()) -> Placed:
    """A latent a word, but for the words of `merged`, which share one."""
    groups = list(range(64))
    for words in merged:
        for word in words:
            groups[word] = words[0]
    seen = {old: new for new, old in enumerate(dict.fromkeys(groups))}
    coder = WordLatents(subject.embed().float(), [seen[g] for g in groups])
    return Placed("words", coder, (SITE,), (SITE,))


def texts(marks: Sequence[Sequence[str]], count: int, seed: int) -> list[str]:
    """`count` texts: one of each list of marks, among fillers."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = [*random.choice(FILLERS, 4), *(str(random.choice(mark)) for mark in marks)]
        found.append(" ".join(random.permutation(words)))
    return found


def classes(count: int, names: Sequence[str] = ("w10", "w11", "w12")) -> LabelledSet:
    """Texts of which one word tells the class."""
    sides = []
    for seed in (0, 100):
        examples = []
        for place, name in enumerate(names):
            examples += [Example(t, name) for t in texts([[name]], count, seed + place)]
        sides.append(tuple(examples))
    return LabelledSet("classes", sides[0], sides[1])


def crossed(count: int) -> LabelledSet:
    """Label by w10 or w11, cue by w20 or w21, all four combinations."""
    sides = []
    for seed in (0, 100):
        examples = []
        for label in ("w10", "w11"):
            for cue in ("w20", "w21"):
                made = texts([[label], [cue]], count, seed + int(label[1:]) + int(cue[1:]))
                examples += [Example(t, label, cue) for t in made]
        sides.append(tuple(examples))
    return LabelledSet("crossed", sides[0], sides[1])


def bench_of(subject: Subject, one: Placed, folder: Path, *sets: LabelledSet) -> Bench:
    """A bench on these sets, written as one's own tables."""
    data = folder / "data"
    for found in sets:
        for side in ("train", "test"):
            path = data / found.name / f"{side}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = ["\t".join(e) for e in getattr(found, side)]
            path.write_text("\n".join(["text\tlabel\tcue", *lines]) + "\n")
    return Bench(subject, one, folder / "store", data=data)
