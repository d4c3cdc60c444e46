"""Parts of queries and keys are fitted and tuned like the others, and patterns are looked at."""

import copy
from contextlib import contextmanager

import pytest
import torch
from tiny_subject import family_subject, tiny_llama, tiny_rows

from unweave.activations.window import Harvester
from unweave.activations.workers import Workers
from unweave.dictionaries.part_names import place_of
from unweave.pipeline.fitting import part_specs
from unweave.training.checkpoint import Checkpoints
from unweave.training.fit import fit_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import random_part
from unweave.validate.splice import fidelity

ROWS = tiny_rows(40, 16, seed=2)
SETTINGS = JointSettings(tokens=6 * 64, micro_rows=2, micro_batches=2, lr=1e-2, pattern_weight=0.5)


def fitted(subject, rows, *, epochs=1, k=6, latents=2):
    specs = part_specs(
        subject, latents=latents, k_mlp=6, k_attention=6, k_query=k, k_key=k, skip=False
    )
    settings = LocalSettings(batch=200, epochs=epochs, lr=5e-3)
    with Workers(1) as workers:
        return fit_parts(subject, specs, rows, workers=workers, seed=0, settings=settings)[0]


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def started(subject):
    return fitted(subject, ROWS)


def tune(subject, started, *, threads=1, settings=SETTINGS, tokens=ROWS, **rest):
    parts = copy.deepcopy(started)
    with Workers(threads) as workers:
        metrics = tune_jointly(
            subject, parts, tokens, workers=workers, seed=3, settings=settings, **rest
        )
    return parts, metrics


@pytest.fixture(scope="module")
def whole(subject, started):
    return tune(subject, started)


def same_bits(parts, others):
    for name, part in parts.items():
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, others[name].state_dict()[key]), f"{name} {key}"


@pytest.mark.parametrize("family", ["llama-bias", "gpt-neox"])
def test_fitted_parts_give_queries_and_keys_of_text_not_seen_and_random_ones_do_not(family):
    subject = family_subject(family)
    parts = fitted(subject, tiny_rows(120, 16, vocab=97), epochs=4, latents=4)
    sites = [f"blocks.1.attn.{site}" for site in ("in", "q", "k")]
    with Workers(1) as workers:
        unseen = tiny_rows(40, 16, vocab=97, seed=9)
        vectors = Harvester(subject, unseen, sites, workers=workers, seed=0).window(0).vectors
    for kind in ("q", "k"):
        part, y = parts[f"L1.{kind}"], vectors[f"blocks.1.attn.{kind}"]
        found = fidelity(part, vectors[sites[0]], y)
        control = fidelity(random_part(part, y, seed=0), vectors[sites[0]], y)
        assert found.fvu < 0.6 < control.fvu, kind
        assert 0 < found.l0 <= 6
        first = subject.run(unseen[:1], capture=sites).sites[f"blocks.1.attn.{kind}"][0, 0]
        torch.testing.assert_close(part.start_output, first.flatten())


def test_the_number_of_workers_changes_no_bit(subject, started, whole):
    parts, metrics = tune(subject, started, threads=2)
    same_bits(parts, whole[0])
    assert metrics == whole[1]


class CutOff(Exception):
    """Stands for the plug being pulled."""


class CutAfter:
    """Progress that pulls the plug at the n-th report of work done."""

    def __init__(self, reports):
        self.left = reports

    @contextmanager
    def task(self, title, *, total, unit):
        def advance(amount):
            self.left -= 1
            if self.left < 0:
                raise CutOff

        yield advance

    def say(self, line):
        pass


def test_a_run_that_was_cut_off_ends_in_the_same_bits(subject, started, whole, tmp_path):
    with pytest.raises(CutOff):
        tune(subject, started, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(4))
    parts, metrics = tune(subject, started, checkpoints=Checkpoints(tmp_path, seconds=0))
    same_bits(parts, whole[0])
    assert metrics == whole[1]


def pattern_kl(subject, parts, rows):
    """Mean over blocks, heads and queries but the first, from its definition."""
    sites = [f"blocks.{layer}.attn.pattern" for layer in range(2)]
    with torch.no_grad():
        before = subject.run(rows, capture=sites).sites
        with subject.swapped(stand_ins(parts.values(), AtStart())):
            after = subject.run(rows, capture=sites).sites
    kl = 0.0
    for site in sites:
        for t in range(1, rows.shape[1]):
            p, q = before[site][:, :, t, : t + 1], after[site][:, :, t, : t + 1]
            kl += (p * (p / q).log()).sum(-1).mean().item() / (len(sites) * (rows.shape[1] - 1))
    return kl


def test_the_log_has_the_patterns_and_tuning_on_them_brings_them_nearer(subject, started):
    row = tiny_rows(1, 16, seed=4)
    settings = SETTINGS.model_copy(
        update={"tokens": 32 * 14, "everything_share": 1.0, "micro_batches": 1, "lr": 3e-3}
    )
    parts, metrics = tune(subject, started, settings=settings, tokens=row)
    assert metrics[0]["pattern"] == pytest.approx(pattern_kl(subject, started, row), rel=0.02)
    assert pattern_kl(subject, parts, row) < 0.7 * pattern_kl(subject, started, row)
    heavy = settings.model_copy(update={"pattern_weight": 30.0})
    nearer, _ = tune(subject, started, settings=heavy, tokens=row)
    assert pattern_kl(subject, nearer, row) < 0.8 * pattern_kl(subject, parts, row)


def test_patterns_compared_in_every_other_micro_batch_come_nearer_too(subject, started):
    row = tiny_rows(1, 16, seed=4)
    settings = SETTINGS.model_copy(
        update={"tokens": 32 * 14, "everything_share": 1.0, "micro_batches": 1, "lr": 3e-3}
    )
    blind, _ = tune(
        subject, started, settings=settings.model_copy(update={"pattern_weight": 0.0}), tokens=row
    )
    seldom = settings.model_copy(update={"pattern_every": 2, "pattern_weight": 10.0})
    parts, metrics = tune(subject, started, settings=seldom, tokens=row)
    assert ["pattern" in line for line in metrics] == [True, False] * 7
    assert pattern_kl(subject, parts, row) < 0.8 * pattern_kl(subject, blind, row)


def test_without_parts_of_queries_patterns_are_not_looked_at(subject, started):
    exact = {n: part for n, part in started.items() if place_of(n).kind not in ("q", "k")}
    parts, metrics = tune(subject, exact)
    assert "pattern" not in metrics[0]
    other = SETTINGS.model_copy(update={"pattern_weight": 0.0})
    same_bits(tune(subject, exact, settings=other)[0], parts)
    assert "pattern" not in tune(subject, started, settings=other)[1][0]


def test_queries_and_keys_may_have_a_learning_rate_of_their_own(subject):
    specs = part_specs(subject, latents=2, k_mlp=6, k_attention=6, k_query=6, k_key=6, skip=False)

    def fit(**changes):
        settings = LocalSettings(batch=200, lr=5e-3, revive_at=(), **changes)
        with Workers(1) as workers:
            return fit_parts(subject, specs, ROWS, workers=workers, seed=0, settings=settings)[0]

    usual, slow = fit(), fit(pattern_lr=1e-5)
    for name, part in usual.items():
        moved = not torch.equal(part.W_enc, slow[name].W_enc)
        assert moved == (place_of(name).kind in ("q", "k")), name
