"""Fidelity of any dictionary on held-out vectors, batch by batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.code import Coder
from unweave.dictionaries.metrics import Fidelity, fidelity_of, fidelity_sums
from unweave.errors import UserError


@torch.no_grad()
def measure_fidelity(
    coder: Coder,
    x: Float[Tensor, "rows d_in"],
    y: Float[Tensor, "targets d_out"],
    *,
    batch: int = 4096,
) -> Fidelity:
    """L0, FVU, gamma and the rest for reading `x` and writing `y`; an autoencoder has y = x."""
    if len(x) != len(y) or not len(x):
        raise UserError(
            f"Fidelity needs as many inputs as targets and at least one, not {len(x)} and"
            f" {len(y)}: give the vectors of the same positions"
        )
    total = None
    for inputs, targets in zip(x.split(batch), y.split(batch), strict=True):
        code = coder.encode(inputs)
        sums = fidelity_sums(targets, coder.decode(code), code)
        total = sums if total is None else total + sums
    assert total is not None
    return fidelity_of(total)
