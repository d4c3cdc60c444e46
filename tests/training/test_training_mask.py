"""A mask keeps the pairs of features that make the pattern, and lets go of those that do not."""

import pytest
import torch

from unweave.dictionaries.attention.feature_basis import (
    QKBasis,
    QKCodes,
    importance,
    scores_in_features,
    whole_scores,
)
from unweave.subject.scores import Scoring, pattern
from unweave.training.attention.mask import MaskSettings, MaskText, learn_masks, mask_kl
from unweave.training.checkpoint import Checkpoints

A, B, HEADS, N = 8, 6, 2, 8
PLANTED = ((0, 0, 0), (1, 2, 0), (3, 4, 1), (5, 5, 1))
SETTINGS = MaskSettings(penalties=(1e-3, 4e-3), steps=40, rows=16, lr=0.05)


def world(seed=0):
    """Features whose pairs all contribute, of which four make the pattern that is to be had.

    The others add what is the same for every key, so they matter to scores, not to patterns.
    """
    generator = torch.Generator().manual_seed(seed)
    # Coordinates: one for each key feature, and one that all keys share.
    keys = torch.zeros(B, HEADS, B + 1)
    keys[torch.arange(B), :, torch.arange(B)] = 1
    keys[:, :, B] = 1
    queries = torch.zeros(A, HEADS, B + 1)
    queries[:, :, B] = 3.0
    for a, b, h in PLANTED:
        queries[a, h, B] = 0.0
        queries[a, h, b] = 2.5
    ids = torch.arange(A), torch.arange(B)
    basis = QKBasis(queries, keys, *ids, Scoring(1.0, None, None, None))
    # Exactly one key feature is active at each place, so the shared coordinate says nothing.
    which = torch.randint(B, (24, N), generator=generator)
    on = (torch.rand(24, N, A, generator=generator) < 0.3).float()
    codes = QKCodes(on, torch.nn.functional.one_hot(which, B).float())
    return MaskText(codes, pattern(whole_scores(codes, basis))), basis


def truth():
    mask = torch.zeros(A, B, HEADS)
    mask[tuple(torch.tensor(PLANTED).T)] = 1
    return mask


def test_the_pairs_that_make_the_pattern_are_kept_and_no_others():
    text, basis = world()
    learned = learn_masks(text, basis, seed=0, settings=SETTINGS)[-1]
    kept = {tuple(place) for place in (learned.mask > 0).nonzero().tolist()}
    assert kept == set(PLANTED)
    other, _ = world(seed=1)
    assert float(mask_kl(other, basis, learned.mask).mean()) < 0.02
    # What is largest is not what is needed: the same number by size alone.
    size = importance(text.codes, basis)
    largest = size >= size.flatten().sort(descending=True).values[len(PLANTED) - 1]
    assert float(mask_kl(other, basis, largest.float()).mean()) > 0.1


def test_no_penalty_lets_everything_through_and_a_huge_one_nothing():
    text, basis = world()
    settings = SETTINGS.model_copy(update={"penalties": (0.0,), "steps": 5})
    (learned,) = learn_masks(text, basis, seed=0, settings=settings)
    assert float(mask_kl(text, basis, learned.mask).mean()) < 1e-2
    settings = SETTINGS.model_copy(update={"penalties": (1.0,), "steps": 30})
    (learned,) = learn_masks(text, basis, seed=0, settings=settings)
    assert learned.size == 0


def test_the_divergence_is_that_of_the_patterns():
    text, basis = world()
    assert float(mask_kl(text, basis, torch.ones(basis.shape)).abs().max()) < 1e-5
    found = mask_kl(text, basis, truth() * 0, rows=7)
    even = pattern(torch.zeros(24, HEADS, N, N))
    apart = text.true * (text.true.log() - even.log())
    want = apart[..., 1:, :].nansum(-1).mean((1, 2))
    assert torch.allclose(found, want, atol=1e-5)
    assert torch.isfinite(scores_in_features(text.codes, basis, truth())).all()


def test_a_cut_run_ends_in_the_same_bits(tmp_path):
    text, basis = world()
    settings = SETTINGS.model_copy(update={"steps": 6})
    whole = learn_masks(text, basis, seed=3, settings=settings)

    class Cut(Checkpoints):
        def offer(self, done, metrics, state):
            super().offer(done, metrics, state)
            if done == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_masks(text, basis, seed=3, settings=settings, checkpoints=Cut(tmp_path, seconds=0.0))
    resumed = learn_masks(
        text, basis, seed=3, settings=settings, checkpoints=Checkpoints(tmp_path, seconds=0.0)
    )
    for one, same in zip(whole, resumed, strict=True):
        assert one.penalty == same.penalty
        assert torch.equal(one.mask, same.mask)
