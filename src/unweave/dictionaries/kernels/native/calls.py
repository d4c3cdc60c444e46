"""The compiled kernels as functions of tensors. What they compute is said in the C sources."""

import ctypes
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.native.building import library
from unweave.dictionaries.kernels.native.threads import share_out

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_KEYS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_I = ctypes.c_int64
_ROWS_SUMMED = 256  # as in bags.c


def able(*tensors: Tensor) -> bool:
    """Whether the compiled kernels can take these: float32 or bfloat16 on the CPU, contiguous."""
    return library() is not None and all(
        t.device.type == "cpu" and t.dtype in _SUFFIX and t.is_contiguous() for t in tensors
    )


def largest(
    scores: Float[Tensor, "rows n"], k: int, *, by_size: bool
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Places, ascending, and values of the k largest of each row (by absolute value)."""
    rows, n = scores.shape
    latent = torch.empty(rows, k, dtype=torch.long)
    value = torch.empty(rows, k)
    call = _function("largest", scores)
    step, width = scores.element_size() * n, 8 * k

    def work(first: int, last: int) -> None:
        scratch = torch.empty(3 * n + 32, dtype=_KEYS[scores.dtype])
        place = torch.empty(n + 32, dtype=torch.int32)
        call(
            _at(scores, first * step),
            _I(last - first),
            _I(n),
            _I(k),
            int(by_size),
            _at(scratch),
            _at(place),
            _at(latent, first * width),
            _at(value, first * width // 2),
        )

    share_out(work, rows)
    return latent, value


class Above(NamedTuple):
    """Scores above their thresholds, row by row."""

    latent: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    counts: Int[Tensor, " rows"]


def above(scores: Float[Tensor, "rows n"], threshold: Float[Tensor, "*n"]) -> Above:
    """Every score above its threshold, one for all latents or one for each."""
    rows, n = scores.shape
    threshold = threshold.float().contiguous()
    # As large as can be; memory that nothing is written to is never taken from the system.
    latent = torch.empty(rows * n, dtype=torch.long)
    value, counts = torch.empty(rows * n), torch.empty(rows, dtype=torch.long)
    call = _function("above", scores)
    call.restype = _I
    found: list[tuple[int, int]] = []

    def work(first: int, last: int) -> None:
        many = call(
            _at(scores, first * n * scores.element_size()),
            _I(last - first),
            _I(n),
            _at(threshold),
            int(threshold.dim() > 0),
            _at(latent, 8 * first * n),
            _at(value, 4 * first * n),
            _at(counts, 8 * first),
        )
        found.append((first * n, first * n + many))

    share_out(work, rows)
    parts = [slice(*place) for place in sorted(found)]
    return Above(
        torch.cat([latent[part] for part in parts]),
        torch.cat([value[part] for part in parts]),
        counts,
    )


def bags(
    rows: Float[Tensor, "n d"],
    row: Int[Tensor, " active"],
    weight: Float[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
    order: Int[Tensor, " active"] | None = None,
) -> Float[Tensor, "bags d"]:
    """Sum of `weight[e] rows[row[e]]` over each bag's entries; with `order` of weight[order[e]]."""
    count, width = len(offsets) - 1, rows.shape[1]
    out = torch.empty(count, width)
    call = _function("bags", rows)

    def work(first: int, last: int) -> None:
        call(
            _at(rows),
            _I(width),
            _at(row),
            _at(weight),
            None if order is None else _at(order),
            _at(offsets),
            _I(first),
            _I(last),
            _at(out),
        )

    share_out(work, count, offsets)
    return out


def inner(
    left: Float[Tensor, "bags d"],
    rows: Float[Tensor, "n d"],
    row: Int[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
) -> Float[Tensor, " active"]:
    """`left[bag] . rows[row[e]]` for every entry e of every bag."""
    out = torch.empty(len(row))
    call = _function("inner", rows)

    def work(first: int, last: int) -> None:
        call(
            _at(left),
            _at(rows),
            _I(rows.shape[1]),
            _at(row),
            _at(offsets),
            _I(first),
            _I(last),
            _at(out),
        )

    share_out(work, len(offsets) - 1)
    return out


class Sorted(NamedTuple):
    """Entries put in the order of their latents."""

    order: Int[Tensor, " active"]
    row: Int[Tensor, " active"]
    bounds: Int[Tensor, " latents+1"]


def by_latent(
    latent: Int[Tensor, " active"], offsets: Int[Tensor, " ends"], n_latents: int
) -> Sorted:
    """A code's entries ordered by latent, rows ascending within one."""
    order, row = torch.empty_like(latent), torch.empty_like(latent)
    bounds = torch.empty(n_latents + 1, dtype=torch.long)
    after = torch.empty(n_latents, dtype=torch.long)
    _function("by_latent")(
        _at(latent),
        _at(offsets),
        _I(len(offsets) - 1),
        _I(n_latents),
        _at(after),
        _at(order),
        _at(row),
        _at(bounds),
    )
    return Sorted(order, row, bounds)


def totals(
    weight: Float[Tensor, " active"], at: "Sorted", n_latents: int
) -> Float[Tensor, " latents"]:
    """Sum of each latent's weights."""
    out = torch.empty(n_latents)
    _function("totals")(_at(weight), _at(at.order), _at(at.bounds), _I(n_latents), _at(out))
    return out


class Fitted(NamedTuple):
    """What a code decodes to, beside its target."""

    y: Float[Tensor, "rows d"]
    """The output."""
    error: Float[Tensor, "rows d"]
    """`scale (y - target)`, in the matrix's number format."""
    to_value: Float[Tensor, " active"]
    """The error's product with each entry's row."""
    square: Float[Tensor, " rows"]
    """`|y - target|^2`."""
    to_bias: Float[Tensor, "groups d"]
    """The error summed over some rows at a time (`_ROWS_SUMMED`, on a GPU all)."""


def fit(
    matrix: Float[Tensor, "latents d"],
    latent: Int[Tensor, " active"],
    value: Float[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
    bias: Float[Tensor, " d"],
    target: Float[Tensor, "rows d"],
    scale: float,
) -> Fitted:
    """Decode a code, compare it with its target and take the error back to its values."""
    found = Fitted(
        torch.empty_like(target),
        torch.empty(target.shape, dtype=matrix.dtype),
        torch.empty_like(value),
        torch.empty(len(target), dtype=torch.float64),
        torch.empty(-(-len(target) // _ROWS_SUMMED), target.shape[1]),
    )
    call = _function("fit", matrix)
    code = (_at(latent), _at(value), _at(offsets))
    compared = (_at(bias), _at(target), ctypes.c_float(scale))

    def work(first: int, last: int) -> None:
        bounds = (_I(first), _I(last))
        call(_at(matrix), _I(matrix.shape[1]), *code, *bounds, *compared, *map(_at, found))

    share_out(work, len(target), offsets, together=_ROWS_SUMMED)
    return found


class Squares(NamedTuple):
    """A gradient's size."""

    along: Float[Tensor, " rows"] | None
    """How far each row of it points along the unit row of the weights."""
    square: float
    """The squared norm of what else there is."""


def squares(
    weight: Float[Tensor, "n d"],
    gradient: Float[Tensor, "rows d"],
    *,
    unit: bool,
    which: Int[Tensor, " rows"] | None = None,
) -> Squares:
    """The size of a gradient; with `unit` rows, of what does not only lengthen them.

    `which` rows of the weights the gradient is of; all of them, in their order, where it is absent.
    """
    along = torch.empty(len(gradient)) if unit else None
    square = torch.empty(len(gradient), dtype=torch.float64)
    call = _function("squares")

    def work(first: int, last: int) -> None:
        bounds = (_I(weight.shape[1]), _I(first), _I(last))
        of = (_at(weight), _at(gradient), _at_any(which))
        call(*of, *bounds, int(unit), _at_any(along), _at(square))

    share_out(work, len(gradient))
    return Squares(along, float(square.sum()))


class Step(NamedTuple):
    """One step of Adam."""

    rate: float
    beta1: float
    beta2: float
    eps: float
    correction1: float
    """1 - beta1 ** steps."""
    correction2: float
    """1 - beta2 ** steps."""
    factor: float
    """What the gradient is multiplied by."""


class Listed(NamedTuple):
    """A gradient of some rows, and since when the moments of each row wait."""

    which: Int[Tensor, " rows"] | None
    """Rows of the weights; all of them, in their order, where it is absent."""
    seen: Int[Tensor, " n"]
    """The step in which each row was last updated (int32); set to this one's number."""
    now: int
    """This step's number."""
    missed: int
    """What is made up for of the steps that a row missed: 0 nothing, 1 its moments fade by them, 2
    it is also moved as they would have moved it."""


def adam(
    weight: Float[Tensor, "n d"],
    gradient: Float[Tensor, "rows d"],
    mean: Float[Tensor, "n d"],
    spread: Float[Tensor, "n d"],
    along: Float[Tensor, " rows"] | None,
    step: Step,
    rounded: Float[Tensor, "n d"] | None = None,
    listed: Listed | None = None,
) -> None:
    """Update `weight`, `mean` and `spread` in place; with `along`, rows stay at unit norm.

    `rounded` gets the new weights in bfloat16.
    """
    call = _function("adam")
    settings = (ctypes.c_float * len(step))(*step)
    which, seen, now, missed = listed or (None, None, 0, 0)

    def work(first: int, last: int) -> None:
        matrices = (_at(weight), _at(gradient), _at(mean), _at(spread), _at_any(which))
        bounds = (_I(weight.shape[1]), _I(first), _I(last))
        waited = (_at_any(seen), ctypes.c_int32(now), missed)
        call(*matrices, *bounds, _at_any(along), *waited, settings, _at_any(rounded))

    share_out(work, len(gradient))


def _function(name: str, of: Tensor | None = None):  # type: ignore[no-untyped-def]
    found = library()
    assert found is not None, "ask `able` first"
    return getattr(found, name if of is None else f"{name}_{_SUFFIX[of.dtype]}")


def _at(tensor: Tensor, offset: int = 0) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr() + offset)


def _at_any(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else _at(tensor)
