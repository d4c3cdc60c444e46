"""The next window harvested beside the present one: the same bits, and nothing left over."""

import threading

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.shards import Shards, write_shards
from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.training.batches import WindowSource

SITES = ["blocks.0.mlp.in", "blocks.1.mlp.out"]
ROWS = tiny_rows(14, 16)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


def harvester(subject, workers, *, shuffled=False, **settings):
    chosen = HarvestSettings(window_tokens=64, slice_tokens=32, **settings)
    return Harvester(
        subject, ROWS, SITES, workers=workers, seed=3, settings=chosen, shuffled=shuffled
    )


def batches(subject, threads, **settings):
    with Workers(threads) as crew:
        h = harvester(subject, crew, shuffled=True, **settings)
        source = WindowSource(h, batch=20, epochs=2)
        found = []
        for step in range(source.steps):
            found.append({s: rows.clone() for s, rows in source.at(step).vectors.items()})
        return found, h


def test_batches_are_the_same_bits_with_and_without_looking_ahead(subject):
    alone, _ = batches(subject, 1)
    ahead, h = batches(subject, 2)
    not_ahead, _ = batches(subject, 2, ahead=False)
    assert len(alone) == 2 * 10
    for others in (ahead, not_ahead):
        for one, other in zip(alone, others, strict=True):
            assert all(torch.equal(one[site], other[site]) for site in SITES)
    assert h._spare[SITES[0]].data_ptr() != h._shown[SITES[0]].data_ptr()


def test_a_run_that_begins_in_the_middle_sees_what_it_would_have_seen(subject):
    whole, _ = batches(subject, 2)
    with Workers(2) as crew:
        source = WindowSource(harvester(subject, crew, shuffled=True), batch=20, epochs=2)
        source.at(0)
        for step in (7, 8, 15):  # from one window into another that was not foreseen
            found = source.at(step).vectors
            assert all(torch.equal(found[site], whole[step][site]) for site in SITES)


def test_shuffled_vectors_lie_in_the_order_in_which_the_others_are_visited(subject):
    with Workers(1) as crew:
        plain, laid = harvester(subject, crew), harvester(subject, crew, shuffled=True)
        for index in (0, 3):
            a, b = plain.window(index), laid.window(index)
            assert torch.equal(b.order, torch.arange(len(b.order)))
            assert b.shuffled
            assert not a.shuffled
            for site in SITES:
                assert torch.equal(a.vectors[site][a.order], b.vectors[site])
                assert not torch.equal(a.vectors[site], b.vectors[site])


def test_the_window_in_use_is_left_alone_until_the_next_is_asked_for(subject):
    with Workers(2) as crew:
        h = harvester(subject, crew)
        now = h.window(0)
        before = {site: rows.clone() for site, rows in now.vectors.items()}
        h.foresee(1)
        for future in h._coming.slices:
            future.result(10)
        assert all(torch.equal(now.vectors[site], before[site]) for site in SITES)
        after = h.window(1)
        assert not torch.equal(after.vectors[SITES[0]][:60], before[SITES[0]])


def test_a_window_that_is_held_is_not_computed_again(subject):
    passes = []
    hook = subject.model.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    try:
        with Workers(1) as crew:
            h = harvester(subject, crew)
            h.window(1)
            once = len(passes)
            h.window(1)
            assert len(passes) == once > 0
            h.window(0)
            assert len(passes) == 2 * once
    finally:
        hook.remove()


def test_what_was_foreseen_and_not_asked_for_is_dropped(subject):
    with Workers(2) as crew:
        h, plain = harvester(subject, crew), harvester(subject, crew)
        h.window(0)
        h.foresee(2)
        foreseen = h._coming.slices
        found = h.window(1).vectors
        assert all(future.done() for future in foreseen)
        want = plain.window(1).vectors
        assert all(torch.equal(found[site], want[site]) for site in SITES)


def test_an_error_in_the_background_is_raised_where_the_window_is_asked_for(subject):
    with Workers(2) as crew:
        broken = Harvester(
            subject, ROWS, ["blocks.9.mlp.in"], workers=crew, seed=0,
            settings=HarvestSettings(window_tokens=64),
        )  # fmt: skip
        broken.foresee(0)
        with pytest.raises(Exception, match=r"blocks\.9"):
            broken.window(0)


def test_one_worker_looks_not_ahead(subject):
    with Workers(1) as crew:
        h = harvester(subject, crew)
        h.foresee(0)
        assert h._coming is None


def test_training_and_harvest_run_at_the_same_time(subject):
    """With two workers and one trainee the second worker harvests while the first one steps."""
    seen = threading.Event()
    with Workers(2) as crew:
        h = harvester(subject, crew)
        h.window(0)

        def step(_):
            h.foresee(1)
            h._coming.slices[0].add_done_callback(lambda _: seen.set())
            return seen.wait(10)

        assert list(crew.map(step, [0])) == [True]


def test_shards_written_while_the_next_is_computed_hold_the_same(subject, tmp_path):
    with Workers(2) as crew:
        kept = Shards(write_shards(harvester(subject, crew), tmp_path))
    with Workers(1) as crew:
        h = harvester(subject, crew)
        for index in range(h.windows):
            want, found = h.window(index), kept.window(index)
            assert all(torch.equal(found.vectors[site], want.vectors[site]) for site in SITES)


def test_batches_of_one_window_can_be_had_together_and_no_others(subject):
    with Workers(1) as crew:
        source = WindowSource(harvester(subject, crew, shuffled=True), batch=20, epochs=2)
        found = []
        for step in range(source.steps):
            source.at(step)
            found.append(source.together(step))
        assert found == 2 * [3, 2, 1, 3, 2, 1, 3, 2, 1, 1]
        drawn = WindowSource(harvester(subject, crew), batch=20)
        drawn.at(0)
        assert drawn.together(0) == 1  # each would be a copy


def test_one_window_gone_through_again_and_again_is_one_block_a_time(subject):
    with Workers(1) as crew:
        one = Harvester(subject, ROWS[:4], SITES, workers=crew, seed=0, shuffled=True)
        source = WindowSource(one, batch=20, epochs=3)
        source.at(0)
        assert [source.together(step) for step in range(9)] == 3 * [3, 2, 1]
