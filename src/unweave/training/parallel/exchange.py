"""Gradients of many processes added up: of the latents that fired anywhere, and no others.

A latent that was chosen in no row has no gradient. Who was chosen somewhere is settled first (one
byte a latent), then the rows of `W_enc`, `b_enc` and `W_dec` of those are packed into one block and
added up. At 32 of 131,072 latents a row that is a fraction of the dense gradient; overlapping a
dense exchange with the backward pass would hide time but send all of it, and the backward pass of a
sparse dictionary is too short to hide it in.
"""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary, Pass
from unweave.training.parallel.group import Group
from unweave.training.parallel.sharded import per_latent

_PACKED = 0.8
"""Up to this share of latents packing their rows beats sending all of them."""
CHOSEN, FIRED = 1, 2


def who_fired(passed: Pass, n_latents: int, group: Group) -> UInt8[Tensor, " latents"]:
    """0 for latents that can have a gradient nowhere, `FIRED` for those not zero somewhere.

    One process may have computed all latents where another looked at few: then all may have one.
    """
    if passed.code is not None:
        support, value = passed.code.support, passed.code.value.detach()
        state = torch.zeros(n_latents, dtype=torch.uint8, device=value.device)
        state[support.latent] = CHOSEN
        state[support.latent[value != 0]] = FIRED
    else:
        assert passed.latents is not None
        on = (passed.latents.detach() != 0).any(0)
        state = on.to(torch.uint8) + CHOSEN
    return group.largest(state)


@torch.no_grad()
def add_up_gradients_(
    dictionary: Dictionary, rows: Bool[Tensor, " latents"] | None, share: float, group: Group
) -> None:
    """Make every gradient that of the whole batch, from one of a mean over `share` of its rows.

    `rows` are the latents that have a gradient anywhere; None: all of them may.
    """
    gradients = {n: p.grad for n, p in dictionary.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        # A mean over no rows is not a number.
        gradient.mul_(share) if share else gradient.zero_()
    which = None
    if rows is not None and float(rows.float().mean()) < _PACKED:
        which = rows.nonzero()[:, 0]
    packed = {n: g for n, g in gradients.items() if which is not None and per_latent(n)}
    for name, gradient in gradients.items():
        if name not in packed and gradient.numel() > 1 << 16:
            gradient.copy_(group.sum_(gradient.contiguous()))
    small = [g for n, g in gradients.items() if n not in packed and g.numel() <= 1 << 16]
    _add_up_flat(small, group)
    if which is not None and packed:
        parts = [g[which] for g in packed.values()]
        _add_up_flat(parts, group)
        for gradient, part in zip(packed.values(), parts, strict=True):
            gradient[which] = part


def _add_up_flat(tensors: list[Tensor], group: Group) -> None:
    """Add up several tensors as one."""
    if not tensors:
        return
    flat = group.sum_(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
