"""Muon in float32 for stacks of equally shaped matrices, with AdamW for everything else.

`torch.optim.Muon` orthogonalises in bfloat16, which this training's CPU emulates slowly, and
handles one matrix at a time. Here matrices of one shape are stacked and orthogonalised
together, which makes the step cheap beside a forward pass of a small model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# the quintic of Keller Jordan's Muon: it drives all singular values to about one in 5 rounds
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Replace the singular values of each matrix in the stack by about one."""
    a, b, c = QUINTIC
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class MatrixAndRest:
    """One optimizer for a model: Muon on the hidden matrices, AdamW on embedding and norms."""

    def __init__(
        self,
        named: Iterable[tuple[str, torch.nn.Parameter]],
        lr_matrix: float,
        lr_rest: float,
        weight_decay: float,
        matrices_by_muon: bool,
        momentum: float = 0.95,
    ) -> None:
        self.momentum, self.decay, self.lr_matrix = momentum, weight_decay, lr_matrix
        self.by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        embeds, norms, plain = [], [], []
        for name, p in named:
            if p.ndim == 1:
                norms.append(p)
            elif "embed" in name:
                embeds.append(p)
            elif matrices_by_muon:
                self.by_shape.setdefault(tuple(p.shape), []).append(p)
            else:
                plain.append(p)
        self.buffers = {k: torch.zeros(len(v), *k) for k, v in self.by_shape.items()}
        groups = [
            {"params": embeds + plain, "weight_decay": weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr_rest, betas=(0.9, 0.95), foreach=True)
        self.lr_rest = lr_rest

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update with both rates multiplied by `scale`, then clear the gradients."""
        lr = self.lr_matrix * scale
        for shape, params in self.by_shape.items():
            grad = torch.stack([p.grad for p in params if p.grad is not None])
            buf = self.buffers[shape]
            buf.lerp_(grad, 1 - self.momentum)
            update = orthogonalise(grad.lerp(buf, self.momentum))
            update *= lr * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - lr * self.decay).sub_(u)
                p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = self.lr_rest * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state as named tensors, so that it can be saved without pickle."""
        out = {f"muon.{'x'.join(map(str, k))}": v for k, v in self.buffers.items()}
        for i, state in self.adam.state_dict()["state"].items():
            out |= {f"adam.{i}.{name}": t.clone() for name, t in state.items()}
        return out

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `tensors` gave."""
        for k in self.buffers:
            self.buffers[k] = tensors[f"muon.{'x'.join(map(str, k))}"].clone()
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith("adam."):
                _, i, field = name.split(".")
                state.setdefault(int(i), {})[field] = t.clone()
        self.adam.load_state_dict(self.adam.state_dict() | {"state": state})
