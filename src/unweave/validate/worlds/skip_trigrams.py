"""Skip trigrams that need more than one attention head: attention-head superposition in small.

Tokens are A = 0, B = 1 .. n, C = B + n and the start, 2n + 1. Rows are random, but after an A that
has not been used the next B is followed by its C, and no other A comes before that: "A ... B C".
Every B asks the same A, so what a head's values and output can carry over is the same for all of
them (OV-incoherent), and one layer must spread the trigrams over its heads. The task of Jermyn,
Olah & Henighan 2023 as Mathwin, Akar & Sharkey 2024 made it; the former are no longer sure that
superposition of heads is the best name for it.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.progress import QUIET, Progress
from unweave.subject import Subject, wrap_module
from unweave.validate.worlds.programs.network import NetworkConfig, ProgramNetwork

A = 0
"""The token that every trigram begins with."""
LENGTH = 11
"""Tokens of a row."""


class TrigramSettings(BaseModel):
    """A one-layer attention-only model of skip trigrams and its training.

    Published: 2 heads for 3 trigrams, 3 for 4 and 4 for 5, each 100,000 steps at a
    constant rate; a rate that falls gets there in a fraction of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trigrams: PositiveInt = 3
    """How many B there are."""
    heads: PositiveInt = 2
    """Attention heads."""
    d_head: PositiveInt = 1
    """Width of a head."""
    steps: PositiveInt = 10_000
    """Steps of Adam."""
    batch: PositiveInt = 1000
    """Rows a step."""
    rows: PositiveInt = 100_000
    """Rows that all steps take their batches from, in turn."""
    lr: PositiveFloat = 1e-3
    """Learning rate at the start, falling to zero along a cosine."""


class TrigramRows(NamedTuple):
    """Rows of the task."""

    tokens: Int[Tensor, "rows pos"]
    """The rows."""
    due: Int[Tensor, "rows pos"]
    """The C that must follow the B at a place, or -1."""


def start_of(trigrams: int) -> int:
    """The token that every row begins with."""
    return 2 * trigrams + 1


def draw_trigrams(trigrams: int, rows: int, *, generator: torch.Generator) -> TrigramRows:
    """Draw rows of the task."""
    n = trigrams
    tokens = torch.full((rows, LENGTH), start_of(n))
    due = torch.full((rows, LENGTH), -1)
    waiting = torch.zeros(rows, dtype=torch.bool)
    for place in range(1, LENGTH):
        free = torch.randint(2 * n + 2, (rows,), generator=generator)
        other = torch.randint(1, 2 * n + 2, (rows,), generator=generator)
        drawn = torch.where(waiting, other, free)
        owed = due[:, place - 1]
        tokens[:, place] = now = torch.where(owed >= 0, owed, drawn)
        waiting |= now == A
        completes = waiting & (now >= 1) & (now <= n)
        due[completes, place] = now[completes] + n
        waiting &= ~completes
    return TrigramRows(tokens, due)


def blank_network(trigrams: int, heads: int, d_head: int = 1) -> ProgramNetwork:
    """One layer of attention between one-hot embedding and unembedding, its weights zero."""
    size = 2 * trigrams + 2
    network = ProgramNetwork(
        NetworkConfig(
            vocab_size=size,
            max_position_embeddings=LENGTH,
            hidden_size=size,
            num_hidden_layers=1,
            num_attention_heads=heads,
            head_dim=d_head,
            intermediate_size=1,
            bos_token_id=start_of(trigrams),
        )
    )
    network.embed.weight.data.copy_(torch.eye(size))
    network.unembed.weight.data.copy_(torch.eye(size))
    return network


def trigram_subject(network: ProgramNetwork, name: str = "skip trigrams") -> Subject:
    """The network as a subject."""
    return wrap_module(network, name=name)


def train_trigrams(
    settings: TrigramSettings, *, seed: int, progress: Progress = QUIET
) -> ProgramNetwork:
    """Train queries, keys, values (with biases) and outputs on the next token of every place."""
    generator = torch.Generator().manual_seed(seed)
    network = blank_network(settings.trigrams, settings.heads, settings.d_head)
    attention = network.block(0).attn
    biased = (attention.q, attention.k, attention.v)
    learned: list[Tensor] = [weight for part in biased for weight in part.parameters()]
    learned.append(attention.out.weight)
    spread = math.sqrt(2 / (network.config.hidden_size + settings.d_head))  # Xavier
    for parameter in learned:
        parameter.data.normal_(0.0, spread, generator=generator)
    adam = torch.optim.Adam(learned, lr=settings.lr, fused=True)
    data = torch.Generator().manual_seed(seed + 1)
    drawn = draw_trigrams(settings.trigrams, settings.rows, generator=data).tokens
    batches = drawn.split(settings.batch)
    with progress.task("Training", total=settings.steps, unit="steps") as advance:
        for step in range(settings.steps):
            for group in adam.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            rows = batches[step % len(batches)]
            logits = network(rows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            found = torch.autograd.grad(loss, learned)
            for parameter, slope in zip(learned, found, strict=True):
                parameter.grad = slope
            adam.step()
            advance(1)
    return network.requires_grad_(False)


STRENGTH = 20.0
"""Of hand-set scores and logits: as good as hard."""


@torch.no_grad()
def localised_network(trigrams: int) -> ProgramNetwork:
    """Set by hand: head i attends from B i alone to A and writes its C; every other head shuns A.

    Every trigram is localised in its own head.
    """
    network = blank_network(trigrams, trigrams)
    attention = network.block(0).attn
    attention.q.bias.fill_(-STRENGTH)
    attention.k.weight[:, A] = attention.v.weight[:, A] = 1.0
    for i in range(trigrams):
        attention.q.weight[i, 1 + i] = 2 * STRENGTH
        attention.out.weight[1 + trigrams + i, i] = STRENGTH
    return network


@torch.no_grad()
def distributed_network() -> ProgramNetwork:
    """Set by hand: 3 trigrams in 2 heads of width 1, the middle one in neither alone.

    Each head attends more or less to A rather than to the start, by which B asks; the two shares
    are a point in a plane, and each C is a direction there. B 1 and B 3 are nearly along one head
    each; B 2 is between them, and without either head it is taken for one of the others.
    """
    network = blank_network(3, 2)
    attention = network.block(0).attn
    share = torch.tensor([[0.45, 0.03], [0.35, 0.35], [0.03, 0.45]])  # [B, head]: attention to A
    attention.k.weight.fill_(-20 * STRENGTH)  # nothing but A and the start is attended to
    attention.k.weight[:, start_of(3)] = 0.0
    attention.k.weight[:, A] = -4.0
    attention.q.weight[:, 1:4] = share.logit().T / -4.0
    attention.v.weight[:, A] = 1.0
    attention.out.weight[4:7] = STRENGTH * torch.tensor([[1.0, 0.0], [0.6, 0.6], [0.0, 1.0]])
    return network


@torch.no_grad()
def interfering_network(trigrams: int) -> ProgramNetwork:
    """Set by hand: two heads of width n for any n trigrams, by interference (Jermyn et al.).

    Head 0 attends to the B itself and always writes its C. Head 1 attends to A if there is one,
    and writes nothing; otherwise to the B itself, and writes the negative.
    """
    network = blank_network(trigrams, 2, trigrams)
    attention = network.block(0).attn
    b, c = slice(1, 1 + trigrams), slice(1 + trigrams, 1 + 2 * trigrams)
    every = torch.eye(trigrams)
    for head, sign in ((0, 1.0), (1, -1.0)):
        span = slice(head * trigrams, (head + 1) * trigrams)
        attention.q.weight[span, b] = STRENGTH * math.sqrt(trigrams) * every
        attention.k.weight[span, b] = every
        attention.v.weight[span, b] = every
        attention.out.weight[c, span] = sign * STRENGTH * every
    attention.k.weight[trigrams:, A] = 2.0
    return network


def head_outputs(
    subject: Subject, tokens: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows pos heads vocab"]:
    """What each head of the one layer adds to the logits, the residual stream being the logits."""
    z = subject.run(tokens, capture=["blocks.0.attn.z"], logits=False).sites["blocks.0.attn.z"]
    by_head = z.unflatten(-1, (subject.n_heads, subject.d_head))
    return torch.einsum("rphd,hdv->rphv", by_head, subject.attention_weights(0).W_O)
