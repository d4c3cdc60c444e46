"""A linear network with sparse features and few interactions between them, all of it known.

    x = sum_j c_j d_j          every token a few features, orthonormal directions d
    y = sum_ij A_ij c_j e_i    the MLP: few entries of A are not zero, directions e of their own
    logits = E y               a token for every e

The MLP is made of neurons in pairs, relu(u) - relu(-u) = u, over random axes, so that no neuron is
a feature. What is decompiled is its map, d_j -> sum_i A_ij e_i.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.decompile.edges import virtual_weights, written_by
from unweave.dictionaries.part import Part
from unweave.subject import Subject, wrap_module
from unweave.validate.circuit_truth import item_auroc
from unweave.validate.worlds.programs.network import NetworkConfig, ProgramNetwork


class LinearSettings(BaseModel):
    """Sizes of the network."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    features: PositiveInt = 24
    """Features read, and as many written."""
    per_token: PositiveInt = 3
    """Features of a token."""
    fan_out: PositiveInt = 3
    """Features that each feature writes to."""
    tokens: PositiveInt = 600
    """Input tokens."""


@dataclass(frozen=True)
class LinearNetwork:
    """The network and what it is made of."""

    subject: Subject
    """One block whose attention is silent; outputs are the last tokens."""
    code: Float[Tensor, "tokens features"]
    """Strength of every feature in every input token."""
    read: Float[Tensor, "features d_model"]
    """Directions d."""
    write: Float[Tensor, "features d_model"]
    """Directions e."""
    A: Float[Tensor, "written read"]
    """Interactions."""

    def draw(self, rows: int, length: int, *, seed: int) -> Int[Tensor, "rows pos"]:
        """Random input tokens after a start token."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(1, 1 + len(self.code), (rows, length), generator=generator)
        return torch.cat([torch.zeros(rows, 1, dtype=torch.long), drawn], dim=1)


@torch.no_grad()
def linear_network(settings: LinearSettings, *, seed: int) -> LinearNetwork:
    """Draw one."""
    generator = torch.Generator().manual_seed(seed)
    n, d = settings.features, 2 * settings.features
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    read, write = basis[:n], basis[n:]
    code = torch.zeros(settings.tokens, n)
    which = torch.rand(settings.tokens, n, generator=generator).topk(settings.per_token).indices
    code.scatter_(1, which, 0.5 + torch.rand(which.shape, generator=generator))
    A = torch.zeros(n, n)
    onto = torch.rand(n, n, generator=generator).topk(settings.fan_out, dim=0).indices
    sign = torch.randint(0, 2, onto.shape, generator=generator) * 2.0 - 1
    A.scatter_(0, onto, sign * (0.5 + torch.rand(onto.shape, generator=generator)))
    axes = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    network = ProgramNetwork(
        NetworkConfig(
            vocab_size=1 + settings.tokens + n, max_position_embeddings=16, hidden_size=d,
            num_hidden_layers=1, num_attention_heads=1, head_dim=1, intermediate_size=2 * n,
        )
    )  # fmt: skip
    network.embed.weight[1 : 1 + settings.tokens] = code @ read
    mlp = network.block(0).mlp
    mlp.up.weight.copy_(torch.cat([axes, -axes]) @ read)
    mlp.down.weight.copy_(torch.cat([axes @ A.T @ write, -axes @ A.T @ write]).T)
    network.unembed.weight[1 + settings.tokens :] = write
    return LinearNetwork(wrap_module(network, name="linear"), code, read, write, A)


class LinearFound(NamedTuple):
    """A decompiled MLP of the linear network beside the truth."""

    output_error: float
    """|part(x) - Wx| / |Wx| in root mean square, on tokens of the vocabulary."""
    map_error: float
    """Relative Frobenius distance from the true map to the slopes of the part: each feature's is
    taken where the feature is there, with the same latents on."""
    cosine: float
    """Mean over read features of the highest cosine with an encoder row."""
    token_auroc: float
    """Edges token -> latent that stands for feature j, true where the token has the feature."""
    feature_auroc: float
    """Edges latent of feature j -> output i, true where A_ij is not zero."""


@torch.no_grad()
def linear_found(known: LinearNetwork, part: Part) -> LinearFound:
    """Hold the MLP's part to the map that it stands in for."""
    x, W = known.code @ known.read, known.A @ known.read
    y = x @ W.T @ known.write
    error = (part(x) - y).square().sum().sqrt() / y.square().sum().sqrt()
    slopes = _slopes(known, part, x)
    true = W @ known.read.T
    active = _dense(part, x)
    latent = _standing_for(known.code, active)
    cosine = (_unit(part.W_enc.detach()) @ known.read.T).amax(0).mean()
    tokens = virtual_weights(known.subject, part, known.subject.embed(), latent)
    tokens = tokens[:, 1 : 1 + len(known.code)]
    # An edge is what it delivers: the weight to a latent that is off delivers nothing.
    used = (tokens * (active[:, latent].T > 0)).abs()
    out = written_by(known.subject, part, latent) @ known.write.T
    strength = active[:, latent].sum(0) / (active[:, latent] > 0).sum(0).clamp_min(1)
    return LinearFound(
        error.item(),
        ((slopes - true).norm() / true.norm()).item(),
        cosine.item(),
        _auroc(used, known.code.T > 0),
        _auroc((out * strength[:, None]).abs(), known.A.T != 0),
    )


def _slopes(known: LinearNetwork, part: Part, x: Tensor) -> Tensor:
    """[written, read]: what a little more of each feature adds to each output, on the mean."""
    W_enc, W_dec, spec = part.W_enc.detach(), part.W_dec.detach(), part.spec
    on = (_dense(part, x) > 0).float()
    there = (known.code > 0).float()
    share = (there / there.sum(0).clamp_min(1)).T @ on  # [features, latents]
    reads = W_enc @ known.read.T * spec.input_scale
    writes = W_dec @ known.write.T / spec.output_scale
    slopes = writes.T @ (reads * share.T)
    if part.W_skip is not None:
        scale = spec.input_scale / spec.output_scale
        slopes = slopes + known.write @ part.W_skip.detach() @ known.read.T * scale
    return slopes


def _standing_for(code: Tensor, active: Tensor) -> Tensor:
    """For each feature the latent whose activations go with it most."""
    a, b = (each - each.mean(0) for each in (code, active))
    a, b = (each / each.norm(dim=0).clamp_min(1e-9) for each in (a, b))
    return (a.T @ b).argmax(1)


def _dense(part: Part, x: Tensor) -> Tensor:
    code = part.encode(x)
    return code.value.new_zeros(len(x), part.spec.n_latents).scatter_add_(
        1, code.latent, code.value
    )


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)


def _auroc(scores: Float[Tensor, "a b"], truth: Bool[Tensor, "a b"]) -> float:
    places = [(i, j) for i in range(len(scores)) for j in range(scores.shape[1])]
    true = {place for place in places if truth[place]}
    return item_auroc(dict(zip(places, scores.flatten().tolist(), strict=True)), true)
