"""Build wren's corpus: clean the sampled stories, add the prose, split, tokenise.

Everything is decided by `settings.json` and the digests in `prose.py`. The held-out split is
drawn by document before the tokenizer is trained, and the corpora themselves are never
committed: only the tokenizer and the held-out token ids are.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import prose
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from train import BOS_ID, NEWLINE_ID
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
KINDS = ("story", "kjv", "moby")
BOS, EOS = "<s>", "</s>"
SENTENCE_END = re.compile(r"[.!?][\"']?(?=\s|$)")


@dataclass(frozen=True)
class DataSettings:
    """How the corpus is made; the story batches are what `sample.py` drew for each seed."""

    story_files: tuple[str, ...]
    story_seeds: tuple[int, ...]
    story_batches: tuple[int, ...]
    vocab: int
    heldout_share: float
    seed: int
    min_chars: int
    min_distinct_trigrams: float
    max_sentence_words: float
    prose_part_chars: int


def clean_story(text: str, ended: bool, s: DataSettings) -> str | None:
    """A story worth learning from, or nothing."""
    text = re.sub(r" *\n\s*", "\n", re.sub(r"[ \t]+", " ", text)).strip()
    ends = list(SENTENCE_END.finditer(text))
    if not ends or not text.isascii() or not all(c.isprintable() or c == "\n" for c in text):
        return None
    if not ended or ends[-1].end() != len(text):
        text = text[: ends[-1].end()]
    words = text.lower().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(text) < s.min_chars or len(set(trigrams)) < s.min_distinct_trigrams * len(trigrams):
        return None
    sentences = [x.strip() for x in re.split(r"[.!?\n]+", text) if len(x.split()) > 2]
    if any(a == b for a, b in pairwise(sentences)):
        return None
    return text


def read_stories(folder: Path, s: DataSettings) -> tuple[list[str], int]:
    """All kept stories without exact repeats, and how many were read."""
    kept: dict[str, None] = {}
    read = 0
    for name in s.story_files:
        for line in (folder / name).read_text().splitlines():
            row = json.loads(line)
            read += 1
            text = clean_story(row["text"], row["ended"], s)
            if text:
                kept[text] = None
    return list(kept), read


def split(docs: list[tuple[int, str]], s: DataSettings) -> tuple[list, list]:
    """Training and held-out documents, the held-out share taken from each kind."""
    g = torch.Generator().manual_seed(s.seed)
    order = [docs[i] for i in torch.randperm(len(docs), generator=g).tolist()]
    train, held = [], []
    quota = {k: round(s.heldout_share * sum(d[0] == k for d in docs)) for k in range(len(KINDS))}
    for kind, text in order:
        quota[kind] -= 1
        (held if quota[kind] >= 0 else train).append((kind, text))
    return train, held


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE, lossless on any text, that starts every text with BOS."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS} $B",
                special_tokens=[(BOS, tok.token_to_id(BOS))],
            ),
        ]
    )
    return tok


def save_tokenizer(fast: PreTrainedTokenizerFast, folder: Path) -> None:
    """The tokenizer's files, worded so that older and newer transformers load them alike."""
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def save_tokens(tok: Tokenizer, docs: list[tuple[int, str]], path: Path) -> dict[str, int]:
    """BOS document EOS after one another, with the kind of each token beside it."""
    eos = tok.token_to_id(EOS)
    ids, kinds = [], []
    for (kind, _), enc in zip(docs, tok.encode_batch([d[1] for d in docs]), strict=True):
        ids.extend([*enc.ids, eos])
        kinds.extend([kind] * (len(enc.ids) + 1))
    tokens, source = torch.tensor(ids, dtype=torch.int16), torch.tensor(kinds, dtype=torch.uint8)
    save_file({"tokens": tokens, "source": source}, path, {"sources": ",".join(KINDS)})
    path.chmod(0o644)
    counts = {name: int((source == k).sum()) for k, name in enumerate(KINDS)}
    return {"documents": len(docs), "tokens": len(ids), **counts}


def main() -> None:
    """Read the sources in one folder, write tokens and tokenizer to another."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("sources", type=Path, help="folder with the story files and the packages")
    p.add_argument("out", type=Path)
    a = p.parse_args()
    raw = json.loads((HERE / "settings.json").read_text())
    s = DataSettings(**raw["data"])
    stories, read = read_stories(a.sources, s)
    docs = [(0, t) for t in stories]
    docs += [(1, t) for t in prose.kjv_chapters(a.sources)]
    docs += [(2, t) for t in prose.moby_parts(a.sources, s.max_sentence_words, s.prose_part_chars)]
    train, held = split(docs, s)
    a.out.mkdir(parents=True, exist_ok=True)
    tok = train_tokenizer([t for _, t in train], s.vocab)
    assert all(tok.decode(tok.encode(t).ids) == t for _, t in held), "tokenizer is not lossless"
    assert [tok.token_to_id(c) for c in (BOS, "Ċ")] == [BOS_ID, NEWLINE_ID]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=raw["model"]["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    save_tokenizer(fast, a.out / "tokenizer")
    chars = {n: sum(len(t) for k, t in docs if KINDS[k] == n) for n in KINDS}
    report = {
        "stories_read": read,
        "stories_kept": len(stories),
        "characters": chars,
        "train": save_tokens(tok, train, a.out / "train.safetensors"),
        "heldout": save_tokens(tok, held, a.out / "heldout.safetensors"),
        "heldout_characters": {n: sum(len(t) for k, t in held if KINDS[k] == n) for n in KINDS},
    }
    (a.out / "data.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
