"""Networks whose weights have been shuffled, in some of their blocks or in all of them.

Every weight matrix, bias and gain keeps its own numbers and loses where they stood: norms and
scales stay, what was learned goes. Shuffling is by name and seed, so that a block is shuffled in
the same way in every network it is shuffled in.
"""

import copy
import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from unweave.subject import Subject, wrap_module

HEAD = "head"
"""The unembedding, where it is not the embedding too."""
EMBED = "embed"
"""The embedding, and the unembedding with it where they are one."""


@runtime_checkable
class _Embedding(Protocol):
    """What a language model of transformers says of its two ends."""

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module | None: ...


def stages(subject: Subject) -> list[str]:
    """What can be shuffled, from the top down: the head if it is its own, then every block."""
    blocks = [f"blocks.{i}" for i in reversed(range(subject.n_layers))]
    return blocks if _head(subject) is None else [HEAD, *blocks]


def shuffled(subject: Subject, parts: Sequence[str], *, seed: int) -> Subject:
    """A copy of the network with these stages shuffled; the original is left alone."""
    model = copy.deepcopy(subject.model)
    found = wrap_module(model, name=f"{subject.name} shuffled", tokenizer=subject.tokenizer)
    for part in parts:
        _shuffle(_module(found, part), f"{part} {seed}")
    return found


def _module(subject: Subject, part: str) -> nn.Module:
    if part == HEAD and (head := _head(subject)) is not None:
        return head
    if part == EMBED and isinstance(subject.model, _Embedding):
        return subject.model.get_input_embeddings()
    # A residual stream's site lies at the block itself.
    return subject.model.get_submodule(subject.place(f"{part}.resid_post").module)


def _head(subject: Subject) -> nn.Module | None:
    model = subject.model
    if not isinstance(model, _Embedding):
        return None
    head = model.get_output_embeddings()
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    own = [p for p in head.parameters() if id(p) not in shared] if head is not None else []
    return head if own else None


@torch.no_grad()
def _shuffle(module: nn.Module, key: str) -> None:
    for name, parameter in module.named_parameters():
        seed = int.from_bytes(hashlib.sha256(f"{key} {name}".encode()).digest()[:7], "little")
        order = torch.randperm(parameter.numel(), generator=torch.Generator().manual_seed(seed))
        parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
