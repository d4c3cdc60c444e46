"""What a contestant is asked for and what it hands over.

Read inside the peers' environments too, which know nothing of unweave: torch alone is imported.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """The dictionary to be trained, the same for all."""

    kind: str
    """topk, batchtopk, jumprelu or transcoder."""
    latents: int
    """Number of latents."""
    steps: int
    """Length of the run, which warm-ups and windows are shares of."""
    k: int = 32
    """Latents per vector: exactly, on average, or what thresholds are set to."""
    width: int = 576
    """Width of the vectors."""
    lr: float = 0.0
    """Learning rate; 0: 1e-3 for peers, the recipe's own for unweave."""
    seed: int = 1234
    """Of the learner; the data has another."""
    settled: bool = False
    """Time steps as they are late in a run: k has come down to where it stays."""


class Data(Protocol):
    """The training vectors, each batch once and in the same order for all."""

    steps: int
    """How many batches the run has."""
    batch: int
    """Vectors in a batch."""
    extra: int
    """Batches handed out beyond the last, to trainers that draw one too many."""

    def __iter__(self) -> Iterator[Any]:
        """Batches [batch, width]; for a transcoder pairs of what is read and what is written."""
        ...

    def __len__(self) -> int:
        """The number of steps."""
        ...

    def first(self) -> Tensor:
        """The first batch's vectors, for starts taken from data; the clock does not run."""
        ...


class Contestant(NamedTuple):
    """A trainer that is ready to go."""

    fit: Callable[[], Any]
    """Train to the end of the data."""
    apply: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Vectors to what the dictionary makes of them [rows, width] and how often each latent fires
    [latents]; it leaves the trainer as it was."""
    directions: Callable[[], Tensor]
    """Decoder rows [latents, width]."""


def common_threshold(pre: Tensor, k: int) -> float:
    """The threshold above which `k` pre-activations [rows, latents] a row lie on average."""
    return float(pre.detach().flatten().topk(k * len(pre), sorted=False).values.min())


def settled_rows(data: Data) -> Tensor:
    """The vectors on which thresholds are set before the clock runs."""
    return data.first()[:512]


def seeded(seed: int) -> None:
    """Set torch's seed in the place where a contestant draws its first weights."""
    torch.manual_seed(seed)
