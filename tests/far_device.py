"""A second device that exists in name only: real arithmetic, and the strictness of a GPU.

Its tensors keep their numbers in a tensor of the processor, so that whatever runs on them gives
the numbers it gives there; but an operation that mixes the two devices is an error, as it is on a
GPU: `zeros(n)` where `zeros(n, device=x.device)` was meant, an index that stayed behind, chance
drawn there with a generator from here. Each time the host waits for a number it is counted.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

FAR = torch.device("lazy", 0)
"""Known to torch by name, needs no hardware, and takes part in the backward pass."""
optimizers = sys.modules[torch.optim.Optimizer.__module__]
_CROSS = {"_to_copy", "copy_", "_foreach_copy_", "to"}
"""Operations that are there to cross from one device to the other."""
_WAITS = {"_local_scalar_dense", "nonzero", "bincount", "is_nonzero", "equal"}


class MixedDevices(RuntimeError):
    """Tensors of two devices met in one operation."""


class Far(torch.Tensor):
    """A tensor that says it is elsewhere."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> "Far":
        with torch.inference_mode(False):  # a view that is written through needs to be counted
            made = torch.Tensor._make_wrapper_subclass(
                cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(),
                dtype=near.dtype, device=FAR, requires_grad=False,
            )  # fmt: skip
        made.near = near
        return made

    def __repr__(self, **_: object) -> str:
        return f"Far({self.near})"

    def numpy(self, **_: object) -> Any:
        """As for a tensor of any GPU."""
        raise TypeError("only a tensor of the processor is an array of numpy: call cpu() first")

    def tolist(self) -> Any:
        """Torch knows no way to a list for tensors of a class of their own."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with FarDevice():
            return func(*args, **(kwargs or {}))


class FarDevice(TorchDispatchMode):
    """While it lasts, `FAR` can be asked for; `waits` counts by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, form = tree_flatten((args, dict(kwargs or {})))
        given = [v for v in flat if isinstance(v, torch.Tensor)]
        far = [tensor for tensor in given if isinstance(tensor, Far)]
        named = [v for v in flat if isinstance(v, torch.device)]
        away = named[0].type == FAR.type if named else bool(far)
        name = func.__name__.split(".")[0]
        if far and name not in _CROSS:
            _check(func, given)
        if away and any(isinstance(v, torch.Generator) for v in flat):
            raise MixedDevices(f"{func}: a generator of the processor draws on another device")
        if far and (name in _WAITS or (name in _CROSS and not away)):
            self.waits[name] += 1
        here = [torch.device("cpu") if isinstance(v, torch.device) else v for v in flat]
        args, kwargs = tree_unflatten(here, form)
        return self._call(func, args, kwargs, away)

    def _call(self, func: Any, args: Any, kwargs: Any, away: bool) -> Any:
        wrapped: dict[int, Far] = {}

        def bring(value: Any) -> Any:
            if not isinstance(value, Far):
                return value
            wrapped[id(value.near)] = value
            return value.near

        def send(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, Far):
                return value
            known = wrapped.get(id(value))
            if away and value.is_sparse:  # rows of a gradient; wrapped they would pass for dense
                return Far(value.to_dense())
            if away:  # what was written in place keeps its name
                return Far(value) if known is None else known
            return value if known is None else value.clone()

        out = func(*tree_map(bring, args), **tree_map(bring, kwargs))
        return tree_map(send, out)


def _check(func: Any, given: list[torch.Tensor]) -> None:
    left = [tensor for tensor in given if not isinstance(tensor, Far) and tensor.ndim]
    if left:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in left)
        raise MixedDevices(f"{func}: {shapes} stayed on the processor")


@contextmanager
def far_device() -> Iterator[FarDevice]:
    """Run a piece of code on `FAR`, which the fused optimisers are told about."""
    asked = "_get_fused_kernels_supported_devices"
    known = getattr(optimizers, asked)()
    patched = mock.patch.object(optimizers, asked, return_value=[*known, FAR.type])
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=FAR) is made here, moved
    try:
        with patched, FarDevice() as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
