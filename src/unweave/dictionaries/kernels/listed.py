"""Gradients of the rows that have one, listed beside their numbers, in the place of a whole matrix.

A step's batch may leave most latents of a wide dictionary silent. Where whoever updates the weights
can take a list of rows, the others' zeros need neither be written nor read: the gradient is then a
sparse tensor of rows, as `torch.nn.functional.embedding` gives with `sparse`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.native import calls as native

_wanted: ContextVar[bool] = ContextVar("listed", default=False)


@contextmanager
def listed_rows(wanted: bool = True) -> Iterator[None]:
    """Within it, what this thread runs gives parameters' gradients as lists of rows."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def lists_rows(weight: Tensor) -> bool:
    """Whether the gradient of this one may be a list: a parameter, under `listed_rows`.

    Whatever is computed from a parameter has a gradient that goes on to others, which expect it
    whole.
    """
    return _wanted.get() and isinstance(weight, nn.Parameter)


def listed_over_rows(
    weight: Float[Tensor, " active"], rows: Float[Tensor, "rows d"], support: Support
) -> Float[Tensor, "latents d"] | None:
    """`ragged.over_rows` with the active latents alone, as a sparse tensor of rows; None where the
    compiled kernels cannot take it."""
    if not native.able(rows, weight):
        return None
    at = support.by_latent
    active = at.bounds.diff().nonzero()[:, 0]
    # Silent latents have no entries: where one active latent's end, the next one's begin.
    bounds = torch.cat([at.bounds[active], at.bounds[-1:]])
    found = native.bags(rows, at.row, weight, bounds, at.order)
    return torch.sparse_coo_tensor(
        active[None],
        found,
        (support.n_latents, rows.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )
