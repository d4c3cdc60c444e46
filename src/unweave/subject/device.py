"""Names of devices, checked before anything is loaded onto one."""

import torch

from unweave.errors import UserError


def known_device(name: str) -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1.

    Raises:
        UserError: no such device on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"there is no device {name!r}: name one such as cpu, cuda or cuda:1"
        ) from None
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            found = "none" if not there else f"{there}, counted from cuda:0"
            raise UserError(
                f"there is no GPU {name} that torch can use on this machine (it finds {found}): "
                "take --device cpu, or install torch for CUDA beside a working driver"
            )
    return device
