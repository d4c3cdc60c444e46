"""The classical coders and baselines are held to the same battery as what is trained."""

import pytest
import torch

from unweave.dictionaries.baselines.kmeans import kmeans
from unweave.dictionaries.baselines.pca import pca
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.coders.fista import fista
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.itda import ITDASettings, itda
from unweave.dictionaries.coders.ksvd import AlternatingSettings, ksvd, mod
from unweave.dictionaries.coders.pursuit import gradient_pursuit, matching_pursuit
from unweave.validate.check_dictionary import check_dictionary

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) + 0.5
ATOMS = torch.nn.functional.normalize(
    torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), dim=1
)
ALTERNATING = AlternatingSettings(n_latents=16, k=2, sweeps=2)
# FISTA stops for all rows of a tile together, so rows are independent only up to its tolerance.
CODERS = {
    "pca": lambda: pca(X, k=3),
    "k-means": lambda: kmeans(X, 16, seed=0),
    "random": lambda: random_directions(X, 16, k=2, seed=0),
    "itda": lambda: itda(X, ITDASettings(k=2, tau=0.3, n_latents=16)),
    "k-svd": lambda: ksvd(X, ALTERNATING),
    "mod": lambda: mod(X, ALTERNATING),
    "matching pursuit": lambda: FixedDictionary(ATOMS, lambda x, W: matching_pursuit(x, W, 3)),
    "gradient pursuit": lambda: FixedDictionary(ATOMS, lambda x, W: gradient_pursuit(x, W, 3)),
    "fista": lambda: FixedDictionary(ATOMS, lambda x, W: fista(x, W, 0.3, tolerance=1e-7)),
}


@pytest.mark.parametrize("name", CODERS)
def test_every_coder_keeps_the_promises_of_a_dictionary(name: str) -> None:
    found = check_dictionary(CODERS[name], X[:24])
    assert not [one for one in found if one.verdict == "failed"]
