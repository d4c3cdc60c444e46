"""Text that a subject brings along: what it writes itself, and what wren was not trained on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from unweave.artifact.atomic import new_file
from unweave.errors import UserError
from unweave.progress import Advance, Progress
from unweave.subject.cache import cache_folder
from unweave.subject.generation import continue_rows
from unweave.subject.network import Subject
from unweave.subject.texts import Ids, Need

VERSION = 1
"""Goes into the name of the cache; raise it when sampling changes what it writes."""


class OwnText:
    """The subject writes from its start token, at temperature 1, and what it wrote is kept.

    A document ends where the subject ends it, or when a row is full. Batches are seeded one by
    one, so an interrupted or longer run finds what was written before.
    """

    name = "self"

    def provenance(self) -> str:
        """Say in a sentence where the text comes from."""
        return "written by the subject itself from its start token, at temperature 1"

    def documents(self, subject: Subject, need: Need, progress: Progress) -> Iterator[Ids]:
        """Yield documents from the cache, and after its end from the subject."""
        folder = _cache(subject, need)
        batch = batch_rows(subject)
        total = -(-need.tokens // (batch * need.context)) * batch * need.context
        with progress.task("Sampling text", total=total, unit="tokens") as advance:
            number = 0
            while True:
                file = folder / f"{number:05d}.safetensors"
                if not file.is_file():
                    _write(subject, need, number, batch, file, advance)
                else:
                    advance(batch * need.context)
                rows = load_file(file)
                ends = np.cumsum(rows["lengths"])
                documents = np.split(rows["tokens"], ends[:-1])
                if not any(map(len, documents)):
                    raise UserError(f"{subject.name} ends every text at once: it writes nothing")
                yield from (document for document in documents if len(document))
                number += 1


def batch_rows(subject: Subject) -> int:
    """Rows written at once: enough that reading the weights is not what a step waits for."""
    return 64 if subject.parameters > 20_000_000 else 256


def _cache(subject: Subject, need: Need) -> Path:
    dtype = str(subject.dtype).removeprefix("torch.")
    settings = f"v{VERSION}-{dtype}-context{need.context}-seed{need.seed}"
    return cache_folder() / "self" / subject.fingerprint[:32] / settings


def _write(
    subject: Subject, need: Need, number: int, batch: int, file: Path, advance: Advance
) -> None:
    """Write one batch of documents and keep it."""
    start = subject.start_token
    if subject.changed:
        raise UserError(f"text written by {subject.name} with parts swapped in is not its own")
    if start is None:
        raise UserError(
            f"{subject.name} has neither a begin-of-text nor an end-of-text token, so it cannot "
            "write from nothing; name a text instead of self"
        )
    stop = {start, subject.tokenizer.eos if subject.tokenizer else None}
    prompts = torch.full((batch, 1), start, device=subject.device)
    seed = int(np.random.SeedSequence([need.seed, number]).generate_state(1)[0])
    rows = continue_rows(
        subject, prompts, need.context - 1, temperature=1.0, seed=seed, stop=stop, advance=advance
    )
    tokens = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    with new_file(file) as partial:
        save_file({"tokens": tokens, "lengths": lengths}, partial)


class HeldOut:
    """The token ids that ship with wren, of text that it was not trained on."""

    name = "heldout"

    def provenance(self) -> str:
        """Say in a sentence where the text comes from."""
        return "stories, King James Bible and Moby Dick that wren was not trained on"

    def documents(self, subject: Subject, need: Need, progress: Progress) -> Iterator[Ids]:
        """Yield the shipped documents in seeded random order."""
        from unweave.subject.loading import wren_folder

        folder = wren_folder()
        file = folder / "heldout.safetensors"
        if subject.name != "wren" or not file.is_file():
            raise UserError(
                f"the text heldout is token ids of wren, and not for {subject.name}; name another "
                "text, such as self"
            )
        tokens = load_file(file)["tokens"].astype(np.int32)
        starts = np.flatnonzero(tokens == subject.start_token)
        documents = np.split(tokens, starts[1:] if len(starts) and starts[0] == 0 else starts)
        marks = [subject.start_token, subject.tokenizer.eos if subject.tokenizer else None]
        for at in np.random.default_rng(need.seed).permutation(len(documents)):
            document = documents[at][~np.isin(documents[at], [m for m in marks if m is not None])]
            if len(document):
                yield document
