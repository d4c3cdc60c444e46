"""Which latents of a method's coders fire where: evidence for describing and for counting bits."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unweave.describe.evidence import PartEvidence
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.code import SparseCode
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.placed import Placed


@torch.no_grad()
def collect_codes(
    subject: Subject,
    parts: Sequence[Placed],
    rows: Int[Tensor, "rows pos"],
    *,
    rows_at_once: int = 8,
    progress: Progress = QUIET,
) -> dict[str, SparseCode]:
    """The code of every coder at all places of the rows but position 0, in the original network."""
    sites = list(dict.fromkeys(site for part in parts for site in part.reads))
    found: dict[str, list[SparseCode]] = {part.name: [] for part in parts}
    with progress.task("Collecting firings", total=rows.numel(), unit="tokens") as advance:
        for group in rows.split(rows_at_once):
            run = subject.run(group, capture=sites, logits=False).sites
            flat = {site: run[site][:, 1:].flatten(2).flatten(0, 1).float() for site in sites}
            for part in parts:
                x = torch.cat([flat[site] for site in part.reads], dim=1)
                found[part.name].append(part.coder.encode(x))
            advance(group.numel())
    return {name: SparseCode.cat(codes) for name, codes in found.items()}


def evidence_of(
    name: str,
    code: SparseCode,
    rows: Int[Tensor, "rows pos"],
    explain_rows: int,
    vocabulary: Vocabulary,
) -> PartEvidence:
    """One coder's code as the describing room takes it; strengths must not be negative."""
    counts = np.zeros(tuple(rows.shape), dtype=np.int64)
    fired = code.value > 0
    row = code.support.row[fired].cpu().numpy()
    counts[:, 1:] = np.bincount(row, minlength=code.support.rows).reshape(len(rows), -1)
    latent = code.support.latent[fired].cpu().numpy()
    value = code.value[fired].cpu().numpy()
    order = np.lexsort((latent, row))
    return PartEvidence(
        part=name,
        tokens=rows.numpy().astype(np.int32),
        explain_rows=explain_rows,
        token_indptr=np.concatenate([[0], counts.ravel().cumsum()]),
        latent=latent[order].astype(np.int32),
        value=value[order].astype(np.float32),
        n_latents=code.n_latents,
        vocabulary=vocabulary,
    )
