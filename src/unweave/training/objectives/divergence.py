"""KL between what two networks predict, with its gradient, a few rows at a time.

Both log-softmaxes of a step would each be as large as the logits in float32; over a vocabulary of
50,000 that is most of a step's memory traffic.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK_ENTRIES = 1 << 20
"""Logits looked at together: what a processor's cache holds in float32."""


def mean_kl(
    original: Float[Tensor, "rows vocab"], spliced: Float[Tensor, "rows vocab"]
) -> Float[Tensor, ""]:
    """KL(original || spliced), nats, mean over rows; differentiable in `spliced` alone.

    The gradient at a row is (softmax(spliced) - softmax(original)) / rows, in the logits' dtype.
    """
    return _MeanKL.apply(original, spliced)


class _MeanKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, original, spliced):  # type: ignore[no-untyped-def]
        wide = torch.float64 if spliced.dtype == torch.float64 else torch.float32
        wanted = ctx.needs_input_grad[1]
        gradient = torch.empty_like(spliced) if wanted else None
        rows = len(spliced)
        at_once = max(1, CHUNK_ENTRIES // spliced.shape[1])
        total = 0.0
        for start in range(0, rows, at_once):
            mine = slice(start, start + at_once)
            p = original[mine].to(wide).log_softmax(-1)
            q = spliced[mine].to(wide).log_softmax(-1)
            share = p.exp()
            total += torch.dot(share.flatten(), p.sub_(q).flatten()).item()
            if gradient is not None:
                gradient[mine] = q.exp_().sub_(share).div_(rows)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.tensor(total / rows, dtype=wide, device=spliced.device)

    @staticmethod
    def backward(ctx, outer):  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return None, gradient * outer.to(gradient.dtype)
