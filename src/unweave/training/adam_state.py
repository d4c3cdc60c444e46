"""A part and its optimiser's moments as named tensors, for checkpoints."""

import torch
from torch import Tensor, nn


def part_state(part: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Weights and moments by name."""
    tensors = {f"part.{name}": tensor.detach() for name, tensor in part.state_dict().items()}
    for name, parameter in part.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"adam.{name}.{moment}"] = value.detach()
    return tensors


def restore_part(part: nn.Module, optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    """Put back what `part_state` took."""
    part.load_state_dict({name: tensors[f"part.{name}"] for name in part.state_dict()})
    for name, parameter in part.named_parameters():
        prefix = f"adam.{name}."
        device = parameter.device
        moments = {
            k[len(prefix) :]: v.to(device) for k, v in tensors.items() if k.startswith(prefix)
        }
        if moments:
            optimizer.state[parameter] = moments
