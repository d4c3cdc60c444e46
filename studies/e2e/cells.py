"""What is trained: kinds of objective, activations, weights; and each subject's sizes."""

from dataclasses import dataclass

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK


@dataclass(frozen=True)
class Cell:
    """One dictionary."""

    kind: str
    """local, e2e, e2e+ds, local>ds N% (e2e+ds for the last N%), local>e2e N% or random."""
    activation: str
    """relu (with L1) or topk."""
    weight: float
    """Lambda of the L1, or k."""
    times: int = 1
    """How many times the plan's steps."""
    every_seed: bool = False
    """Whether it is trained with more seeds than the first."""

    @property
    def local_share(self) -> float:
        """Share of the steps with the local objective before the end-to-end one."""
        if self.kind == "local":
            return 1.0
        _, _, rest = self.kind.partition(" ")
        return 1 - float(rest.rstrip("%")) / 100 if rest else 0.0

    def build_activation(self) -> ReLU | TopK:
        return ReLU() if self.activation == "relu" else TopK(k=int(self.weight))


@dataclass(frozen=True)
class Plan:
    """Sizes of one subject's runs."""

    text: str
    tokens: int
    context: int
    latents: int
    rows: int
    """Rows of text a step."""
    steps: int
    lr: float
    downstream: float
    """Weight of the later sites' mean relative error, beside 0.5 for the KL."""
    held_rows: int
    local_rows: int
    """Rows whose vectors longer local runs visit again and again."""
    judge: str = "float32"
    """Number format of the network that the dictionaries are judged in."""


PLANS = {
    "wren": Plan(
        text="self", tokens=400_000, context=128, latents=1024, rows=4, steps=300, lr=3e-3,
        downstream=0.5, held_rows=64, local_rows=1600,
    ),
    "smollm2-135m": Plan(
        text="wiki", tokens=400_000, context=128, latents=2304, rows=4, steps=60, lr=2e-3,
        downstream=0.5, held_rows=32, local_rows=800, judge="bfloat16",
    ),
}  # fmt: skip


def relu(kind: str, *weights: float, times: int = 1, every_seed: bool = False) -> list[Cell]:
    return [Cell(kind, "relu", weight, times, every_seed) for weight in weights]


def topk(kind: str, *ks: int, times: int = 1, every_seed: bool = False) -> list[Cell]:
    return [Cell(kind, "topk", k, times, every_seed) for k in ks]


CELLS = {
    "wren": [
        *relu("local", 0.5, 1, 2, 3, 4, every_seed=True), *relu("e2e", 2, every_seed=True),
        *relu("e2e+ds", 2, every_seed=True),
        *topk("local", 5, 10, 20, 40, every_seed=True), *topk("local", 10, times=10),
        *topk("e2e", 10, every_seed=True), *topk("e2e+ds", 10, every_seed=True),
        *topk("local>ds 10%", 10), *topk("local>ds 50%", 10), *topk("random", 10),
        *topk("local>ds 10%", 10, times=10), *topk("e2e+ds", 10, times=10),
        *topk("local>ds 50%", 10, times=10),
    ],
    "smollm2-135m": [
        *topk("local", 16, 32, 64, times=10), *topk("local>ds 10%", 32, times=10),
        *topk("local>ds 50%", 32, times=10),
        *topk("local>e2e 10%", 32, times=10), *topk("random", 32),
    ],
}  # fmt: skip
