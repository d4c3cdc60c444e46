"""Training steps on a GPU, timed by the GPU's own clock; nobody else uses it meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.contestants.contract import Task
from benchmarks.contestants.ours import prepare
from benchmarks.contestants.plain import PlainTopK
from unweave.training.batches import VectorBatch
from unweave.training.trainee import Trainee

DEVICE = "cuda"
RUN = 100_000
"""Length of the run that a timed step stands in."""
Step = Callable[[Tensor], object]


class Shape(NamedTuple):
    """A dictionary to be timed."""

    kind: str
    """topk, batchtopk or jumprelu."""
    width: int
    """Width of the vectors."""
    latents: int
    """Number of latents."""
    batch: int
    """Vectors in a step."""

    def task(self) -> Task:
        """The same, for a contestant."""
        return Task(self.kind, self.latents, RUN, width=self.width, settled=True)


SHAPES = (
    Shape("topk", 576, 4608, 4096),
    Shape("topk", 576, 4608, 16_384),
    Shape("topk", 576, 16_384, 8192),
    Shape("topk", 2048, 65_536, 8192),
    Shape("topk", 4096, 131_072, 8192),
    Shape("batchtopk", 576, 4608, 8192),
    Shape("batchtopk", 2048, 65_536, 8192),
)


def product_rate(rows: int, deep: int, columns: int) -> float:
    """Flop a second of `[rows, deep] @ [deep, columns]` in bfloat16, by torch's own routine."""
    a = torch.randn(rows, deep, device=DEVICE, dtype=torch.bfloat16)
    b = torch.randn(columns, deep, device=DEVICE, dtype=torch.bfloat16).T
    out = torch.empty(rows, columns, device=DEVICE, dtype=torch.bfloat16)
    seconds = seconds_of(lambda: torch.mm(a, b, out=out), least=20)
    return 2.0 * rows * deep * columns / seconds


def seconds_of(work: Callable[[], object], *, least: int = 10, repeats: int = 5) -> float:
    """Seconds of one call: the best of some runs of `least` calls each, after as many before."""
    for _ in range(least):
        work()
    best = float("inf")
    for _ in range(repeats):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begun.record()
        for _ in range(least):
            work()
        ended.record()
        torch.cuda.synchronize()
        best = min(best, begun.elapsed_time(ended) / 1000 / least)
    return best


def batches(shape: Shape, *, count: int = 8) -> Iterator[Tensor]:
    """The same few batches again and again, which lie on the GPU."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    size = (count, shape.batch, shape.width)
    drawn = torch.randn(size, generator=generator, device=DEVICE)
    while True:
        yield from drawn


def ours(shape: Shape, first: Tensor) -> Step:
    """unweave's step as it is late in a run."""
    dictionary, settings = prepare(shape.task())
    trainee = Trainee({"x": dictionary}, settings, steps=RUN, batch=shape.batch, device=DEVICE)
    trainee.begin(VectorBatch({"x": first}))
    return lambda x: trainee.step(VectorBatch({"x": x}))


def sparsify(shape: Shape, first: Tensor, *, autocast: bool) -> Step | None:
    """EleutherAI sparsify's coder with Adam; None where it is not installed or has no such kind."""
    if shape.kind != "topk":
        return None
    try:
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder
    except ImportError:
        return None
    config = SparseCoderConfig(activation="topk", num_latents=shape.latents, k=32)
    coder = SparseCoder(shape.width, config, DEVICE, dtype=torch.float32)
    coder.b_dec.data = first.mean(0)
    optimizer = torch.optim.Adam(coder.parameters(), 1e-3, fused=True)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        spread = (x - x.mean(0)).pow(2).sum()
        fast = torch.autocast(DEVICE, torch.bfloat16) if autocast else nullcontext()
        with fast:
            loss = coder(x=x, y=x, dead_mask=None, total_variance=spread).fvu
        loss.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain(shape: Shape, first: Tensor) -> Step | None:
    """The least that trains a TopK dictionary in torch, its products in bfloat16."""
    if shape.kind != "topk" or shape.latents > 16_384:
        return None
    model = PlainTopK(shape.task(), lr=1e-3)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        setattr(model, name, torch.nn.Parameter(getattr(model, name).detach().to(DEVICE)))
    parameters = [model.W_enc, model.W_dec, model.b_enc, model.b_dec]
    model.optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    model.b_dec.data = first.mean(0)

    def step(x: Tensor) -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            model.step(x, x)

    return step
