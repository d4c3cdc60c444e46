"""What a map explains: one number of the network as a function of the vectors of its tokens.

A score takes token vectors [rows, pos, width], as the embedding gives them, and returns a number
for each row: how far one token's logit lies above the mean logit, or how strongly one latent is
active at one position. Everything else about the row (its length, the position asked about) is
fixed. A map is then a number for every token, and can be wrong.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.placed import Placed

SITE = "embed"
"""Where token vectors are put in."""

Score = Callable[[Tensor], Tensor]
"""From token vectors [rows, pos, width] to a number for each row."""


class Asked(NamedTuple):
    """Rows of which something is to be explained, and what the answer is a function of."""

    rows: Int[Tensor, "rows pos"]
    """The tokens."""
    x: Float[Tensor, "rows pos width"]
    """Their vectors."""
    baseline: Float[Tensor, "rows pos width"]
    """What stands for a token that is not there: the mean vector. Position 0 keeps its own."""
    score: Score
    """What is explained."""


@torch.no_grad()
def ask(subject: Subject, rows: Int[Tensor, "rows pos"], score: Score) -> Asked:
    """The vectors of the rows' tokens, and the mean of them in the place of what is taken away."""
    x = subject.run(rows, capture=[SITE], logits=False).sites[SITE].float()
    baseline = x[:, 1:].mean((0, 1)).expand_as(x).clone()
    baseline[:, 0] = x[:, 0]
    return Asked(rows, x, baseline, score)


def logits_at_the_end(
    subject: Subject, rows: Int[Tensor, "rows pos"], x: Float[Tensor, "rows pos width"]
) -> Float[Tensor, "rows vocab"]:
    """Logits of the last position, less their mean, with `x` for the token vectors."""
    logits = subject.run(rows, replace={SITE: x}).logits
    assert logits is not None
    last = logits[:, -1].float()
    return last - last.mean(1, keepdim=True)


@torch.no_grad()
def predicted(subject: Subject, rows: Int[Tensor, "rows pos"]) -> Int[Tensor, " rows"]:
    """The token that the network puts first after each row."""
    logits = subject.run(rows).logits
    assert logits is not None
    return logits[:, -1].argmax(1)


def token_score(
    subject: Subject, rows: Int[Tensor, "rows pos"], token: Int[Tensor, " rows"]
) -> Score:
    """How far the logit of each row's token lies above the mean logit, at the last position."""

    def score(x: Tensor) -> Tensor:
        return logits_at_the_end(subject, rows, x).gather(1, token[:, None])[:, 0]

    return score


def latent_score(
    subject: Subject, standing: Placed, rows: Int[Tensor, "rows pos"], latent: Int[Tensor, " rows"]
) -> Score:
    """The activation of one latent for each row at the last position; the network is not changed.

    Raises:
        UserError: a coder that no gradient can pass.
    """
    dictionary = standing.coder
    if not isinstance(dictionary, Dictionary):
        raise UserError(
            f"No gradient passes the code of {standing.name}: only trained dictionaries have maps"
        )

    def score(x: Tensor) -> Tensor:
        sites = subject.run(rows, replace={SITE: x}, capture=standing.reads, logits=False).sites
        read = torch.cat([sites[site][:, -1].flatten(1) for site in standing.reads], dim=1).float()
        scaled, _ = dictionary.normalise(read * dictionary.input_scale)
        found = dictionary.run(scaled)
        if found.latents is not None:
            return found.latents.gather(1, latent.view(-1, 1))[:, 0]
        assert found.code is not None
        support = found.code.support
        wanted = support.latent == latent[support.row]
        return read.new_zeros(len(read)).index_add(0, support.row[wanted], found.code.value[wanted])

    return score
