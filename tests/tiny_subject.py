"""Tiny random subjects and text of a grammar, for the tests of several rooms."""

import importlib.util
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from unweave.subject import Subject, wrap_module

_SPEC = importlib.util.spec_from_file_location(
    "families_of_tests", Path(__file__).parent / "subject" / "conftest.py"
)
_FAMILIES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FAMILIES)

FAMILIES = sorted(_FAMILIES.CONFIGS)
"""Every tiny network that the subject's tests know, by name."""

START = 1
"""The start token of every tiny subject."""


def family_subject(name: str) -> Subject:
    """A random network of one family, 2 layers, d_model 32, vocabulary 97."""
    return wrap_module(_FAMILIES.tiny_model(name), name=name)


def tiny_llama(*, seed: int = 0, weight: float = 0.15, **changes: object) -> Subject:
    """A random Llama: 2 layers, d_model 32, 4 heads of 8 over 2 groups, 64 tokens."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
        "bos_token_id": START, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * weight)
    return wrap_module(model, name="tiny")


def tiny_rows(count: int, context: int = 16, *, vocab: int = 64, seed: int = 0) -> Tensor:
    """Random rows that begin with the start token and do not hold it again."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, vocab, (count, context), generator=generator)
    rows[:, 0] = START
    return rows


def bump(module: nn.Module, by: float = 0.3, *, seed: int = 0) -> nn.Module:
    """Add noise to every parameter of a module, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module
