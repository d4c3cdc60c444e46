"""Which latents fire where: the parts' codes over rows of text, from one pass of the subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float16, Int32, Int64
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.decompile.modes import input_site
from unweave.dictionaries.kernels.sparse import Code
from unweave.progress import QUIET, Progress
from unweave.subject import Subject


class Encoder(Protocol):
    """What turns a site's vectors into codes."""

    def encode(self, x: Tensor) -> Code:
        """Rows in, the active latents of each row out."""
        ...


@dataclass(frozen=True)
class PartFirings:
    """A part's firings over the evidence rows, by token; position 0 of a row never fires."""

    token_indptr: Int64[np.ndarray, " tokens_plus_one"]
    """Where each token's firings begin; token = row * positions + position."""
    latent: Int32[np.ndarray, " firings"]
    """Which latent, ascending within a token."""
    value: Float16[np.ndarray, " firings"]
    """How strongly, in the part's own units."""


def collect_firings(
    subject: Subject,
    parts: Mapping[str, Encoder],
    tokens: Tensor,
    *,
    workers: Workers,
    harvest: HarvestSettings | None = None,
    progress: Progress = QUIET,
) -> dict[str, PartFirings]:
    """Encode the subject's own activations (splice mode `clean`) over `tokens` [rows, pos].

    Parts are found by name: `L3.mlp` reads `blocks.3.mlp.in`. Activations are never negative.
    """
    sites = [input_site(name) for name in parts]
    harvester = Harvester(subject, tokens, sites, workers=workers, seed=0, settings=harvest)
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {n: [] for n in parts}
    per_window = tokens.numel() / harvester.windows
    with progress.task("Collecting firings", total=tokens.numel(), unit="tokens") as advance:
        for index in range(harvester.windows):
            vectors = harvester.window(index).vectors
            encoded = workers.map(
                lambda name, v=vectors: _active(parts[name], v[input_site(name)]), parts
            )
            for name, piece in zip(parts, encoded, strict=True):
                pieces[name].append(piece)
            advance(per_window)
    return {name: _assemble(pieces[name], tokens.shape[1]) for name in parts}


def _active(part: Encoder, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many latents fire per vector, which, and how strongly."""
    with torch.no_grad():
        code = part.encode(x)
    latent, order = code.latent.sort(dim=1)
    value = code.value.gather(1, order).to(torch.float16)
    fires = value > 0
    return fires.sum(1).numpy(), latent[fires].to(torch.int32).numpy(), value[fires].numpy()


def _assemble(
    pieces: list[tuple[np.ndarray, np.ndarray, np.ndarray]], positions: int
) -> PartFirings:
    counts = np.concatenate([piece[0] for piece in pieces]).reshape(-1, positions - 1)
    padded = np.pad(counts, ((0, 0), (1, 0)))  # the start token fires nothing
    indptr = np.zeros(padded.size + 1, dtype=np.int64)
    np.cumsum(padded.reshape(-1), out=indptr[1:])
    return PartFirings(
        token_indptr=indptr,
        latent=np.concatenate([piece[1] for piece in pieces]),
        value=np.concatenate([piece[2] for piece in pieces]),
    )
