"""A small Llama with random weights, to be trained on a language of our own."""

import torch
import transformers
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import nn


class FreshSettings(BaseModel):
    """How large the network is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    vocab_size: PositiveInt
    """Tokens, the start token among them."""
    start_token: int
    """Token that every row begins with."""
    context: PositiveInt = 64
    """Longest row."""
    layers: PositiveInt = 2
    """Blocks."""
    width: PositiveInt = 64
    """Dimensions of the residual stream."""
    heads: PositiveInt = 4
    """Attention heads; they divide the width."""
    neurons: PositiveInt = 128
    """Neurons of each MLP."""


def fresh_llama(settings: FreshSettings, *, seed: int) -> nn.Module:
    """The untrained network, its parameters open to training; `wrap_module` makes it a subject."""
    config = transformers.LlamaConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.width,
        intermediate_size=settings.neurons,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        initializer_range=0.5 * settings.width**-0.5,
        bos_token_id=settings.start_token,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)
