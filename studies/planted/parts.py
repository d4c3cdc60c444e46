"""Every part that is held to the planted worlds: trained, classical, and the controls."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.baselines.ica import ica
from unweave.dictionaries.baselines.kmeans import kmeans
from unweave.dictionaries.baselines.nmf import nmf
from unweave.dictionaries.baselines.pca import pca
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.code import Coder
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.itda import ITDASettings, itda
from unweave.dictionaries.coders.ksvd import AlternatingSettings, ksvd, mod
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.dictionaries.encoder.switch import Switch
from unweave.training.penalties.hoyer import Hoyer
from unweave.training.penalties.l0 import L0, PreActivation
from unweave.training.penalties.pointwise import L1, Log, Lp, Sqrt, Tanh
from unweave.training.penalties.weighted import Penalty

LATENTS = 256


@dataclass(frozen=True)
class Trained:
    """A dictionary that the trainer trains; `k` is how many latents it may use per vector."""

    activation: Callable[[int], Any]
    form: Any = None
    """The penalty that is steered until L0 is k; None where latents are chosen."""
    weight: float = 1.0
    """Where its steering begins."""
    beside: tuple[Penalty, ...] = ()
    """Penalties of fixed weight."""
    spec: dict[str, Any] = field(default_factory=dict)

    def penalties(self, k: float) -> tuple[Penalty, ...]:
        if self.form is None:
            return self.beside
        return (Penalty(form=self.form, weight=self.weight, target_l0=k), *self.beside)


def always(activation: Any) -> Callable[[int], Any]:
    return lambda k: activation


JUMP = JumpReLU(threshold=0.5, bandwidth=0.5)
JUMP_ALL = JumpReLU(threshold=0.1, bandwidth=2.0, gradient_to="all")
PRE = Penalty(form=PreActivation(), weight=3e-6)
PENALISED = {
    "relu + L1": Trained(always(ReLU()), L1(), 2.0),
    "relu + Lp 0.6": Trained(always(ReLU()), Lp(p=0.6), 1.5),
    "relu + L1 to Lp 0.2": Trained(always(ReLU()), Lp(p=0.2, anneal_from=0.2), 2.0),
    "relu + sqrt": Trained(always(ReLU()), Sqrt(), 1.5),
    "relu + log": Trained(always(ReLU()), Log(eps=0.3), 1.0),
    "relu + tanh": Trained(always(ReLU()), Tanh(c=1.0), 2.0),
    "relu + Hoyer": Trained(always(ReLU()), Hoyer(), 100.0),
}
TRAINED = PENALISED | {
    "jumprelu + L0": Trained(always(JUMP), L0(), 1.0),
    "jumprelu + tanh (2025)": Trained(always(JUMP_ALL), Tanh(c=1.0), 2.0, (PRE,)),
    "gated + L1": Trained(always(Gated()), L1(), 2.0),
    "prolu + L1": Trained(always(ProLU()), L1(), 2.0),
    "topk": Trained(lambda k: TopK(k=k)),
    "batchtopk": Trained(lambda k: BatchTopK(k=k)),
    "abstopk": Trained(lambda k: AbsTopK(k=k)),
    "matryoshka batchtopk": Trained(
        lambda k: BatchTopK(k=k), spec={"nesting": (32, 64, 128, LATENTS)}
    ),
    "glu + topk": Trained(lambda k: TopK(k=k), spec={"encoder": GLU()}),
    "switch + topk": Trained(lambda k: TopK(k=k), spec={"encoder": Switch(experts=4)}),
    "kronecker + topk": Trained(lambda k: TopK(k=k), spec={"encoder": Kronecker(left=4, right=4)}),
    "pursuit": Trained(lambda k: TopK(k=k), spec={"encoder": Pursuit(), "pre_bias": True}),
}

Classical = Callable[[Tensor, int, int], Coder]
"""Training vectors, k and seed to a coder."""


def _alternated(kind: Any, x: Tensor, k: int, seed: int) -> Coder:
    return kind(x, AlternatingSettings(n_latents=LATENTS, k=k, sweeps=15, seed=seed))


def _itda(x: Tensor, k: int, seed: int) -> Coder:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return itda(x[order], ITDASettings(k=k, tau=0.3, n_latents=LATENTS))


CLASSICAL: dict[str, Classical] = {
    "K-SVD": partial(_alternated, ksvd),
    "MOD": partial(_alternated, mod),
    "ITDA": _itda,
    "PCA": lambda x, k, seed: pca(x, k=k),
    "ICA": lambda x, k, seed: ica(x, k=k, seed=seed),
    "NMF": lambda x, k, seed: nmf(x[:4096], LATENTS, k=k, seed=seed, steps=30),
    "k-means": lambda x, k, seed: kmeans(x, LATENTS, seed=seed),
    "control: random directions": lambda x, k, seed: random_directions(x, LATENTS, k=k, seed=seed),
}


def told(directions: Tensor, x: Tensor, k: int) -> Coder:
    """The ceiling: the planted directions themselves, coded by a pursuit."""
    omp = partial(orthogonal_matching_pursuit, k=k)
    return FixedDictionary(directions, omp)
