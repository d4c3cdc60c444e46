"""One step of Adam on dictionaries: unit decoder rows, one bound on the whole gradient's norm.

What would only lengthen a unit row is left out of its gradient, so that it is kept out of Adam's
memory too, and rows are brought back to unit norm after the step (Bricken et al. 2023). Large
matrices go through one compiled pass each where that is to be had (C on the processor, Triton on a
GPU), everything else through torch's fused Adam; all keep their moments in the optimiser's state
under Adam's names.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.kernels.deferred import PutOff
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.native import calls as native
from unweave.dictionaries.kernels.rounding import to_keep
from unweave.training.blocks import Blocks
from unweave.training.lazy import Lazy, listed


class _Matrix(NamedTuple):
    weight: nn.Parameter
    grad: Tensor
    along: Tensor | None
    unit: bool
    which: Tensor | None = None
    """Rows of the weight that the gradient is of, where these are not all."""


@torch.no_grad()
def update_(
    modules: nn.ModuleDict,
    optimizer: torch.optim.Adam,
    *,
    limit: float | None,
    in_all: Callable[[Mapping[str, float]], float],
    lazy: Lazy | None = None,
    put_off: PutOff | None = None,
) -> None:
    """Apply the gradients that lie in `.grad`, their norm brought down to `limit` if it exceeds it.

    The learning rate is what the optimiser's one group says; `in_all` adds up the squared norms of
    the parameters' gradients, named as `modules` names them. With `lazy`, rows of compiled kernels'
    matrices wait while they have no gradient. `put_off` has what does not lie in `.grad`.
    """
    dictionaries = [d for d in modules.values() if isinstance(d, Dictionary)]
    unit = {id(d.W_dec) for d in dictionaries if d.spec.decoder == "unit"}
    matrices: list[_Matrix] = []
    blocks: list[Blocks] = []
    squares: dict[str, float | Tensor] = {}
    others: list[Tensor] = []
    for name, parameter in modules.named_parameters():
        grad = parameter.grad
        is_unit = id(parameter) in unit
        if put_off is not None and (entries := put_off.of(parameter)):
            blocks.append(Blocks.of(parameter, entries, grad, unit=is_unit))
            squares[name] = blocks[-1].square
            continue
        if grad is None:
            continue
        which = None
        if grad.is_sparse:
            which, grad = _listed(grad)
        if parameter.dim() == 2 and gpu.able(parameter, grad):
            matrices.append(_Matrix(parameter, grad, None, is_unit))
            if limit is not None:
                squares[name] = gpu.squares(parameter, grad, unit=is_unit)
            continue
        if parameter.dim() == 2 and native.able(parameter, grad):
            found = native.squares(parameter, grad, unit=is_unit, which=which)
            matrices.append(_Matrix(parameter, grad, found.along, is_unit, which))
            squares[name] = found.square
            continue
        if is_unit:
            grad.addcmul_(parameter, torch.linalg.vecdot(grad, parameter)[:, None], value=-1)
        others.append(grad)
        if limit is not None:
            wide = torch.promote_types(grad.dtype, torch.float32)
            squares[name] = torch.linalg.vector_norm(grad, dtype=wide).double().square()
    factor = 1.0
    if limit is not None:
        factor = min(1.0, limit / max(in_all(_numbers(squares)), 1e-30) ** 0.5)
    if factor != 1.0 and others:
        torch._foreach_mul_(others, factor)
    for matrix in matrices:
        _step_matrix(matrix, optimizer, factor, lazy)
        matrix.weight.grad = None  # or the optimiser would apply it once more
    for several in blocks:
        step = _next_step(several.parameter, optimizer, factor)
        several.step(optimizer.state[several.parameter], step)
        several.parameter.grad = None
    optimizer.step()
    done = {id(matrix.weight) for matrix in matrices} | {id(b.parameter) for b in blocks}
    _unit_again(dictionaries, done)


def _listed(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that have a gradient, each once, and their gradients."""
    which = grad._indices()[0]
    if not bool((which.diff() > 0).all()):  # autograd forgets that it was in order
        grad = grad.coalesce()
    return grad._indices()[0], grad._values()


def _numbers(squares: Mapping[str, float | Tensor]) -> dict[str, float]:
    """All as numbers; a device is waited for once."""
    waiting = {name: value for name, value in squares.items() if isinstance(value, Tensor)}
    known: dict[str, float] = {}
    if waiting:
        together = torch.stack([value.double() for value in waiting.values()])
        known = dict(zip(waiting, together.tolist(), strict=True))
    return {name: float(known.get(name, value)) for name, value in squares.items()}


def _unit_again(dictionaries: Sequence[Dictionary], done: set[int]) -> None:
    for dictionary in dictionaries:
        if dictionary.spec.decoder == "unit" and id(dictionary.W_dec) not in done:
            dictionary.unit_decoder_()


def _next_step(parameter: nn.Parameter, optimizer: torch.optim.Adam, factor: float) -> native.Step:
    """Adam's numbers for a parameter's next step, its moments made if they are not there."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] = state["step"].cpu() + 1  # counted here: nobody is to wait for a device
    group = optimizer.param_groups[0]
    (beta1, beta2), steps = group["betas"], float(state["step"])
    return native.Step(
        rate=group["lr"],
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        correction1=1 - beta1**steps,
        correction2=1 - beta2**steps,
        factor=factor,
    )


def _step_matrix(
    matrix: _Matrix, optimizer: torch.optim.Adam, factor: float, lazy: Lazy | None
) -> None:
    step = _next_step(matrix.weight, optimizer, factor)
    state, kept = optimizer.state[matrix.weight], to_keep(matrix.weight)
    moments = (state["exp_avg"], state["exp_avg_sq"])
    if gpu.able(matrix.weight, matrix.grad):
        gpu.adam(
            matrix.weight,
            matrix.grad,
            moments,
            lr=step.rate,
            betas=(step.beta1, step.beta2),
            eps=step.eps,
            step=int(state["step"]),
            factor=factor,
            unit=matrix.unit,
            copy=kept,
        )
        return
    waiting = listed(state, matrix.weight, matrix.which, lazy)
    native.adam(matrix.weight, matrix.grad, *moments, matrix.along, step, kept, waiting)
