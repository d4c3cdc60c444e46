"""The transformer that programs are compiled to: attention and ReLU MLPs, no layer norm.

A family of its own in the subject's table (`unweave_program`), so that every site has its usual
name. What stands where other families have norms multiplies by one.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.subject import Family, register_family

MODEL_TYPE = "unweave_program"
"""Name of the family in the table of architectures."""

register_family(
    Family(
        name=MODEL_TYPE,
        model_types=(MODEL_TYPE,),
        embed="embed",
        blocks="blocks",
        final_norm="final",
        attn_norm="attn_in",
        mlp_norm="mlp_in",
        attn="attn",
        qkv=("attn.q", "attn.k", "attn.v"),
        attn_out="attn.out",
        mlp="mlp",
        mlp_up="mlp.up",
        mlp_down="mlp.down",
        head="unembed",
        pattern="attn.pattern",
    )
)


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network, under the names that a subject reads."""

    vocab_size: int
    """Tokens, outputs among them."""
    max_position_embeddings: int
    """Longest row, its start token included."""
    hidden_size: int
    """Width of the residual stream."""
    num_hidden_layers: int
    """Blocks."""
    num_attention_heads: int
    """Heads of a block."""
    head_dim: int
    """Width of a head."""
    intermediate_size: int
    """Neurons of a block."""
    causal: bool = True
    """Whether a place sees only itself and what comes before it."""
    bos_token_id: int = 0
    """The token that every row begins with."""
    model_type: str = MODEL_TYPE
    """Row of the table of architectures."""
    hidden_act: str = "relu"
    """Activation of the MLPs."""


class Straight(nn.Module):
    """Where other networks have a norm: times one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The input times the gain, which is one."""
        return x * self.weight


class Pattern(nn.Module):
    """Softmax over the places that a query may see."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(
        self, scores: Float[Tensor, "batch heads query key"]
    ) -> Float[Tensor, "batch heads query key"]:
        """Attention weights, which sum to one over keys."""
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return scores.softmax(-1)


def blank(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer of zeros; either side may be empty."""
    layer = nn.utils.skip_init(nn.Linear, in_features, out_features, bias=bias)
    for parameter in layer.parameters():
        parameter.data.zero_()
    return layer


class Attention(nn.Module):
    """Heads with biases on queries, keys, values and output; scores over sqrt(d_head)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads, inner = config.num_attention_heads, config.num_attention_heads * config.head_dim
        self.scale = config.head_dim**-0.5
        self.q = blank(config.hidden_size, inner)
        self.k = blank(config.hidden_size, inner)
        self.v = blank(config.hidden_size, inner)
        self.pattern = Pattern(config.causal)
        self.out = blank(inner, config.hidden_size)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What all heads write together."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        z = self.pattern(q @ k.transpose(2, 3) * self.scale) @ v
        return self.out(z.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """down(relu(up(x)))."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.up = blank(config.hidden_size, config.intermediate_size)
        self.down = blank(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the neurons write."""
        return self.down(torch.relu(self.up(x)))


class Block(nn.Module):
    """Attention, then the MLP, each added to the stream."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attn_in = Straight(config.hidden_size)
        self.attn = Attention(config)
        self.mlp_in = Straight(config.hidden_size)
        self.mlp = MLP(config)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The stream after the block."""
        x = x + self.attn(self.attn_in(x))
        return x + self.mlp(self.mlp_in(x))


class ProgramNetwork(nn.Module):
    """Embeddings of tokens and places, blocks, unembedding; all weights zero until they are set."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(
            config.vocab_size,
            config.hidden_size,
            _weight=torch.zeros(config.vocab_size, config.hidden_size),
        )
        places = torch.zeros(config.max_position_embeddings, config.hidden_size)
        self.positions = nn.Embedding(*places.shape, _weight=places)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final = Straight(config.hidden_size)
        self.unembed = blank(config.hidden_size, config.vocab_size, bias=False)

    def block(self, layer: int) -> Block:
        """One of the blocks."""
        return cast(Block, self.blocks[layer])

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch places vocab"]:
        """Logits at every place that comes through `final`, where another module may stand."""
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.final(x))
