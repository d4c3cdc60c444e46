"""Families of rivals, each at several sparsities: `pca-k4`, `pca-k16`, `clusters-n64` ...

    neurons     coordinates of the site, or a block's own neurons; the k that write most
    pca         principal coordinates, the k largest in each row
    svd         singular directions of the next MLP's reading matrix, or of the block's own writing
    ica, nmf    independent components, non-negative parts of both halves; k of them
    clusters    k-means: one of n centres
    polytopes   which neurons of the next MLP are on: clusters of patterns (n), and factors (k)
    random      directions from the sphere, eight to a dimension, coded by pursuit: a control

The next MLP is read through its norm, as if the attention before it wrote nothing.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.artifact.measurements import Kind
from unweave.dictionaries.baselines.ica import ica
from unweave.dictionaries.baselines.kmeans import kmeans
from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.baselines.neurons import coordinates, neurons
from unweave.dictionaries.baselines.nmf import Parts, nmf
from unweave.dictionaries.baselines.pca import pca, weight_svd
from unweave.dictionaries.baselines.polytopes import (
    Pattern,
    activation_pattern,
    polytope_clusters,
    polytope_factors,
)
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.code import Coder
from unweave.errors import UserError
from unweave.validate.rivals.spot import Behind, Spot


class RivalSettings(BaseModel):
    """How large rivals are and how sparse."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    k: tuple[PositiveInt, ...] = (4, 16, 64)
    """Latents per token, for those that choose."""
    clusters: tuple[PositiveInt, ...] = (64, 512)
    """Numbers of clusters."""
    independent: PositiveInt = 128
    """Components of ICA, at most: of more dimensions those with the most variance are taken."""
    components: PositiveInt = 64
    """Parts of NMF and factors of polytopes, at most."""
    random_per_dimension: PositiveInt = 8
    """Random directions for each dimension."""
    seed: int = Field(default=1, ge=0)
    """Seed of clusters, components and random directions."""


Sized = Iterator[tuple[str, Coder]]
"""Coders with what their names end in."""
Family = Callable[[Spot, RivalSettings], Sized]


def _neurons(at: Spot, settings: RivalSettings) -> Sized:
    width = at.y.shape[1] if at.block is None else len(at.block.W_out)
    for k in _up_to(settings.k, width):
        if at.block is None:
            yield f"k{k}", coordinates(width, k=k, b_dec=at.y.mean(0))
        else:
            yield f"k{k}", neurons(at.block, k=k)


def _pca(at: Spot, settings: RivalSettings) -> Sized:
    whole = pca(at.y)
    return ((f"k{k}", _fewer(whole, k)) for k in _up_to(settings.k, whole.n_latents))


def _svd(at: Spot, settings: RivalSettings) -> Sized:
    whole = weight_svd(_weights(at), b_dec=at.y.mean(0))
    return ((f"k{k}", _fewer(whole, k)) for k in _up_to(settings.k, whole.n_latents))


def _ica(at: Spot, settings: RivalSettings) -> Sized:
    n = min(settings.independent, at.y.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rival that has not settled is measured as it is
        whole = ica(at.y, n, seed=settings.seed, steps=200)
    return ((f"k{k}", _fewer(whole, k)) for k in _up_to(settings.k, n))


def _nmf(at: Spot, settings: RivalSettings) -> Sized:
    n = min(settings.components, at.y.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nmf(at.y, n, seed=settings.seed, steps=100)
    return ((f"k{k}", Parts(whole.halves, whole.mean, k=k)) for k in _up_to(settings.k, n))


def _clusters(at: Spot, settings: RivalSettings) -> Sized:
    for n in _up_to(settings.clusters, len(at.y)):
        yield f"n{n}", kmeans(at.y, n, seed=settings.seed)


def _polytopes(at: Spot, settings: RivalSettings) -> Sized:
    pattern = next_pattern(at)
    for n in _up_to(settings.clusters, len(at.y)):
        yield f"n{n}", polytope_clusters(at.y, pattern, n, seed=settings.seed)
    n = settings.components
    for k in _up_to(settings.k, n):
        yield f"k{k}", polytope_factors(at.y, pattern, n, k=k, by="pca", seed=settings.seed)


def _random(at: Spot, settings: RivalSettings) -> Sized:
    n = settings.random_per_dimension * at.y.shape[1]
    for k in _up_to(settings.k, n):
        yield f"k{k}", random_directions(at.y, n, k=k, seed=settings.seed, signed=True)


FAMILIES: dict[str, Family] = {
    "neurons": _neurons, "pca": _pca, "svd": _svd, "ica": _ica, "nmf": _nmf,
    "clusters": _clusters, "polytopes": _polytopes, "random": _random,
}  # fmt: skip
"""By name."""
CONTROLS = ("random",)
"""Families that must come out bad."""


def kind_of(family: str) -> Kind:
    """What a family's members are in a table."""
    return "control" if family in CONTROLS else "baseline"


def members(family: str, at: Spot, settings: RivalSettings) -> Iterator[tuple[str, Coder]]:
    """A family's coders at one place, one after the other, with what their names end in.

    Raises:
        UserError: a family that cannot stand there, or a library that is not installed.
    """
    own = family == "neurons"
    for size, coder in FAMILIES[family](at, settings):
        yield size, coder if own or at.block is None else Behind(coder, at.block)


def fits(family: str, at: Spot) -> bool:
    """Whether a family can stand at a place: polytopes need the vectors that the next MLP reads."""
    return family != "polytopes" or (at.block is None and at.layer is not None)


def next_pattern(at: Spot) -> Pattern:
    """Which neurons of the next MLP are on, for vectors of the stream at its place.

    Raises:
        UserError: no MLP comes next.
    """
    if not fits("polytopes", at):
        raise UserError("Polytopes are those of the next MLP: they need a site of the stream")
    layer, subject = _next_layer(at), at.subject
    gain, centred = subject.norm_gain(layer, "mlp").float(), subject.norms_centre
    plain = activation_pattern(subject.mlp_weights(layer))

    def pattern(x: Tensor) -> Tensor:
        rows = x - x.mean(1, keepdim=True) if centred else x
        size = rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        return plain(rows / size * gain)

    return pattern


def _next_layer(at: Spot) -> int:
    layer = at.layer or 0
    after = layer + at.writes[-1].endswith("resid_post")
    return min(after, at.subject.n_layers - 1)


def _weights(at: Spot) -> Tensor:
    """A matrix whose rows lie in the space of what is written."""
    if at.block is not None:
        return at.block.W_out
    weights = at.subject.mlp_weights(_next_layer(at))
    read = weights.W_in if weights.W_gate is None else torch.cat([weights.W_gate, weights.W_in])
    if read.shape[1] != at.y.shape[1]:
        raise UserError(f"No weights read {', '.join(at.writes)} alone: leave svd out of baselines")
    return read.float() * at.subject.norm_gain(_next_layer(at), "mlp").float()


def _fewer(whole: Coefficients, k: int) -> Coefficients:
    return Coefficients(whole.coefficients, whole.W_dec, b_dec=whole.b_dec, k=k)


def _up_to(sizes: Sequence[int], most: int) -> list[int]:
    return [size for size in sizes if size <= most]


def checked(names: Sequence[str]) -> list[str]:
    """Names of families, each once.

    Raises:
        UserError: a name that is none.
    """
    for name in names:
        if name not in FAMILIES:
            raise UserError(f"{name} is no baseline: choose from {', '.join(FAMILIES)}")
    return list(dict.fromkeys(names))
