"""Whose a latent is: crosscoders built by hand around a planted pair, and two trained ones."""

import pytest
import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.crosscoder import (
    beside,
    classes,
    crosscoder,
    length_difference,
    relative_lengths,
)
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.initial import Start
from unweave.errors import UserError
from unweave.training.batches import ArraySource
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train
from unweave.validate.diffing import diff_sites, latent_scaling
from unweave.validate.worlds.pairs import KINDS, PairedWorld, PairSettings

EASY = PairSettings(
    d=48, shared=12, faint=4, loose=0, only_a=4, only_b=4, mean_active=3, noise=0.0, turn=0.2
)
WORLD = PairedWorld(EASY, seed=0)
ROWS = WORLD.draw(3000, seed=1)
N = len(WORLD.kind)
MAX_NU_ERR, MAX_NU_REC = 0.2, 0.5


def exact(extra: int = 0) -> Dictionary:
    """The planted features themselves: each latent reads its strength off and writes it back."""
    dictionary = Dictionary(crosscoder({"a": EASY.d, "b": EASY.d}, N + extra, ReLU()))
    W_dec = torch.cat(
        [WORLD.gain[:, i : i + 1] * WORLD.directions[name] for i, name in enumerate("ab")], dim=1
    )
    with torch.no_grad():
        dictionary.W_dec[:N] = W_dec * WORLD.scale
        dictionary.W_enc[:N] = torch.linalg.pinv(W_dec * WORLD.scale).T
    return dictionary


def of_kind(name):
    return (WORLD.kind == KINDS.index(name)).nonzero()[:, 0]


def test_the_features_themselves_reconstruct_and_are_classed_as_planted():
    dictionary = exact()
    x = beside(dictionary, ROWS.vectors)
    torch.testing.assert_close(dictionary(x), x, rtol=1e-3, atol=1e-3)
    found = classes(length_difference(dictionary))
    assert torch.equal(found.only_first.nonzero()[:, 0], of_kind("only_a"))
    assert torch.equal(found.only_second.nonzero()[:, 0], of_kind("only_b"))
    assert torch.equal(found.shared.nonzero()[:, 0], of_kind("shared"))
    assert torch.equal(found.between.nonzero()[:, 0], of_kind("faint"))
    relative = relative_lengths(dictionary)[of_kind("faint")]
    torch.testing.assert_close(relative.amin(1), torch.full((4,), EASY.faintness))


def test_what_is_truly_exclusive_is_borne_out():
    diff = diff_sites(exact(), ROWS.vectors)
    assert diff.counts == {"only_first": 4, "only_second": 4, "shared": 12, "between": 4}
    assert diff.genuine == {"only_first": 4, "only_second": 4}
    own = torch.cat([of_kind("only_a"), of_kind("only_b")])
    assert diff.scaling.nu_err[own].abs().max() < 0.01
    assert diff.scaling.nu_rec[own].abs().max() < 0.3
    shared = diff.scaling.nu_rec[of_kind("shared")]
    torch.testing.assert_close(shared, torch.ones_like(shared), rtol=0.25, atol=0.0)


def test_complete_shrinkage_shows_in_the_error():
    """The weaker decoder of a faint feature is set to zero, as L1 does."""
    dictionary = exact()
    faint = of_kind("faint")
    with torch.no_grad():
        weak_b = WORLD.gain[faint, 1] < 1
        dictionary.W_dec[faint[weak_b], EASY.d :] = 0.0
        dictionary.W_dec[faint[~weak_b], : EASY.d] = 0.0
    diff = diff_sites(dictionary, ROWS.vectors)
    assert diff.counts["only_first"] == diff.counts["only_second"] == 6
    assert diff.genuine == {"only_first": 4, "only_second": 4}
    nu = diff.scaling.nu_err[faint]
    torch.testing.assert_close(nu, torch.full_like(nu, EASY.faintness), rtol=0.15, atol=0.0)
    assert diff.scaling.nu_rec[faint].abs().max() < MAX_NU_REC, "only the error gives it away"


def test_decoupling_shows_in_the_reconstruction():
    """A shared feature is held by two latents, one for each network."""
    dictionary, split = exact(extra=1), of_kind("shared")[0]
    with torch.no_grad():
        dictionary.W_dec[N, EASY.d :] = dictionary.W_dec[split, EASY.d :]
        dictionary.W_dec[split, EASY.d :] = 0.0
        dictionary.W_enc[N] = dictionary.W_enc[split]
    diff = diff_sites(dictionary, ROWS.vectors)
    assert diff.counts["only_first"] == diff.counts["only_second"] == 5
    assert diff.genuine == {"only_first": 4, "only_second": 4}
    assert diff.scaling.nu_rec[[int(split), N]].min() > 0.8
    assert diff.scaling.nu_err[[int(split), N]].abs().max() < MAX_NU_ERR, "the error is silent"


def test_beta_by_hand():
    dictionary = exact()
    with torch.no_grad():
        dictionary.W_dec[3, EASY.d :] *= 0.5
    got = latent_scaling(dictionary, ROWS.vectors, batch=700)
    x = beside(dictionary, ROWS.vectors)
    f = dictionary.encode(x).dense()[:, 3].double()
    y_hat = dictionary(x).detach().double()
    d = dictionary.W_dec[3, : EASY.d].detach().double()
    errors = (x.double() - y_hat).split(EASY.d, dim=1)
    targets = (errors[0] + f[:, None] * d, errors[1], *y_hat.split(EASY.d, dim=1))
    for place, target in enumerate(targets):
        beta = (f @ (target @ d)) / (d.square().sum() * f.square().sum())
        assert got.beta[3, place].item() == pytest.approx(beta.item(), rel=1e-3, abs=1e-3)


def trained(kind, world, *, steps=500):
    activation = ReLU() if kind == "l1" else BatchTopK(k=3)
    d = world.settings.d
    dictionary = Dictionary(crosscoder({"a": d, "b": d}, 64, activation))
    penalties = (Penalty(form=L1(), weight=1.0, target_l0=3.0),) if kind == "l1" else ()
    settings = TraineeSettings(lr=6e-3, penalties=penalties, start=Start(decoder_norm=0.5))
    source = ArraySource(world.draw(12_000, seed=3).vectors, batch=128, steps=steps, seed=4)
    train([Trainee({"x": dictionary}, settings, steps=steps, batch=128, seed=6)], source)
    return dictionary


def test_l1_calls_shared_features_exclusive_where_batchtopk_does_not():
    world = PairedWorld(
        PairSettings(d=24, shared=20, faint=8, loose=8, only_a=5, only_b=5, mean_active=3), seed=0
    )
    rows = world.draw(4000, seed=9)
    false = {}
    for kind in ("l1", "batchtopk"):
        dictionary = trained(kind, world)
        diff = diff_sites(dictionary, rows.vectors)
        code = dictionary.encode(beside(dictionary, rows.vectors))
        assert code.l0() == pytest.approx(3, rel=0.15)
        parts = dictionary.decoder().detach().split(24, dim=1)
        false[kind] = kept = 0
        for part, network, mask in zip(parts, "ab", diff.classes[:2], strict=True):
            feature, cosine = world.nearest(part, network)
            wrong = world.truly_shared(feature, network, code, rows) > 0.2
            wrong &= mask & (diff.scaling.fired > 0) & (cosine > 0.7)
            false[kind] += int(wrong.sum())
            kept += int((wrong & diff.scaling.genuine).sum())
        assert kept <= 1, "latent scaling unmasks them"
    assert false["l1"] >= 4
    assert false["batchtopk"] <= false["l1"] // 2


def test_identical_networks_have_nothing_of_their_own():
    alike = PairSettings(
        d=24, shared=40, faint=0, loose=0, only_a=0, only_b=0, mean_active=3, turn=0.0, noise=0.0
    )
    world = PairedWorld(alike, seed=0)
    dictionary = trained("batchtopk", world, steps=300)
    diff = diff_sites(dictionary, world.draw(4000, seed=9).vectors)
    assert diff.counts["only_first"] == diff.counts["only_second"] == 0
    assert diff.counts["shared"] > 30


def test_sites_that_cannot_be_compared_are_refused():
    three = Dictionary(crosscoder({"a": 4, "b": 4, "c": 5}, 8, ReLU()))
    with pytest.raises(UserError, match="name two of them"):
        length_difference(three)
    with pytest.raises(UserError, match="not d"):
        length_difference(three, "a", "d")
    vectors = {name: torch.randn(5, width) for name, width in (("a", 4), ("b", 4), ("c", 5))}
    with pytest.raises(UserError, match="of one cannot be looked for"):
        latent_scaling(three, vectors, first="a", second="c")
    with pytest.raises(UserError, match="no vectors of it"):
        latent_scaling(three, {"a": vectors["a"]}, first="a", second="b")
    assert relative_lengths(three).shape == (8, 3)
