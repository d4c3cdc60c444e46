"""Rotary positions of a subject, taken from its own model.

A head's vector is seen as d/2 points of a plane, coordinate i together with coordinate i + d/2.
At position p, point i is turned by the angle p theta_i (Su et al. 2021, 2104.09864). The product of
a turned query and a turned key then depends on where they are only through how far apart they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.network import Subject


def rotary(
    subject: Subject, n_positions: int
) -> tuple[Float[Tensor, "pos rotated"], Float[Tensor, "pos rotated"]] | None:
    """Cosines and sines of the angles at positions 0 to `n_positions` - 1, in float32.

    `rotated` is d_head, or less where only the first coordinates of a head are turned (GPT-NeoX).
    None for a subject whose heads know nothing of positions (GPT-2: its stream does).

    Raises:
        UserError: the subject turns its layers differently from one another.
    """
    found = _rotary_module(subject)
    if found is None:
        return None
    positions = torch.arange(n_positions, device=subject.device)[None]
    with torch.no_grad():
        cos, sin = found(torch.zeros(1, device=subject.device), positions)
    return cos[0], sin[0]


def rotate(
    x: Float[Tensor, "... pos d_head"],
    cos: Float[Tensor, "#pos rotated"],
    sin: Float[Tensor, "#pos rotated"],
) -> Float[Tensor, "... pos d_head"]:
    """Turn heads' vectors by the angles of their positions; what is not turned stays."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    low, high = turned.chunk(2, -1)
    turned = turned * cos + torch.cat([-high, low], -1) * sin
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def frequencies(subject: Subject) -> Float[Tensor, " planes"] | None:
    """Angle in radians by which each plane is turned from one position to the next."""
    found = _rotary_module(subject)
    return None if found is None else found.get_buffer("inv_freq").detach().float()


def _rotary_module(subject: Subject) -> nn.Module | None:
    named = {
        name.rpartition(".")[2]: module
        for module in subject.model.modules()
        for name, _ in module.named_buffers(recurse=False)
        if "inv_freq" in name
    }
    if named and "inv_freq" not in named:
        raise UserError(
            f"{subject.name} turns its layers by different angles ({', '.join(sorted(named))}), "
            "which attention in features does not know; take a subject with one kind of layer"
        )
    return named.get("inv_freq")
