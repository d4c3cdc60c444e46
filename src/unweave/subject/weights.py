"""Weights by table: one convention for every family.

Rows are vectors of the residual stream: row j of `W_in` is what neuron j reads, row j of `W_out`
what it writes. Norms are not folded in unless a function says so.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.subject.families import Family
from unweave.subject.sites import Geometry, Heads


@dataclass(frozen=True)
class MLPWeights:
    """An MLP: `W_out.T @ (act(W_gate @ x) * (W_in @ x + b_in)) + b_out`, or without the gate
    `W_out.T @ act(W_in @ x + b_in) + b_out`, for x at `mlp.in`.
    """

    W_in: Float[Tensor, "d_mlp d_model"]
    """Row j: what neuron j reads (of the ungated factor, where there is a gate)."""
    b_in: Float[Tensor, " d_mlp"] | None
    """Its bias."""
    W_gate: Float[Tensor, "d_mlp d_model"] | None
    """Row j: what the gate of neuron j reads."""
    W_out: Float[Tensor, "d_mlp d_model"]
    """Row j: what neuron j writes."""
    b_out: Float[Tensor, " d_model"] | None
    """What is written whatever comes in."""
    activation: str
    """Hugging Face name of the activation function."""
    b_gate: Float[Tensor, " d_mlp"] | None = None
    """Bias of the gate, where it has one."""


@dataclass(frozen=True)
class AttentionWeights:
    """Attention of one block: `q_h = x @ W_Q[h] + b_Q[h]` for x at `attn.in`, and so on; the
    output is `sum_h z_h @ W_O[h] + b_O`. Keys and values of grouped heads are repeated.
    """

    W_Q: Float[Tensor, "heads d_model d_head"]
    """Queries."""
    W_K: Float[Tensor, "heads d_model d_head"]
    """Keys."""
    W_V: Float[Tensor, "heads d_model d_head"]
    """Values."""
    W_O: Float[Tensor, "heads d_head d_model"]
    """What each head writes."""
    b_O: Float[Tensor, " d_model"] | None
    """What is written whatever comes in."""
    b_Q: Float[Tensor, "heads d_head"] | None = None
    """Biases of the queries."""
    b_K: Float[Tensor, "heads d_head"] | None = None
    """Biases of the keys."""
    b_V: Float[Tensor, "heads d_head"] | None = None
    """Biases of the values."""


@dataclass(frozen=True)
class Table:
    """Reads the weights of a model by its family's row."""

    model: nn.Module
    family: Family
    geometry: Geometry

    def _weight(self, path: str) -> Tensor:
        return self.model.get_parameter(f"{path}.weight").detach()

    def _matrix(self, layer: int, path: str) -> Tensor:
        """Weight as [out, in]."""
        weight = self._weight(f"{self.family.blocks}.{layer}.{path}")
        return weight.T if self.family.input_major else weight

    def _bias(self, layer: int, path: str) -> Tensor | None:
        module = self.model.get_submodule(f"{self.family.blocks}.{layer}.{path}")
        bias = getattr(module, "bias", None)
        return None if bias is None else bias.detach()

    def mlp(self, layer: int, activation: str) -> MLPWeights:
        """Weights of the MLP of a block."""
        row = self.family
        gate = row.mlp_gate
        return MLPWeights(
            W_in=self._matrix(layer, row.mlp_up),
            b_in=self._bias(layer, row.mlp_up),
            W_gate=self._matrix(layer, gate) if gate else None,
            b_gate=self._bias(layer, gate) if gate else None,
            W_out=self._matrix(layer, row.mlp_down).T,
            b_out=self._bias(layer, row.mlp_down),
            activation=activation,
        )

    def attention(self, layer: int) -> AttentionWeights:
        """Weights of the attention of a block."""
        size = self.geometry
        q, k, v = (self._weight_heads(layer, part) for part in range(3))
        b_q, b_k, b_v = (self._bias_heads(layer, part) for part in range(3))
        out = self._matrix(layer, self.family.attn_out)
        return AttentionWeights(
            W_Q=q, W_K=k, W_V=v,
            W_O=out.T.unflatten(0, (size.n_heads, size.d_head)),
            b_O=self._bias(layer, self.family.attn_out),
            b_Q=b_q, b_K=b_k, b_V=b_v,
        )  # fmt: skip

    def _weight_heads(self, layer: int, part: int) -> Tensor:
        """Query, key or value projection as [heads, d_model, d_head]."""
        row = self.family
        return self._split(self._matrix(layer, row.qkv[0 if row.fused else part]).T, part)

    def _bias_heads(self, layer: int, part: int) -> Tensor | None:
        """Query, key or value bias as [heads, d_head]."""
        row = self.family
        bias = self._bias(layer, row.qkv[0 if row.fused else part])
        return None if bias is None else self._split(bias, part)

    def _split(self, outputs: Tensor, part: int) -> Tensor:
        """Heads first, groups repeated, from a tensor whose last axis is what is projected to."""
        row, size = self.family, self.geometry
        heads = size.n_heads if part == 0 else size.n_kv_heads
        view = Heads(heads, size.d_head, part if row.fused else None, row.fused)
        return view.read(outputs).movedim(-2, 0).repeat_interleave(size.n_heads // heads, 0)

    def norm_gain(self, layer: int, which: str) -> Float[Tensor, " d_model"]:
        """Elementwise gain of the norm before a block's attention or MLP."""
        path = self.family.attn_norm if which == "attn" else self.family.mlp_norm
        weight = self._weight(f"{self.family.blocks}.{layer}.{path}")
        return weight + self.family.gain_offset

    def write_gain(self, layer: int, which: str) -> Float[Tensor, " d_model"]:
        """Elementwise gain of the norm after a block, on the way to the stream; ones if none."""
        path = self.family.attn_post_norm if which == "attn" else self.family.mlp_post_norm
        if path is None:
            device = self._weight(self.family.embed).device
            return torch.ones(self.geometry.d_model, device=device)
        return self._weight(f"{self.family.blocks}.{layer}.{path}") + self.family.gain_offset

    def norms_writes(self) -> bool:
        """Whether what blocks write passes a norm on the way to the stream."""
        return self.family.mlp_post_norm is not None

    def norm_bias(self, layer: int, which: str) -> Float[Tensor, " d_model"] | None:
        """What the norm before a block's attention or MLP adds, where it adds anything."""
        return self._bias(layer, self.family.attn_norm if which == "attn" else self.family.mlp_norm)

    def unembed_bias(self) -> Float[Tensor, " vocab"]:
        """What is added to logits whatever the stream holds: by the last norm, by the head."""
        head = self.model.get_submodule(self.family.head)
        norm = self.model.get_submodule(self.family.final_norm)
        total = torch.zeros(self.geometry.vocab_size, device=self._weight(self.family.head).device)
        if (shift := getattr(norm, "bias", None)) is not None:
            total = total + self._weight(self.family.head).float() @ shift.detach().float()
        own = getattr(head, "bias", None)
        return total if own is None else total + own.detach().float()

    def positions(self) -> Float[Tensor, "context d_model"] | None:
        """Row p: what position p puts on the stream; None where heads turn by it instead."""
        return self._weight(self.family.positions).float() if self.family.positions else None

    def centred(self) -> bool:
        """Whether norms take out the mean (LayerNorm) or only scale (RMSNorm)."""
        norm = self.model.get_submodule(f"{self.family.blocks}.0.{self.family.mlp_norm}")
        return isinstance(norm, nn.LayerNorm)

    def norm_eps(self) -> float:
        """What norms add to the mean square they divide by the root of."""
        norm = self.model.get_submodule(f"{self.family.blocks}.0.{self.family.mlp_norm}")
        found = getattr(norm, "variance_epsilon", None)
        return float(getattr(norm, "eps", 0.0) if found is None else found)

    def unembed(self) -> Float[Tensor, "vocab d_model"]:
        """Row t: the direction at `final`'s norm input, up to its scale, that raises logit t."""
        gain = self._weight(self.family.final_norm) + self.family.gain_offset
        return self._weight(self.family.head) * gain

    def embed(self) -> Float[Tensor, "vocab d_model"]:
        """Row t: what token t puts on the stream, as the site `embed` has it."""
        device = self._weight(self.family.embed).device
        tokens = torch.arange(self.geometry.vocab_size, device=device)
        with torch.no_grad():
            return self.model.get_submodule(self.family.embed)(tokens)
