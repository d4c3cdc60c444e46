"""A small transformer that has learnt to copy: rows that repeat a random piece until they end.

Nothing in a row can be foreseen until its piece comes round again; from there on everything can,
by looking for the last place where the present token stood and saying what came after it:
induction (Olsson et al. 2022, 2209.11895), which takes a head that looks at the previous token and
one in a later layer that looks for a match. The network here needs both, and nothing else.
"""

import math

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.progress import QUIET, Progress
from unweave.subject import Subject, wrap_module
from unweave.subject.fresh import FreshSettings, fresh_llama

START = 0
"""Token that every row begins with."""


class RepeatSettings(BaseModel):
    """The language, the network and its training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    vocab: PositiveInt = 64
    """Tokens besides the start token."""
    positions: PositiveInt = 40
    """Length of rows, the start token among them."""
    shortest: PositiveInt = 6
    """Length of the shortest piece."""
    longest: PositiveInt = 19
    """Length of the longest piece; no token stands in it twice."""
    width: PositiveInt = 64
    """Dimensions of the residual stream."""
    heads: PositiveInt = 4
    """Heads of each of the two layers."""
    neurons: PositiveInt = 64
    """Neurons of each MLP."""
    steps: PositiveInt = 1500
    """Steps of AdamW."""
    batch: PositiveInt = 64
    """Rows a step; every one is new."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate: up over the first twentieth, then down to zero along a cosine."""


def draw_repeats(
    settings: RepeatSettings, count: int, *, seed: int
) -> tuple[Int[Tensor, "count positions"], Int[Tensor, " count"]]:
    """Rows, and the length of the piece that each repeats.

    From position 1 + length on every token equals the one `length` before it.
    """
    generator = torch.Generator().manual_seed(seed)
    short, long = settings.shortest, settings.longest
    lengths = torch.randint(short, long + 1, (count,), generator=generator)
    pieces = torch.rand(count, settings.vocab, generator=generator).argsort(1)[:, :long] + 1
    at = torch.arange(settings.positions - 1) % lengths[:, None]
    return torch.cat([torch.full((count, 1), START), pieces.gather(1, at)], 1), lengths


def foreseeable(
    settings: RepeatSettings, lengths: Int[Tensor, " count"]
) -> Int[Tensor, "count positions"]:
    """1 at each position whose next token follows from the row so far, else 0."""
    at = torch.arange(settings.positions)
    return ((at >= lengths[:, None] + 1) & (at < settings.positions - 1)).long()


def train_repeats_subject(
    settings: RepeatSettings, *, seed: int, progress: Progress = QUIET
) -> Subject:
    """Train on rows of the data seeds `seed * 10^6` onwards; sites are those of a Llama."""
    sizes = FreshSettings(
        vocab_size=settings.vocab + 1,
        start_token=START,
        context=settings.positions,
        layers=2,
        width=settings.width,
        heads=settings.heads,
        neurons=settings.neurons,
    )
    model = fresh_llama(sizes, seed=seed).train()
    adam = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), fused=True)
    with progress.task("learning to repeat", total=settings.steps, unit="steps") as advance:
        for step in range(settings.steps):
            rate = min(1.0, (step + 1) / (0.05 * settings.steps))
            rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            adam.param_groups[0]["lr"] = settings.lr * rate
            rows, lengths = draw_repeats(settings, settings.batch, seed=seed * 10**6 + step)
            told = foreseeable(settings, lengths)[:, :-1].bool()
            logits = model(rows).logits[:, :-1]
            loss = F.cross_entropy(logits[told], rows[:, 1:][told])
            adam.zero_grad()
            loss.backward()
            adam.step()
            advance(1)
    adam.zero_grad()
    return wrap_module(model, name="repeats")
