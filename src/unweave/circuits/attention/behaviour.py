"""What heads do: attention scores on random tokens, whose only structure is what was put there.

On a row of random tokens that is then repeated, a head that looks one back is a previous-token
head, one that looks at the earlier copy of the current token a duplicate-token head, one that looks
at what followed it an induction head (Olsson et al. 2022, 2209.11895). The same places on rows
without a repeat say what position alone does. How long a piece must be repeated before a head looks
at what followed it tells heads for short and for long prefixes apart (Kissane et al. 2024).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.errors import UserError
from unweave.subject import Subject

Heads = Float[Tensor, "layers heads"]
"""Mean attention of each head to some place."""


class HeadScores(NamedTuple):
    """Mean attention of every head from the second copy of a row of random tokens."""

    previous: Heads
    """To the token before."""
    duplicate: Heads
    """To the earlier copy of the current token."""
    induction: Heads
    """To what followed that copy."""
    current: Heads
    """To the current token."""
    start: Heads
    """To the start token."""
    duplicate_unrepeated: Heads
    """`duplicate`'s places when nothing is repeated: what position alone does."""
    induction_unrepeated: Heads
    """`induction`'s places then."""


def random_tokens(
    subject: Subject,
    rows: int,
    width: int,
    *,
    seed: int = 0,
    among: Int[Tensor, " tokens"] | None = None,
) -> Int[Tensor, "rows width"]:
    """Rows without the start token in which no token stands twice; of some tokens, or of all.

    Raises:
        UserError: fewer tokens than a row has.
    """
    if among is None:
        among = torch.arange(subject.vocab_size)
    among = among[among != subject.start_token] if subject.start_token is not None else among
    if len(among) < width:
        raise UserError(f"{len(among)} different tokens do not fill a row of {width}")
    g = torch.Generator().manual_seed(seed)
    return torch.stack(
        [among[torch.randperm(len(among), generator=g)[:width]] for _ in range(rows)]
    )


@torch.no_grad()
def head_scores(
    subject: Subject,
    *,
    rows: int = 16,
    half: int = 32,
    seed: int = 0,
    among: Int[Tensor, " tokens"] | None = None,
    rows_at_once: int = 8,
) -> HeadScores:
    """Scores of every head on `rows` rows of `half` random tokens, repeated."""
    drawn = random_tokens(subject, rows, 2 * half, seed=seed, among=among)
    again = torch.cat([drawn[:, :half], drawn[:, :half]], 1)
    offsets = {"previous": 1, "duplicate": half, "induction": half - 1, "current": 0}
    once = _from_second_half(subject, _started(subject, again), half, offsets, rows_at_once)
    plain = _from_second_half(subject, _started(subject, drawn), half, offsets, rows_at_once)
    return HeadScores(
        **once,
        duplicate_unrepeated=plain["duplicate"],
        induction_unrepeated=plain["induction"],
    )


def _started(subject: Subject, tokens: Tensor) -> Tensor:
    """With the start token before every row, or its first token where there is none."""
    start = subject.start_token
    first = tokens[:, :1] if start is None else torch.full_like(tokens[:, :1], start)
    return torch.cat([first, tokens], 1)


def _from_second_half(
    subject: Subject, tokens: Tensor, half: int, offsets: dict[str, int], rows_at_once: int
) -> dict[str, Heads]:
    query = torch.arange(half + 1, tokens.shape[1])
    sums = {name: torch.zeros(subject.n_layers, subject.n_heads) for name in (*offsets, "start")}
    for _, layer, pattern in _patterns(subject, tokens, rows_at_once):
        for name, back in offsets.items():
            sums[name][layer] += pattern[:, :, query, query - back].mean(2).sum(0)
        sums["start"][layer] += pattern[:, :, query, 0].mean(2).sum(0)
    return {name: total / len(tokens) for name, total in sums.items()}


class _Seen(NamedTuple):
    """The pattern of one layer on a group of rows."""

    rows: slice
    layer: int
    pattern: Float[Tensor, "batch heads query key"]


def _patterns(subject: Subject, tokens: Tensor, rows_at_once: int) -> Iterator[_Seen]:
    names = [f"blocks.{layer}.attn.pattern" for layer in range(subject.n_layers)]
    for first in range(0, len(tokens), rows_at_once):
        rows = slice(first, min(first + rows_at_once, len(tokens)))
        found = subject.run(tokens[rows], capture=names, logits=False).sites
        for layer, name in enumerate(names):
            yield _Seen(rows, layer, found[name].float().cpu())


@torch.no_grad()
def induction_by_prefix(
    subject: Subject,
    lengths: Sequence[int],
    *,
    rows: int = 32,
    width: int = 64,
    seed: int = 0,
    among: Int[Tensor, " tokens"] | None = None,
    rows_at_once: int = 8,
) -> Float[Tensor, "lengths layers heads"]:
    """Attention from the end of a repeated piece to what followed its first copy.

    A row is random tokens in which nothing stands twice, but that its last n tokens stood earlier,
    at a random place, with another token before and one after them: the score is the attention
    from the last position to that token after. A length of 0 repeats nothing: chance.

    Raises:
        UserError: a length that does not fit twice.
    """
    if 2 * max(lengths) + 2 > width:
        raise UserError(f"rows of {width} cannot hold {max(lengths)} tokens twice: make them wider")
    found = torch.zeros(len(lengths), subject.n_layers, subject.n_heads)
    for at, length in enumerate(lengths):
        tokens = random_tokens(subject, rows, width, seed=seed, among=among)
        g = torch.Generator().manual_seed(seed)
        after = torch.randint(length + 1, width - length, (rows,), generator=g)
        for row in range(rows):
            place = int(after[row])
            tokens[row, width - length :] = tokens[row, place - length : place]
        for which, layer, pattern in _patterns(subject, _started(subject, tokens), rows_at_once):
            ends, key = torch.arange(len(pattern)), after[which] + 1
            found[at, layer] += pattern[ends, :, -1, key].sum(0)
    return found / rows
