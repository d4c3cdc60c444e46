"""A gated attention block: more heads than the block it stands for, few of them open at a time.

For token t looking back at s, head h of H' has

    gate_hts    = clamp(gQ_ht gK_hs, 0, 1)          gQ_ht = x_t . w^gQ_h + b^gQ_h, gK likewise
    pattern_hts = gate_hts softmax_s(q_ht . k_hs / sqrt(d_head))
    out_t       = sum_h sum_s pattern_hts (x_s W_V[h] + b_V[h]) W_O[h]

The gate is of rank one before it is clamped, and what it shuts it does not hand on to other places:
a pattern's rows need not sum to one. Columns of W_V and rows of W_O have unit norm, like directions
of a dictionary. Trained with few gates open (`training.attention.gated`), each behaviour should end
in one head. Mathwin, Akar & Sharkey 2024, Gated attention blocks.
"""

import math
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.artifact.atomic import write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.rotary import rotary, rotate


class GatedBlockSpec(BaseModel):
    """What a gated block is, apart from its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["gated block"] = "gated block"
    """What the folder holds."""
    layer: NonNegativeInt = 0
    """The block it stands for."""
    d_model: PositiveInt
    """Width of what it reads and writes."""
    n_heads: PositiveInt
    """Its heads (H')."""
    d_head: PositiveInt
    """Width of a head."""
    context: PositiveInt
    """Longest row."""
    rotated: NonNegativeInt = Field(default=0, multiple_of=2)
    """Coordinates of queries and keys that are turned by their positions, as in the original."""
    scale: PositiveFloat = 1.0
    """What the sum over heads is multiplied by; where the original writes more than directions of
    unit norm can (published: one)."""

    @property
    def reads(self) -> str:
        """The site it reads."""
        return f"blocks.{self.layer}.attn.in"

    @property
    def writes(self) -> str:
        """The site it writes."""
        return f"blocks.{self.layer}.attn.out"


class GatedPass(NamedTuple):
    """What a gated block does on some rows."""

    gate: Float[Tensor, "batch heads query key"]
    """How far open each head is for each pair of places, from 0 to 1."""
    pattern: Float[Tensor, "batch heads query key"]
    """Gate times softmax; zero where the key comes after the query."""
    z: Float[Tensor, "batch heads query d_head"]
    """Values that arrive."""
    output: Float[Tensor, "batch query d_model"]
    """What all heads write together."""


class GatedBlock(nn.Module):
    """A gated attention block; called with `attn.in`, it returns what it has for `attn.out`."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: GatedBlockSpec) -> None:
        super().__init__()
        self.spec = spec
        heads, d_model, d_head = spec.n_heads, spec.d_model, spec.d_head
        self.W_Q = nn.Parameter(torch.zeros(heads, d_model, d_head))
        self.W_K = nn.Parameter(torch.zeros(heads, d_model, d_head))
        self.W_V = nn.Parameter(torch.zeros(heads, d_model, d_head))
        self.W_O = nn.Parameter(torch.zeros(heads, d_head, d_model))
        self.b_Q = nn.Parameter(torch.zeros(heads, d_head))
        self.b_K = nn.Parameter(torch.zeros(heads, d_head))
        self.b_V = nn.Parameter(torch.zeros(heads, d_head))
        self.W_gate_Q = nn.Parameter(torch.zeros(heads, d_model))
        self.W_gate_K = nn.Parameter(torch.zeros(heads, d_model))
        self.b_gate_Q = nn.Parameter(torch.zeros(heads))
        self.b_gate_K = nn.Parameter(torch.zeros(heads))
        self.register_buffer("cos", torch.ones(spec.context, spec.rotated))
        self.register_buffer("sin", torch.zeros(spec.context, spec.rotated))

    @torch.no_grad()
    def start_(self, generator: torch.Generator, *, opening: float = 0.0) -> None:
        """Start as published: Xavier weights, gates that are orthogonal between heads.

        Gates stand `opening` open, give or take what they read. At the published 0 half of the
        pairs are shut, and no gradient opens them. Where there are more heads than d_model, gates
        are orthogonal in groups of d_model.
        """
        spec = self.spec
        spread = math.sqrt(2 / (spec.d_model + spec.d_head))
        for weight in (self.W_Q, self.W_K, self.W_V, self.W_O):
            weight.normal_(0, spread, generator=generator)
        for bias in (self.b_Q, self.b_K, self.b_V):
            bias.normal_(0, math.sqrt(2 / (spec.n_heads + spec.d_head)), generator=generator)
        for gate in (self.W_gate_Q, self.W_gate_K):
            for group in gate.split(spec.d_model):
                nn.init.orthogonal_(group, generator=generator)
        for bias in (self.b_gate_Q, self.b_gate_K):
            bias.fill_(math.sqrt(opening))

    @torch.no_grad()
    def open_gates_(self) -> None:
        """Open every gate for every pair and keep it so: plain attention. Training leaves them."""
        for gate in (self.W_gate_Q, self.W_gate_K):
            gate.zero_().requires_grad_(False)
        for bias in (self.b_gate_Q, self.b_gate_K):
            bias.fill_(1.0).requires_grad_(False)

    def directions(
        self,
    ) -> tuple[Float[Tensor, "heads d_model d_head"], Float[Tensor, "heads d_head d_model"]]:
        """What each head's values read and write, at unit norm."""
        return F.normalize(self.W_V, dim=1), F.normalize(self.W_O, dim=2)

    def gates(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch heads pos pos"]:
        """How far open each head is for each pair of places [batch, heads, query, key]."""
        query = (x @ self.W_gate_Q.T + self.b_gate_Q).transpose(1, 2)
        key = (x @ self.W_gate_K.T + self.b_gate_K).transpose(1, 2)
        return (query[..., :, None] * key[..., None, :]).clamp(0, 1)

    def scores(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch heads pos pos"]:
        """How much each query asks for each key, later ones among them."""
        q = torch.einsum("bpm,hmd->bhpd", x, self.W_Q) + self.b_Q[:, None]
        k = torch.einsum("bpm,hmd->bhpd", x, self.W_K) + self.b_K[:, None]
        if self.spec.rotated:
            here = slice(x.shape[1])
            q, k = (rotate(part, self.cos[here], self.sin[here]) for part in (q, k))
        return q @ k.transpose(2, 3) * self.spec.d_head**-0.5

    def attention(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch heads pos pos"]:
        """Softmax over the keys that a query may see, before the gate."""
        scores = self.scores(x)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1)

    def values(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch heads pos d_head"]:
        """What each place has to give, read along unit directions."""
        return torch.einsum("bpm,hmd->bhpd", x, self.directions()[0]) + self.b_V[:, None]

    def written(
        self, z: Float[Tensor, "batch heads pos d_head"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What all heads write together when `z` has arrived at them."""
        beside = z.transpose(1, 2).flatten(2)  # heads beside one another: one product for all
        return beside @ self.directions()[1].flatten(0, 1) * self.spec.scale

    def watch(self, x: Float[Tensor, "batch pos d_model"]) -> GatedPass:
        """One pass with everything that happens in it."""
        gate = self.gates(x)
        pattern = gate * self.attention(x)
        z = pattern @ self.values(x)
        return GatedPass(gate, pattern, z, self.written(z))

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What all heads write together."""
        return self.watch(x).output

    def by_head(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos heads d_model"]:
        """What each head writes."""
        W_O = self.directions()[1]
        return torch.einsum("bhpd,hdm->bphm", self.watch(x).z, W_O) * self.spec.scale

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` and `spec.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / "weights.safetensors", dict(self.state_dict()))
        write_json(folder / "spec.json", self.spec.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "GatedBlock":
        """Read what `save` wrote; a UserError names the file that is missing or does not fit."""
        block = cls(spec_in(folder, GatedBlockSpec, "one gated block"))
        forms = {
            name: TensorForm(tuple(tensor.shape), torch.float32)
            for name, tensor in block.state_dict().items()
        }
        block.load_state_dict(load_tensors(folder / "weights.safetensors", forms))
        return block


def gated_block_for(
    subject: Subject,
    layer: int,
    *,
    seed: int,
    expansion: int = 2,
    context: int | None = None,
    scale: float = 1.0,
    opening: float = 0.0,
) -> GatedBlock:
    """A fresh block for the attention of one layer, with `expansion` times its heads.

    Positions are turned as in the subject. `context` is the longest row, the subject's own if None;
    `scale` and `opening` are as in the spec and in `GatedBlock.start_`.

    Raises:
        UserError: no such layer, or rows longer than the subject takes.
    """
    if not 0 <= layer < subject.n_layers:
        raise UserError(f"{subject.name} has blocks 0 to {subject.n_layers - 1}, not {layer}")
    context = context or subject.context
    if context > subject.context:
        raise UserError(
            f"{subject.name} takes rows of {subject.context} tokens at most, not {context}"
        )
    turns = rotary(subject, context)
    spec = GatedBlockSpec(
        layer=layer,
        d_model=subject.d_model,
        n_heads=expansion * subject.n_heads,
        d_head=subject.d_head,
        context=context,
        rotated=0 if turns is None else turns[0].shape[1],
        scale=scale,
    )
    block = GatedBlock(spec)
    block.start_(torch.Generator().manual_seed(seed), opening=opening)
    if turns is not None:
        block.cos.copy_(turns[0])
        block.sin.copy_(turns[1])
    return block
