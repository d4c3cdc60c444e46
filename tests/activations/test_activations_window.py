"""Windows of activations: the very vectors that the subject computes, whoever computes them."""

import threading
import time

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.scale import unit_scale
from unweave.activations.shards import Shards, write_shards
from unweave.activations.window import Harvester, HarvestSettings, start_vectors
from unweave.activations.workers import Workers, twin_of
from unweave.errors import UserError

SITES = ["blocks.0.mlp.in", "blocks.1.attn.z", "blocks.1.mlp.mid", "blocks.0.attn.q"]
ROWS = tiny_rows(11, 16)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as two:
        yield two


def harvester(subject, workers, *, window=64, slice_=32, seed=3, rows=ROWS):
    settings = HarvestSettings(window_tokens=window, slice_tokens=slice_)
    return Harvester(subject, rows, SITES, workers=workers, seed=seed, settings=settings)


def test_windows_hold_what_the_subject_computes_without_position_0(subject, workers):
    h = harvester(subject, workers)
    assert h.windows == 3
    for index in range(3):
        rows = ROWS[index * 4 : (index + 1) * 4]
        run = subject.run(rows, capture=SITES)
        window = h.window(index)
        assert window.index == index
        assert set(window.vectors) == set(SITES)
        for site in SITES:
            want = run.sites[site][:, 1:].reshape(len(rows) * 15, -1)
            assert window.vectors[site].shape == want.shape
            torch.testing.assert_close(window.vectors[site], want, rtol=1e-5, atol=1e-6)


def test_position_0_alone_is_left_out(subject, workers):
    """The start token's own vector occurs nowhere, every other one does."""
    start = start_vectors(subject, ROWS, SITES)
    vectors = harvester(subject, workers, window=10_000).window(0).vectors
    for site in SITES:
        assert len(vectors[site]) == 11 * 15
        assert (vectors[site] - start[site]).norm(dim=1).min() > 0.1


def test_start_vectors_are_what_every_row_holds_at_position_0(subject):
    run = subject.run(ROWS, capture=SITES)
    for site, vector in start_vectors(subject, ROWS, SITES).items():
        everywhere = run.sites[site][:, 0].flatten(1)
        torch.testing.assert_close(vector.expand_as(everywhere), everywhere)


def test_the_order_is_a_permutation_of_its_own_for_each_window_and_seed(subject, workers):
    h, other = harvester(subject, workers), harvester(subject, workers, seed=4)
    orders = [h.window(i).order for i in range(3)]
    for order, count in zip(orders, (60, 60, 45), strict=True):
        assert torch.equal(order.sort().values, torch.arange(count))
    assert not torch.equal(orders[0], torch.arange(60))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], other.window(0).order)
    assert torch.equal(orders[1], h.window(1).order)


def test_counts_add_up_where_the_last_window_is_short(subject, workers):
    h = harvester(subject, workers)
    assert [h.vectors_in(i) for i in range(h.windows)] == [60, 60, 45]
    assert len(h.window(2).order) == 45


def test_a_window_is_never_less_than_a_row(subject, workers):
    h = harvester(subject, workers, window=5, slice_=1)
    assert h.windows == 11
    assert len(h.window(10).order) == 15


def test_workers_number_changes_no_bit(subject):
    bits = []
    for threads in (1, 2, 3):
        with Workers(threads) as crew:
            h = harvester(subject, crew)
            windows = [h.window(i).vectors for i in (2, 0)]
            bits.append([v.clone() for vectors in windows for v in vectors.values()])
    for others in bits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(bits[0], others, strict=True))


def test_a_window_does_not_depend_on_those_before_it(subject, workers):
    h = harvester(subject, workers)
    for i in range(3):
        last = {site: v.clone() for site, v in h.window(i).vectors.items()}
    alone = harvester(subject, workers).window(2).vectors
    assert all(torch.equal(last[site], alone[site]) for site in SITES)


def test_buffers_are_taken_once_and_reused(subject, workers):
    h = harvester(subject, workers)
    places = [{s: v.data_ptr() for s, v in h.window(i).vectors.items()} for i in range(3)]
    assert places[0] == places[1] == places[2]
    held = sum(v.untyped_storage().nbytes() for v in h.window(2).vectors.values())
    widths = 32 + 32 + 48 + 32
    assert held == 4 * 60 * widths  # a window's worth, whatever the length of the text


def test_no_more_is_run_than_the_deepest_site_needs(subject, workers):
    calls = []
    hook = subject.model.model.layers[1].register_forward_pre_hook(lambda *a: calls.append(1))
    try:
        early = ["blocks.0.mlp.in"]
        with Workers(1) as crew:
            Harvester(subject, ROWS, early, workers=crew, seed=0).window(0)
            assert not calls
            Harvester(subject, ROWS, SITES, workers=crew, seed=0).window(0)
            assert calls
    finally:
        hook.remove()


def test_shards_hold_the_windows(subject, workers, tmp_path):
    h = harvester(subject, workers)
    shards = Shards(write_shards(h, tmp_path / "shards"))
    assert shards.windows == 3
    for i in range(3):
        window, kept = h.window(i), shards.window(i)
        assert shards.vectors_in(i) == h.vectors_in(i) == len(kept.order)
        assert torch.equal(kept.order, window.order)
        assert all(torch.equal(kept.vectors[s], window.vectors[s]) for s in SITES)


def test_writing_shards_goes_on_where_it_was_cut_off(subject, workers, tmp_path):
    h = harvester(subject, workers)
    write_shards(h, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "window-000001.safetensors").unlink()
    untouched = (tmp_path / "window-000000.safetensors").stat().st_mtime_ns
    asked = []
    ask = h.window
    h.window = lambda i: asked.append(i) or ask(i)
    write_shards(h, tmp_path)
    assert asked == [1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (tmp_path / "window-000000.safetensors").stat().st_mtime_ns == untouched


def test_no_shards_is_told(tmp_path):
    with pytest.raises(UserError, match="No activation shards"):
        Shards(tmp_path)


def test_a_damaged_shard_is_named(subject, workers, tmp_path):
    write_shards(harvester(subject, workers), tmp_path)
    path = tmp_path / "window-000001.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="window-000001"):
        Shards(tmp_path).window(1)


def test_an_unknown_site_is_told(subject, workers):
    with pytest.raises(UserError, match=r"blocks\.7"):
        Harvester(subject, ROWS, ["blocks.7.mlp.in"], workers=workers, seed=0).window(0)


def test_unit_scale_follows_the_median_not_the_giants():
    x = torch.randn(1001, 16, generator=torch.Generator().manual_seed(0))
    scale = unit_scale(7.0 * x)
    torch.testing.assert_close((7.0 * x * scale).norm(dim=1).median(), torch.tensor(4.0))
    giants = torch.cat([7.0 * x, 1e6 * torch.ones(20, 16)])
    assert abs(unit_scale(giants) / scale - 1) < 0.05
    assert unit_scale(torch.zeros(5, 16)) == 1.0


def test_a_twin_shares_weights_and_nothing_else(subject):
    twin = twin_of(subject)
    mine, its = dict(subject.model.named_parameters()), dict(twin.model.named_parameters())
    assert all(mine[name] is its[name] for name in mine)
    assert twin.model is not subject.model
    with twin.swapped({"L0.mlp": torch.nn.Identity()}):
        assert twin.changed
        assert not subject.changed
        a = subject.run(ROWS[:2]).logits
        b = twin.run(ROWS[:2]).logits
    assert not torch.allclose(a, b)
    assert torch.equal(twin.run(ROWS[:2]).logits, a)


def test_each_worker_has_one_twin_of_its_own(subject):
    meet = threading.Barrier(2)
    with Workers(2) as crew:

        def ask(_):
            meet.wait(10)
            return threading.get_ident(), crew.twin(subject), crew.twin(subject)

        found = list(crew.map(ask, range(2)))
    assert all(first is second for _, first, second in found)
    assert found[0][0] != found[1][0]
    assert found[0][1] is not found[1][1]


def test_map_keeps_the_items_order_and_hands_errors_on():
    with Workers(3) as crew:
        assert list(crew.map(lambda i: time.sleep(0.02 * (i % 3)) or i, range(9))) == [*range(9)]
        with pytest.raises(ZeroDivisionError):
            list(crew.map(lambda i: 1 // (i - 3), range(9)))
        assert list(crew.map(str, [1])) == ["1"]


def test_workers_are_single_threaded_and_give_the_threads_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Workers(2) as crew:
            assert set(crew.map(lambda _: torch.get_num_threads(), range(4))) == {1}
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
