"""Every world by its name, ready for any dictionary.

```python
world = load_world("planted, families", seed=0)
report = measure_world(kmeans(world.train, 2 * world.features, seed=1), world)
report.numbers["recovery"]["mmcs"], report.chance["recovery"]["mmcs"], report.refused
```

The seed decides the world and the network trained in it; vectors to learn from and vectors to be
judged on come from two other seeds.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.validate.truth.fourier import embedding_spectrum, table_planes
from unweave.validate.worlds.compressed import (
    CompressedSettings,
    compressed_inputs,
    train_compressed,
)
from unweave.validate.worlds.features import DATA, PlantedSettings, planted_world, seeded
from unweave.validate.worlds.hmm import HiddenMarkov, HiddenRows, mess3, nested_hmm, sparse_hmm
from unweave.validate.worlds.hmm_network import LearnerSettings, stream, train_hmm_subject
from unweave.validate.worlds.modular import (
    ModularNetwork,
    ModularSettings,
    all_pairs,
    exact_modular,
    train_modular,
)
from unweave.validate.worlds.tms import TMSSettings, sparse_features, train_tms
from unweave.validate.worlds.world import Directions, Hidden, Turning, World

ROWS, HELD_OUT = 65_536, 8192
"""Vectors to learn from and to be judged on, where there is no end of them."""
LEARNT, JUDGED = 1_000_000_001, 1_000_000_002
"""Data seeds, added to the world's; far above those that networks are trained with."""
PLAIN = PlantedSettings(d=64, n_features=128, mean_active=4, noise_share=0.02)
PLANTED: dict[str, dict[str, object]] = {
    "independent": {},
    "pairs": {"group_size": 2, "correlation": 0.8},
    "families": {"n_parents": 16, "children": 2},
    "zipf": {"firing": "zipf", "zipf_exponent": 0.7},
    "noise": {"noise_share": 0.2, "noise": "anisotropic"},
}
TOGETHER = ("pairs", "families")
"""Planted worlds in which presence of one feature says something of another's."""
TMS_SIZES = {"5-2": (5, 2), "40-10": (40, 10), "100-20": (100, 20)}
LANGUAGES: dict[str, Callable[[], HiddenMarkov]] = {
    "mess3": mess3,
    "sparse": sparse_hmm,
    "nested": nested_hmm,
}
EXACT_FREQUENCIES = (3, 11, 20)
"""Of the hand-set network, for p = 59."""
REPRESENTED = 0.5
"""A feature whose column is shorter than this share of the longest is not in the model at all."""


def load_world(name: str, *, seed: int) -> World:
    """One world; those with a network in them take seconds to a minute to train it.

    Raises:
        UserError: there is none of that name.
    """
    if name not in WORLDS:
        raise UserError(f"There is no world {name!r}; there are: {', '.join(WORLDS)}")
    return WORLDS[name](seed)


def _planted(name: str, seed: int) -> World:
    settings = PLAIN.model_copy(update=PLANTED[name])
    world = planted_world(settings, seed=seed)
    x, code = world.draw(HELD_OUT, seed=JUDGED + seed)
    return World(
        f"planted, {name}",
        world.draw(ROWS, seed=LEARNT + seed)[0],
        x,
        Directions(world.directions, code, world.parents, independent=name not in TOGETHER),
        settings.n_features,
        settings.mean_active,
    )


def _tms(size: str, seed: int) -> World:
    features, hidden = TMS_SIZES[size]
    settings = TMSSettings(features=features, hidden=hidden, steps=5000)
    model = train_tms(settings, seed=seed)
    W = model.down.weight.T
    length = W.norm(dim=1)
    kept = length > REPRESENTED * length.max()
    train, held_out = (
        sparse_features(rows, features, settings.probability, generator=seeded(DATA, by + seed))
        for rows, by in ((ROWS, LEARNT), (HELD_OUT, JUDGED))
    )
    # Rows in which nothing is present say nothing.
    train, held_out = (x[(x > 0).any(1)] for x in (train, held_out))
    code = SparseCode.from_dense(held_out[:, kept] * length[kept])
    truth = Directions(F.normalize(W[kept], dim=1), code, independent=True)
    return World(f"tms, {size}", train @ W, held_out @ W, truth, int(kept.sum()), code.l0())


def _compressed(seed: int) -> World:
    """Neurons of a residual MLP; a feature is what one input alone, of either sign, does to them.

    Rows with several inputs are not the sums of their features, as neurons are not linear: the
    truth is exact where one input is present and an approximation elsewhere.
    """
    settings = CompressedSettings(width=200, steps=1000, batch=1024)
    model = train_compressed(settings, seed=seed)
    reads = model.W_E @ model.layers[0].get_parameter("mlp_in.weight").T
    alone = torch.relu(torch.cat([reads, -reads]))
    length = alone.norm(dim=1)
    drawn = [
        compressed_inputs(settings, 2 * rows, generator=seeded(DATA, by + seed))
        for rows, by in ((ROWS, LEARNT), (HELD_OUT, JUDGED))
    ]
    train, held_out = (x[(x != 0).any(1)] for x in drawn)
    code = SparseCode.from_dense(torch.cat([held_out.relu(), (-held_out).relu()], 1) * length)
    truth = Directions(alone / length[:, None], code, independent=True)
    features = 2 * settings.features
    x, y = (torch.relu(rows @ reads) for rows in (train, held_out))
    return World("compressed", x, y, truth, features, code.l0())


def _language(name: str, seed: int) -> World:
    process, settings = LANGUAGES[name](), LearnerSettings()
    subject = train_hmm_subject(process, settings, seed=seed)
    site = f"blocks.{settings.layers - 1}.resid_post"
    drawn = [
        process.draw(rows // settings.positions, settings.positions, seed=by + seed)
        for rows, by in ((ROWS, LEARNT), (HELD_OUT, JUDGED))
    ]
    train, held_out = (torch.cat([stream(subject, r, site) for r in _parts(d)]) for d in drawn)
    states, tokens = (t[:, 1:].flatten() for t in (drawn[1].states, drawn[1].tokens))
    truth = Hidden(states, drawn[1].beliefs[:, 1:].flatten(0, 1), tokens)
    # The stream holds tokens and predictions besides: width and L0 are a choice here.
    return World(f"language, {name}", train, held_out, truth, 4 * process.n_states, 3.0)


def _parts(rows: HiddenRows, size: int = 512) -> list[HiddenRows]:
    cut = [t.split(size) for t in rows]
    return [HiddenRows(*parts) for parts in zip(*cut, strict=True)]


def _modular(name: str, seed: int) -> World:
    """What the neurons read, for all pairs: a circle for every frequency of a, and one of b."""
    settings = ModularSettings()
    if name == "hand-set":
        model = exact_modular(settings.p, EXACT_FREQUENCIES)
    else:
        model = train_modular(settings, seed=seed)
    keys = embedding_spectrum(model).key
    a, b = model.tables()
    planes = torch.cat([table_planes(table, keys) for table in (a, b)])
    train, held_out = _two_halves(model, seed)
    # Four spokes span a plane with strengths that are never negative; one of them is near any row.
    return World(
        f"modular, {name}", train, held_out, Turning(planes), 4 * len(planes), 1.0 * len(planes)
    )


def _two_halves(model: ModularNetwork, seed: int) -> tuple[Tensor, Tensor]:
    pairs = all_pairs(model.p)
    a, b = model.tables()
    z = a[pairs[:, 0]] + b[pairs[:, 1]]
    order = torch.randperm(len(z), generator=seeded(DATA, JUDGED + seed))
    return z[order[: len(z) // 2]], z[order[len(z) // 2 :]]


WORLDS: dict[str, Callable[[int], World]] = {
    **{f"planted, {name}": partial(_planted, name) for name in PLANTED},
    **{f"tms, {size}": partial(_tms, size) for size in TMS_SIZES},
    "compressed": _compressed,
    **{f"language, {name}": partial(_language, name) for name in LANGUAGES},
    "modular, hand-set": partial(_modular, "hand-set"),
    "modular, trained": partial(_modular, "trained"),
}
"""By name; given a seed, the world."""
