"""The least that trains a TopK dictionary in plain torch: dense products, autograd, Adam.

It needs no peer's environment, so that ratios to it can be watched everywhere.
"""

import torch
from torch.nn import functional as F

from benchmarks.contestants.contract import Contestant, Data, Task, seeded


class PlainTopK:
    """Dense encoder, top-k, dense decoder, unit decoder rows."""

    def __init__(self, task: Task, *, lr: float) -> None:
        seeded(task.seed)
        decoder = F.normalize(torch.randn(task.latents, task.width), dim=1)
        self.W_enc = torch.nn.Parameter(decoder.clone())
        self.W_dec = torch.nn.Parameter(decoder)
        self.b_enc = torch.nn.Parameter(torch.zeros(task.latents))
        self.b_dec = torch.nn.Parameter(torch.zeros(task.width))
        self.k = task.k
        self.optimizer = torch.optim.Adam([self.W_enc, self.W_dec, self.b_enc, self.b_dec], lr=lr)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The latents, [rows, latents]."""
        latents = torch.relu(F.linear(x, self.W_enc, self.b_enc))
        top = latents.topk(self.k, dim=1, sorted=False)
        return torch.zeros_like(latents).scatter_(1, top.indices, top.values)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """What they stand for."""
        return latents @ self.W_dec + self.b_dec

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One update."""
        loss = (self.decode(self.encode(x)) - y).square().sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)


def plain(data: Data, task: Task) -> Contestant:
    """TopK autoencoders and transcoders."""
    model = PlainTopK(task, lr=task.lr or 1e-3)

    def fit() -> None:
        for step, drawn in enumerate(data):
            x, y = drawn if isinstance(drawn, tuple) else (drawn, drawn)
            if step == 0:
                model.b_dec.data = y.mean(0)
            model.step(x, y)

    def apply(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code = model.encode(x)
        return model.decode(code), (code != 0).sum(0)

    return Contestant(fit, apply, lambda: model.W_dec.detach())
