"""A tiny random network of every family in the table."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from unweave.subject import Subject, wrap_module

SIZES = {"vocab_size": 97, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    **SIZES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": False}

CONFIGS = {
    "llama": transformers.LlamaConfig(**GATED),
    "llama-bias": transformers.LlamaConfig(**GATED, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**GATED, sliding_window=8, head_dim=8),
    "qwen2": transformers.Qwen2Config(**GATED),
    "qwen3": transformers.Qwen3Config(**GATED, head_dim=16),
    "gemma2": transformers.Gemma2Config(**GATED, head_dim=16, sliding_window=8),
    "gemma3": transformers.Gemma3TextConfig(
        **GATED, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": transformers.GPT2Config(
        **SIZES, n_embd=32, n_layer=2, n_head=4, n_inner=48, pad_token_id=0
    ),
    "gpt-neox": transformers.GPTNeoXConfig(**COMMON, intermediate_size=48, rotary_pct=0.5),
    "gpt-neox-sequential": transformers.GPTNeoXConfig(
        **COMMON, intermediate_size=48, use_parallel_residual=False
    ),
    "gpt-neo": transformers.GPTNeoConfig(
        **SIZES, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48, window_size=4,
        attention_types=[[["global", "local"], 1]], pad_token_id=0,
    ),
}  # fmt: skip


def tiny_model(family: str) -> torch.nn.Module:
    """A random model in which no gain is 1, no bias 0 and no two weights equal."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


@pytest.fixture(scope="session", params=sorted(CONFIGS))
def tiny(request) -> Subject:
    return wrap_module(tiny_model(request.param), name=request.param)


@pytest.fixture
def llama() -> Subject:
    return wrap_module(tiny_model("llama"), name="llama")


@pytest.fixture(scope="session")
def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(1))
