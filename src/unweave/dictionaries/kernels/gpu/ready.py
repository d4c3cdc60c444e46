"""Whether the Triton kernels can do a piece of work; everywhere else torch's own operations do.

With `TRITON_INTERPRET=1` Triton runs kernels on the processor, one program after another: slow, but
every line of them can be tested where there is no GPU.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read; they add up in float32."""


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Whether kernels run on the processor, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def able(*tensors: Tensor) -> bool:
    """Whether all tensors lie where kernels run, in a format that they read."""
    if not (tensors[0].is_cuda or interpreting()) or not _has_triton():
        return False
    return all(t.device == tensors[0].device and t.dtype in FORMATS for t in tensors)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Launch where the tensor is: Triton takes the current device, whatever it is handed."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
