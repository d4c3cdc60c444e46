"""The dictionaries that are held to every world, all twice as wide as the truth unless said."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.ica import ica
from unweave.dictionaries.baselines.kmeans import kmeans
from unweave.dictionaries.baselines.nmf import nmf
from unweave.dictionaries.baselines.pca import pca
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.code import Coder
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.batches import ArraySource
from unweave.training.dead import DeadLatents
from unweave.training.penalties.l0 import L0
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.worlds.world import Directions, Turning, World

STEPS, BATCH, FEW_ROWS, NMF_ROWS = 600, 256, 16_384, 2048


def trained(
    x: Tensor,
    latents: int,
    k: float,
    seed: int,
    *,
    activation: Callable[[int], Any],
    rate: float,
    form: Any = None,
    weight: float = 1.0,
    nested: bool = False,
) -> Dictionary:
    nesting = tuple(sorted({max(1, latents // n) for n in (8, 4, 2, 1)})) if nested else ()
    spec = autoencoder(
        "world",
        x.shape[1],
        latents,
        activation(round(k)),
        **({"nesting": nesting} if nested else {}),
    )
    penalties = () if form is None else (Penalty(form=form, weight=weight, target_l0=k),)
    dead = DeadLatents() if form is None else DeadLatents(auxk=None)
    settings = TraineeSettings(penalties=penalties, lr=rate, dead=dead)
    dictionary = Dictionary(spec)
    trainee = Trainee({"d": dictionary}, settings, steps=STEPS, batch=BATCH, seed=2000 + seed)
    source = ArraySource({"world": x}, batch=BATCH, steps=STEPS, seed=4000 + seed)
    train([trainee], source, settings=TrainSettings(log_every=STEPS))
    return dictionary.eval()


JUMP = JumpReLU(threshold=0.5, bandwidth=0.5)
TRAINED: dict[str, Callable[..., Coder]] = {
    "topk": partial(trained, activation=lambda k: TopK(k=k), rate=0.01),
    "batchtopk": partial(trained, activation=lambda k: BatchTopK(k=k), rate=0.01),
    "relu + L1": partial(trained, activation=lambda k: ReLU(), rate=0.03, form=L1(), weight=2.0),
    "jumprelu + L0": partial(trained, activation=lambda k: JUMP, rate=0.01, form=L0()),
    "matryoshka": partial(trained, activation=lambda k: BatchTopK(k=k), rate=0.01, nested=True),
}


def _at_most(k: float, x: Tensor) -> int:
    return min(round(k), x.shape[1])


def _rank(x: Tensor) -> int:
    """Directions in which the vectors vary; ICA cannot whiten others."""
    size = torch.linalg.svdvals(x[:FEW_ROWS] - x[:FEW_ROWS].mean(0))
    return int((size > 1e-4 * size[0]).sum())


CLASSICAL: dict[str, Callable[[Tensor, int, float, int], Coder]] = {
    "PCA": lambda x, n, k, seed: pca(x, k=_at_most(k, x)),
    "ICA": lambda x, n, k, seed: ica(x[:FEW_ROWS], _rank(x), k=_at_most(k, x), seed=seed),
    "NMF": lambda x, n, k, seed: nmf(x[:NMF_ROWS], n, k=round(k), seed=seed, steps=20),
    "k-means": lambda x, n, k, seed: kmeans(x[:FEW_ROWS], min(n, len(x)), seed=seed),
    "random": lambda x, n, k, seed: random_directions(x, n, k=round(k), seed=seed),
}
CEILING = "the truth + OMP"
KINDS = (*TRAINED, *CLASSICAL, CEILING)


def turning(world: World) -> bool:
    return isinstance(world.truth, Turning)


def spokes(planes: Tensor, n: int = 8) -> Tensor:
    """Evenly spaced directions in every plane."""
    angle = 2 * math.pi * torch.arange(n) / n
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return torch.einsum("nt,ptd->pnd", circle, planes).flatten(0, 1)


def build(kind: str, world: World, latents: int, seed: int) -> Coder | None:
    """None where there is no such dictionary in a world."""
    if kind == CEILING:
        omp = partial(orthogonal_matching_pursuit, k=round(world.k))
        if isinstance(world.truth, Directions):
            return FixedDictionary(world.truth.directions, omp)
        return FixedDictionary(spokes(world.truth.planes), omp) if turning(world) else None
    return (TRAINED | CLASSICAL)[kind](world.train, latents, world.k, seed)
