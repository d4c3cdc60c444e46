"""Modular addition decompiled: do latents keep the network's frequencies?

What is decompiled is the whole network behind its embedding, from [E_a, E_b] to the logits. A
latent's activation is a table over (a, b), which has a Fourier spectrum of two indices; a latent of
one frequency k varies in (k, 0), (0, k), (k, +-k) and their multiples alone. The known graph: the
plane of frequency k in the embedding reaches the logits' wave of frequency k and no other.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.dictionaries.start import start_mlp
from unweave.subject import MLPWeights
from unweave.training.joint import kl_per_token
from unweave.validate.circuit_truth import item_auroc
from unweave.validate.truth.decompiled.parts import (
    KnownFitSettings,
    fit_locally,
    no_neurons,
    randomised_,
)
from unweave.validate.truth.fourier import fourier_basis, spectrum
from unweave.validate.worlds.modular import ModularNetwork, all_pairs

PURE = 0.8
"""Share of a latent's variance in one frequency from which on it counts as a latent of it."""


class ModularFound(NamedTuple):
    """A decompiled network for modular addition."""

    key: tuple[int, ...]
    """The network's key frequencies, from its embedding."""
    found: float
    """Share of them that some living latent is a pure one of."""
    pure: float
    """Share of the latents' firing mass in latents of one key frequency."""
    periodic: float
    """Share of the latents' variance in their own strongest frequency, by mass."""
    edge_auroc: float
    """Paths from embedding planes of key frequencies to their logit waves through latents; true
    from k to the same k."""
    shuffled_auroc: float
    """The same with the latents' decoder rows shuffled."""
    kl: float
    """KL(network || decompiled), nats a pair."""
    same_answer: float
    """Share of pairs with the same highest logit."""


@torch.no_grad()
def inputs_of(model: ModularNetwork) -> Float[Tensor, "pairs d"]:
    """[E_a, E_b] of every pair, with zeros up to the width of both sides."""
    return _wide(model.E.weight[all_pairs(model.p)].flatten(1), model)


@torch.no_grad()
def outputs_of(model: ModularNetwork) -> Float[Tensor, "pairs d"]:
    """Logits of every pair, off their mean, which no probability depends on; likewise."""
    logits = model(all_pairs(model.p))
    return _wide(logits - logits.mean(1, keepdim=True), model)


def _wide(table: Tensor, model: ModularNetwork) -> Tensor:
    """A start from neurons knows one width for what is read and written."""
    width = max(2 * model.E.weight.shape[1], model.p)
    return F.pad(table, (0, width - table.shape[1]))


def fit_modular(
    model: ModularNetwork,
    *,
    start: Literal["weights", "data", "untrained"],
    latents: int,
    seed: int,
    settings: KnownFitSettings,
) -> Part:
    """A transcoder from the embeddings of both arguments to the logits, on all pairs."""
    x, y = inputs_of(model), outputs_of(model)
    spec = PartSpec(
        name="L0.mlp", input_site="pre", output_site="U", d_in=x.shape[1], d_out=y.shape[1],
        n_latents=latents, k=min(settings.k, latents),
    )  # fmt: skip
    read = torch.cat([model.W_a.weight, model.W_b.weight], 1)
    own = MLPWeights(_wide(read, model), None, None, _wide(model.U.weight.T, model), None, "relu")
    part = start_mlp(spec, own if start == "weights" else no_neurons(spec), x, y, seed=seed)
    if start == "untrained":
        return randomised_(part, seed=seed)
    fit_locally(part, x, y, seed=seed, settings=settings)
    return part


@torch.no_grad()
def modular_found(model: ModularNetwork, part: Part, *, seed: int = 0) -> ModularFound:
    """Hold the part to the network's own frequencies."""
    x, y = inputs_of(model), outputs_of(model)
    code = part.encode(x)
    active = y.new_zeros(len(x), part.spec.n_latents).scatter_add_(1, code.latent, code.value)
    key = spectrum([model.E.weight]).key
    share = frequency_shares(active, model.p)
    mass = active.sum(0) * part.W_dec.norm(dim=1)
    mass = mass / mass.sum().clamp_min(1e-12)
    top, which = share.max(1)
    alive, right = mass > 1e-4, torch.isin(which + 1, torch.tensor(key))
    pure = alive & right & (top >= PURE)
    order = torch.randperm(len(mass), generator=torch.Generator().manual_seed(seed))
    out, y = part(x)[:, : model.p], y[:, : model.p]
    return ModularFound(
        key=key,
        found=sum(bool((pure & (which + 1 == k)).any()) for k in key) / len(key),
        pure=mass[pure].sum().item(),
        periodic=(mass * top).sum().item(),
        edge_auroc=_path_auroc(model, part, mass, part.W_dec[:, : model.p], key),
        shuffled_auroc=_path_auroc(model, part, mass, part.W_dec[order, : model.p], key),
        kl=kl_per_token(y, out).mean().item(),
        same_answer=(y.argmax(1) == out.argmax(1)).float().mean().item(),
    )


def frequency_shares(
    active: Float[Tensor, "pairs latents"], p: int
) -> Float[Tensor, "latents frequencies"]:
    """Share of each latent's variance over (a, b) that a frequency and its multiples explain.

    Entry k - 1: modes (i, j) with i and j in {0, +-k, +-2k}, which is what relu of a sum of waves
    of frequency k consists of but for higher harmonics. (p prime: all multiples are multiples of
    any k, so the count has to stop somewhere.)
    """
    tables = active.T.reshape(-1, p, p)
    power = torch.fft.fft2(tables - tables.mean((1, 2), keepdim=True)).abs().square()
    total = power.sum((1, 2)).clamp_min(1e-12)
    found = []
    for k in range(1, (p - 1) // 2 + 1):
        own = torch.tensor([0, k, p - k, 2 * k % p, -2 * k % p])
        found.append(power[:, own][:, :, own].sum((1, 2)) / total)
    return torch.stack(found, 1)


def _path_auroc(
    model: ModularNetwork, part: Part, mass: Tensor, W_dec: Tensor, key: tuple[int, ...]
) -> float:
    """Strength of k -> k' over latents: mass x share of reading at k x share of writing at k'."""
    width = model.E.weight.shape[1]
    W_enc = part.W_enc.detach()
    tables = [model.E.weight @ W_enc[:, at : at + width].T for at in (0, width)]
    reads = _shares(torch.cat(tables, 1), model.p)
    reads = reads[:, : len(W_enc)] + reads[:, len(W_enc) :]
    writes = _shares(W_dec.T, model.p)
    strength = (reads / 2 * mass) @ writes.T
    scores = {(k, m): strength[k - 1, m - 1].item() for k in key for m in key}
    return item_auroc(scores, {(k, k) for k in key})


def _shares(table: Float[Tensor, "p columns"], p: int) -> Float[Tensor, "frequencies columns"]:
    """Share of each column's variance over residues in every frequency."""
    power = (fourier_basis(p).float() @ table).square().unflatten(0, (-1, 2)).sum(1)
    return power / power.sum(0).clamp_min(1e-12)
