"""The fixed workloads."""

from typing import NamedTuple

from benchmarks.contestants.contract import Task

WIDTH = 576
NEVER = 100_000
"""Length of the run that a timed step stands in: far from any warm-up's end or dead latent."""


class Workload(NamedTuple):
    """A dictionary to be timed."""

    kind: str
    """topk, batchtopk, jumprelu or transcoder."""
    latents: int
    """Number of latents."""
    field: tuple[str, ...]
    """Who can train it."""
    batch: int = 4096
    """Vectors in a batch."""
    lr: float = 0.0
    """Learning rate; 0: the contestants' own."""

    def task(self) -> Task:
        """The same, for a contestant."""
        return Task(self.kind, self.latents, NEVER, width=WIDTH, lr=self.lr, settled=True)


SPEED = {
    "topk-4608": Workload(
        "topk",
        4608,
        (
            "unweave", "unweave-float32", "sparsify", "sparsify-signum", "saelens",
            "saelens-autocast", "dictionary_learning", "hand-tuned", "plain",
        ),
    ),
    "topk-16384": Workload(
        "topk", 16_384, ("unweave", "unweave-float32", "sparsify", "saelens", "saelens-autocast")
    ),
    "batchtopk-4608": Workload(
        "batchtopk", 4608, ("unweave", "unweave-float32", "saelens", "saelens-autocast",
                            "dictionary_learning")
    ),
    # Thresholds are set to an L0 of 32 before the clock runs, and the rate keeps them there.
    "jumprelu-4608": Workload(
        "jumprelu", 4608, ("unweave", "unweave-float32", "saelens", "saelens-autocast",
                           "dictionary_learning"),
        lr=1e-6,
    ),
    "transcoder-4608": Workload(
        "transcoder", 4608, ("unweave", "unweave-float32", "sparsify", "plain")
    ),
}  # fmt: skip
"""What steps are timed on. Peers that cannot train a kind are not in its field."""


class Quality(NamedTuple):
    """Vectors on which time to a given fidelity is measured."""

    vectors: str
    """planted or real."""
    steps: int
    """Length of the run."""
    field: tuple[str, ...] = (
        "unweave", "unweave-steady", "unweave-quick", "sparsify", "sparsify-2e-3",
        "saelens-autocast", "dictionary_learning",
    )  # fmt: skip
    """Who runs; after an @ the share of the steps that a run is planned to have."""
    latents: int = 4608
    """Number of latents."""
    batch: int = 1024
    """Vectors in a batch."""
    checkpoints: int = 10
    """How often the held-out vectors are looked at, the clock standing still."""

    def task(self) -> Task:
        """The same, for a contestant."""
        return Task("topk", self.latents, self.steps, width=WIDTH)


QUALITY = {"planted": Quality("planted", 400), "real": Quality("real", 400)}
MEMORY = {
    "topk-4608": Workload(
        "topk", 4608, ("unweave", "sparsify", "saelens", "dictionary_learning", "plain")
    ),
    "topk-16384": Workload(
        "topk", 16_384, ("unweave", "sparsify", "saelens", "dictionary_learning", "plain")
    ),
}
