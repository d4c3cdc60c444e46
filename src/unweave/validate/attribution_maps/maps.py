"""Maps from a score to one number for every token, by four methods and two that know no weights.

    gradient       grad f(x) . (x - baseline), by token
    integrated     the same gradient averaged on the straight way from the baseline to x
                   (Sundararajan, Taly & Yan 2017); the map sums to f(x) - f(baseline)
    occlusion      f(x) - f(x with this token's vector replaced by the baseline's)
    rollout        attention multiplied up from the bottom, half of it residual (Abnar & Zuidema
                   2020): it knows the network but not what is explained
    position       controls that know no weights: the later the token, the more
    rarity         the rarer the token is in the rows, the more

Position 0, which is the same in all rows and has no baseline but itself, always gets zero from the
methods that compare with a baseline.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.subject import Subject
from unweave.validate.attribution_maps.scores import Asked

Map = Callable[[Subject, Asked], Tensor]
"""From a network and what is asked of it to a number for every token, [rows, pos]."""

STEPS = 16
"""Points on the way from the baseline, at the nodes of Gauss and Legendre."""


def gradient(asked: Asked) -> Float[Tensor, "rows pos"]:
    """Gradient times what is there beyond the baseline."""
    return (_slope(asked, asked.x) * (asked.x - asked.baseline)).sum(-1)


def integrated(asked: Asked, steps: int = STEPS) -> Float[Tensor, "rows pos"]:
    """Integrated gradients."""
    places, weights = _nodes(steps)
    apart = asked.x - asked.baseline
    mean = torch.zeros_like(asked.x)
    for place, weight in zip(places, weights, strict=True):
        mean += weight * _slope(asked, asked.baseline + place * apart)
    return (mean * apart).sum(-1)


@torch.no_grad()
def incompleteness(asked: Asked, found: Float[Tensor, "rows pos"]) -> Float[Tensor, " rows"]:
    """What a map's sum lacks of f(x) - f(baseline), by row; 0 for a complete one."""
    return asked.score(asked.x) - asked.score(asked.baseline) - found.sum(1)


@torch.no_grad()
def occlusion(asked: Asked) -> Float[Tensor, "rows pos"]:
    """What is lost when a token is taken away alone."""
    whole = asked.score(asked.x)
    found = torch.zeros_like(asked.x[..., 0])
    for place in range(1, asked.x.shape[1]):
        without = asked.x.clone()
        without[:, place] = asked.baseline[:, place]
        found[:, place] = whole - asked.score(without)
    return found


@torch.no_grad()
def rollout(subject: Subject, rows: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos"]:
    """How much of each token has flowed to the last position, by attention alone."""
    sites = [f"blocks.{layer}.attn.pattern" for layer in range(subject.n_layers)]
    patterns = subject.run(rows, capture=sites, logits=False).sites
    flow = torch.eye(rows.shape[1]).expand(len(rows), -1, -1)
    for site in sites:
        mixed = patterns[site].float().mean(1)
        flow = (mixed @ flow + flow) / 2
    return flow[:, -1]


def position(rows: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos"]:
    """Control: the nearer to the end, the more."""
    length = rows.shape[1]
    return (1.0 / (length - torch.arange(length))).expand(len(rows), -1).clone()


def rarity(rows: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos"]:
    """Control: bits of every token, by its frequency in these rows."""
    count = torch.bincount(rows.flatten())
    return -(count[rows] / rows.numel()).log2()


def _slope(asked: Asked, x: Tensor) -> Float[Tensor, "rows pos width"]:
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        # Rows do not look at one another, so one backward pass serves all.
        return torch.autograd.grad(asked.score(at).sum(), at)[0]


def _nodes(steps: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1], from the eigenvalues of Legendre's matrix (Golub & Welsch)."""
    index = torch.arange(1, steps, dtype=torch.float64)
    beside = index / (4 * index.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return ((values + 1) / 2).tolist(), vectors[0].square().tolist()


MAPS: dict[str, Map] = {
    "gradient": lambda subject, asked: gradient(asked),
    "integrated": lambda subject, asked: integrated(asked),
    "occlusion": lambda subject, asked: occlusion(asked),
    "rollout": lambda subject, asked: rollout(subject, asked.rows),
}
"""Methods by name."""
CONTROLS: dict[str, Map] = {
    "position": lambda subject, asked: position(asked.rows),
    "rarity": lambda subject, asked: rarity(asked.rows),
}
"""Maps that know no weights, and must fail the check."""
