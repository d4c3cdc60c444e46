"""Which latents fire where: the parts' codes over rows of text, from one pass of the subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float16, Int32, Int64
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.dictionaries.kernels.sparse import Code
from unweave.progress import QUIET, Progress
from unweave.subject import Subject


@runtime_checkable
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
    """How strongly, in the part's own units: the size, where a gated latent's activation is below
    zero because its gate is shut."""


def collect_firings(
    subject: Subject,
    encoders: Mapping[str, tuple[str, Encoder]],
    tokens: Tensor,
    *,
    workers: Workers,
    harvest: HarvestSettings | None = None,
    progress: Progress = QUIET,
) -> dict[str, PartFirings]:
    """Encode the subject's own activations (splice mode `clean`) over `tokens` [rows, pos].

    `encoders` gives for each name the site it reads and what encodes it; of negative activations
    the size is kept.
    """
    sites = sorted({site for site, _ in encoders.values()})
    harvester = Harvester(subject, tokens, sites, workers=workers, seed=0, settings=harvest)
    pieces: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {n: [] for n in encoders}
    per_window = tokens.numel() / harvester.windows
    with progress.task("Collecting firings", total=tokens.numel(), unit="tokens") as advance:
        for index in range(harvester.windows):
            vectors = harvester.window(index).vectors
            if index + 1 < harvester.windows:
                harvester.foresee(index + 1)
            encoded = workers.map(
                lambda pair, v=vectors: _active(pair[1], v[pair[0]]), encoders.values()
            )
            for name, piece in zip(encoders, encoded, strict=True):
                pieces[name].append(piece)
            advance(per_window)
    return {name: _assemble(pieces[name], tokens.shape[1]) for name in encoders}


def _active(part: Encoder, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many latents fire per vector, which, and how strongly."""
    with torch.no_grad():
        code = part.encode(x)
    latent, order = code.latent.sort(dim=1)
    value = code.value.gather(1, order).abs().to(torch.float16)
    fires = value > 0
    found = (fires.sum(1), latent[fires].to(torch.int32), value[fires])
    counts, latents, values = (tensor.cpu().numpy() for tensor in found)
    return counts, latents, values


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
