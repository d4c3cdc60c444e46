"""Rows of unequal length: run with others of like length, equal to what each gives alone."""

import pytest
import torch
from tiny_subject import FAMILIES, family_subject, tiny_llama, tiny_rows

from unweave.activations.lengths import buckets, cut_windows, padded
from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers

SITES = ["blocks.0.attn.q", "blocks.1.mlp.mid", "blocks.1.mlp.out"]
LENGTHS = (5, 30, 2, 17, 16, 30, 9, 40, 3, 1, 22)


def documents(lengths=LENGTHS):
    return [tiny_rows(1, max(n, 2), seed=n)[0, :n] for n in lengths]


def harvested(subject, rows, sites=SITES, *, slice_tokens, window=10_000, shuffled=False):
    settings = HarvestSettings(window_tokens=window, slice_tokens=slice_tokens)
    with Workers(1) as crew:
        h = Harvester(
            subject, rows, sites, workers=crew, seed=1, settings=settings, shuffled=shuffled
        )
        found = []
        for index in range(h.windows):
            window_ = h.window(index)
            assert h.vectors_in(index) == len(window_.order)
            found.append({site: rows.clone() for site, rows in window_.vectors.items()})
        return found


def alone(subject, row, site):
    return subject.run(row[None], capture=[site]).sites[site][0, 1:].flatten(1)


@pytest.mark.parametrize("slice_tokens", [1, 64, 200])
def test_bucketed_vectors_are_those_of_each_row_alone(slice_tokens):
    subject, rows = tiny_llama(), documents()
    (found,) = harvested(subject, rows, slice_tokens=slice_tokens)
    for site in SITES:
        want = torch.cat([alone(subject, row, site) for row in rows])
        assert len(want) == sum(LENGTHS) - len(LENGTHS)
        torch.testing.assert_close(found[site], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_in_any_family(family):
    subject = family_subject(family)
    rows = [torch.arange(3, 3 + n) for n in (4, 12, 7)]
    site = "blocks.1.mlp.out"
    (found,) = harvested(subject, rows, [site], slice_tokens=10_000)
    want = torch.cat([alone(subject, row, site) for row in rows])
    torch.testing.assert_close(found[site], want, rtol=1e-4, atol=1e-5)


def test_padding_on_the_left_would_have_been_seen():
    """The control: a row shifted by padding does not hold the vectors of the row alone."""
    subject, row = tiny_llama(), tiny_rows(1, 9)[0]
    shifted = torch.cat([row[-1:].expand(5), row])
    site = "blocks.1.mlp.out"
    found = subject.run(shifted[None], capture=[site]).sites[site][0, 6:].flatten(1)
    assert (found - alone(subject, row, site)).abs().max() > 1e-2


def test_windows_of_documents_hold_no_more_tokens_than_asked_and_keep_their_order():
    subject, rows = tiny_llama(), documents()
    windows = harvested(subject, rows, slice_tokens=64, window=50)
    (whole,) = harvested(subject, rows, slice_tokens=64)
    assert len(windows) == len(cut_windows(LENGTHS, 50)) > 3
    for site in SITES:
        torch.testing.assert_close(
            torch.cat([w[site] for w in windows]), whole[site], rtol=1e-4, atol=1e-5
        )


def test_shuffled_documents_are_the_same_vectors_in_another_order():
    subject, rows = tiny_llama(), documents()
    (plain,) = harvested(subject, rows, slice_tokens=64)
    (laid,) = harvested(subject, rows, slice_tokens=64, shuffled=True)
    generator = torch.Generator().manual_seed(1 << 20)
    order = torch.randperm(len(plain[SITES[0]]), generator=generator)
    assert all(torch.equal(plain[site][order], laid[site]) for site in SITES)


def test_equal_rows_stay_in_order():
    assert buckets([16] * 5, 32) == [[0, 1], [2, 3], [4]]
    assert cut_windows([16] * 5, 40) == [range(2), range(2, 4), range(4, 5)]
    assert cut_windows([], 40) == []


def test_buckets_hold_every_row_once_and_stay_within_the_tokens():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 200, (300,), generator=generator).tolist()
    groups = buckets(lengths, 512)
    assert sorted(row for group in groups for row in group) == list(range(300))
    sizes = [len(group) * max(lengths[row] for row in group) for group in groups]
    assert max(sizes) <= 512
    # In the order given as many rows would be padded to the longest of each 512 tokens.
    assert sum(sizes) < 1.1 * sum(lengths)
    assert len(lengths) * max(lengths) > 1.8 * sum(lengths)


def test_a_row_longer_than_a_slice_is_run_alone():
    assert buckets([3, 100, 4], 10) == [[1], [2, 0]]
    assert buckets([3, 100, 4], 7) == [[1], [2], [0]]


def test_padding_repeats_a_token_of_the_row():
    rows = padded([torch.tensor([1, 5]), torch.tensor([1, 7, 8, 9])])
    assert rows.tolist() == [[1, 5, 5, 5], [1, 7, 8, 9]]
