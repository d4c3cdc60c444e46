"""Two networks on the same text: the same row is the same token in both."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.paired import PairedHarvester, paired_site
from unweave.activations.shards import Shards, write_shards
from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.errors import UserError
from unweave.training.batches import WindowSource

SITES = ["blocks.0.resid_post", "blocks.1.mlp.out"]
ROWS = tiny_rows(10, 16)
SETTINGS = HarvestSettings(window_tokens=64, slice_tokens=32)


@pytest.fixture(scope="module")
def workers():
    with Workers(1) as one:
        yield one


@pytest.fixture(scope="module")
def subjects():
    return {"base": tiny_llama(seed=0), "chat": tiny_llama(seed=1)}


def test_both_see_the_same_tokens_in_the_same_order(subjects, workers):
    both = PairedHarvester(subjects, ROWS, SITES, workers=workers, seed=3, settings=SETTINGS)
    assert both.windows == 3
    for index in range(3):
        window = both.window(index)
        for name, subject in subjects.items():
            alone = Harvester(subject, ROWS, SITES, workers=workers, seed=3, settings=SETTINGS)
            want = alone.window(index)
            assert torch.equal(window.order, want.order)
            assert both.vectors_in(index) == len(want.order)
            for site in SITES:
                assert torch.equal(window.vectors[paired_site(name, site)], want.vectors[site])
        first, second = (window.vectors[f"{name}:{SITES[0]}"] for name in subjects)
        assert not torch.allclose(first, second)


def test_batches_are_drawn_from_pairs(subjects, workers):
    both = PairedHarvester(
        {"a": subjects["base"], "b": subjects["base"]},
        ROWS, SITES, workers=workers, seed=3, settings=SETTINGS,
    )  # fmt: skip
    vectors = WindowSource(both, batch=20).at(3).vectors
    assert set(vectors) == {f"{name}:{site}" for name in "ab" for site in SITES}
    for site in SITES:
        assert torch.equal(vectors[f"a:{site}"], vectors[f"b:{site}"])


def test_names_that_would_not_tell_subjects_apart_are_refused(subjects, workers):
    for bad in ({}, {"a:b": subjects["base"]}, {"": subjects["base"]}):
        with pytest.raises(UserError, match="without a colon"):
            PairedHarvester(bad, ROWS, SITES, workers=workers, seed=3)


def test_pairs_are_written_to_shards_and_read_again(subjects, workers, tmp_path):
    both = PairedHarvester(subjects, ROWS, SITES, workers=workers, seed=3, settings=SETTINGS)
    shards = Shards(write_shards(both, tmp_path / "shards"))
    assert shards.windows == both.windows
    for index in range(both.windows):
        window, read = both.window(index), shards.window(index)
        assert shards.vectors_in(index) == both.vectors_in(index)
        assert torch.equal(window.order, read.order)
        assert window.vectors.keys() == read.vectors.keys()
        assert all(torch.equal(rows, read.vectors[s]) for s, rows in window.vectors.items())
