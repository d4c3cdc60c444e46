"""Attention patterns made visible, only in the blocks where they are asked for.

The fast attention kernels never hold the pattern. For the time of a run that asks for one, the
model's attention goes through a function registered with transformers: it writes the pattern out
in the blocks asked for and calls the fast kernel in all others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

NAME = "unweave_pattern"


@runtime_checkable
class _Config(Protocol):
    _attn_implementation: str


_asked: ContextVar[Mapping[nn.Module, Callable[[Tensor], Tensor]]] = ContextVar("asked")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **rest: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend; query [batch, heads, pos, d_head], key and value with one head per group."""
    visit = _asked.get().get(module)
    if visit is None and softcap is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if visit is not None:
        pattern = visit(pattern)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


@contextmanager
def patterns_visible(
    model: nn.Module, visits: Mapping[nn.Module, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Pass the pattern of each module in `visits` through its function while the context lasts."""
    if not visits:
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    config = cast(_Config, model.config)
    before = config._attn_implementation
    token = _asked.set(visits)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _asked.reset(token)
