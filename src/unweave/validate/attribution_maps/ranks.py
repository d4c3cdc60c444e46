"""Spearman's rank correlation, ties sharing the mean of their ranks."""

import torch
from jaxtyping import Float
from torch import Tensor


def ranks(values: Float[Tensor, "rows items"]) -> Float[Tensor, "rows items"]:
    """Rank of every item in its row from 0 up, ties the mean of theirs."""
    ordered, order = values.double().sort(dim=1, stable=True)
    first = torch.searchsorted(ordered, ordered)
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    return torch.zeros_like(ordered).scatter(1, order, (first + last).double() / 2)


def spearman(
    one: Float[Tensor, "rows items"], other: Float[Tensor, "rows items"]
) -> Float[Tensor, " rows"]:
    """Rank correlation of each row with its counterpart; nan where one of them is all ties."""
    a, b = (r - r.mean(1, keepdim=True) for r in (ranks(one), ranks(other)))
    size = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(size > 0, (a * b).sum(1) / size.clamp_min(1e-300), torch.nan)
