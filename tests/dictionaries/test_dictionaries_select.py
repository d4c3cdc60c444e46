"""Choosing latents against a full sort."""

import pytest
import torch

from unweave.dictionaries.kernels.select import (
    TILE_ROWS,
    above,
    largest,
    largest_in_rows,
    largest_of_batch,
    largest_places,
)


def scores(rows: int, latents: int, *, seed: int = 0, ties: bool = False) -> torch.Tensor:
    drawn = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    return (2 * drawn).round() / 2 if ties else drawn


def same(tile: torch.Tensor) -> torch.Tensor:
    return tile


def mask_of(selection, rows: int) -> torch.Tensor:
    support = selection.support
    mask = torch.zeros(rows, support.n_latents, dtype=torch.long)
    mask.index_put_((support.row, support.latent), torch.ones_like(support.latent), accumulate=True)
    assert mask.max() <= 1, "an entry was chosen twice"
    return mask.bool()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rows", [1, TILE_ROWS, 2 * TILE_ROWS + 3])
def test_the_largest_of_each_row_are_those_of_a_sort(rows, signed, ties):
    x = scores(rows, 40, ties=ties)
    found = largest(same, x, 40, 6, signed=signed)
    size = x.abs() if signed else x
    chosen = size[mask_of(found, rows)].view(rows, 6).sort(dim=1, descending=True).values
    assert torch.equal(chosen, size.sort(dim=1, descending=True).values[:, :6])
    assert torch.equal(found.score, x[found.support.row, found.support.latent])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("rows", "latents", "k"),
    [(1, 3, 2), (2, 5, 5), (3, 2, 1), (16, 64, 4), (TILE_ROWS + 9, 200, 3), (700, 512, 1)],
)
def test_the_largest_of_a_batch_are_those_of_a_sort(rows, latents, k, ties):
    x = scores(rows, latents, seed=rows, ties=ties)
    found = largest_of_batch(same, x, latents, k)
    wanted = x.flatten().sort(descending=True).values[: rows * k]
    wanted = wanted[wanted > 0]
    assert torch.equal(found.score.sort(descending=True).values, wanted)
    assert torch.equal(x[mask_of(found, rows)], found.score), "rows and latents must ascend"
    assert found.support.rows == rows


def test_fewer_positives_than_wanted_are_all_taken():
    x = -scores(50, 300).abs()
    x[3, 7], x[40, 299] = 0.5, 1e-6
    found = largest_of_batch(same, x, 300, 8)
    assert sorted(found.score.tolist()) == pytest.approx([1e-6, 0.5])
    assert len(largest_of_batch(same, -x.abs(), 300, 8).score) == 0


def test_zeros_and_minus_infinity_are_never_chosen_of_a_batch():
    x = torch.full((4, 6), -torch.inf)
    x[0], x[1, 2] = 0.0, 3.0
    assert largest_of_batch(same, x, 6, 6).score.tolist() == [3.0]


@pytest.mark.parametrize("where", ["first", "last", "every_other_latent"])
def test_a_sample_that_misleads_costs_time_and_not_exactness(where):
    """All that is large stands where a strided sample looks, or where it never does."""
    rows, latents, k = 512, 1024, 8
    x = scores(rows, latents).abs() * 1e-3
    hot = {"first": slice(0, 4), "last": slice(-5, None), "every_other_latent": slice(0, None, 8)}
    x[:, hot[where]] += 1 + scores(rows, latents)[:, hot[where]].abs()
    found = largest_of_batch(same, x, latents, k)
    wanted = x.flatten().sort(descending=True).values[: rows * k]
    assert torch.equal(found.score.sort(descending=True).values, wanted)


def test_the_largest_places_are_exact_for_any_count():
    x = scores(1, 300_000)[0]
    order = x.sort(descending=True).values
    for count in (0, 1, 1000, 120_000, 149_000, 300_000):
        found = x[largest_places(x, count)].sort(descending=True).values
        wanted = order[:count]
        assert torch.equal(found, wanted[wanted > 0]), count


@pytest.mark.parametrize("rows", [0, 1, TILE_ROWS, TILE_ROWS + 1])
def test_above_finds_what_exceeds_its_own_threshold(rows):
    x = scores(rows, 20)
    threshold = torch.linspace(-1, 2, 20)
    x[:1, 4] = threshold[4]  # equal is not above
    found = above(same, x, threshold)
    assert found.support.rows == rows
    assert torch.equal(mask_of(found, rows), x > threshold) if rows else len(found.score) == 0
    assert torch.equal(found.score, x[x > threshold])


@pytest.mark.parametrize(("n", "k"), [(4608, 32), (96, 3), (97, 3), (64, 60), (1024, 1)])
def test_ranking_groups_first_finds_the_k_largest(n, k):
    scores = torch.randn(37, n, generator=torch.Generator().manual_seed(4))
    places = largest_in_rows(scores, k)
    assert torch.equal(scores.gather(1, places).sort(1).values, scores.topk(k, 1).values.flip(1))
