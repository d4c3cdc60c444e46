"""Rows that repeat a piece, and what of them can be foreseen."""

import torch

from unweave.validate.worlds.repeats import (
    RepeatSettings,
    draw_repeats,
    foreseeable,
    train_repeats_subject,
)

SETTINGS = RepeatSettings(vocab=30, positions=20, shortest=4, longest=8, width=16, heads=2)


def test_rows_repeat_a_piece_without_repeats():
    rows, lengths = draw_repeats(SETTINGS, 50, seed=0)
    assert rows.shape == (50, 20)
    assert set(lengths.tolist()) == {4, 5, 6, 7, 8}
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        assert row[0] == 0
        assert len(set(row[1 : 1 + length])) == length
        assert all(row[at] == row[at - length] for at in range(1 + length, 20))


def test_copying_what_followed_the_last_match_tells_all_that_is_foreseeable_and_no_more():
    rows, lengths = draw_repeats(SETTINGS, 50, seed=1)
    told = foreseeable(SETTINGS, lengths)
    for row, mark in zip(rows.tolist(), told.tolist(), strict=True):
        for at in range(19):
            before = [s for s in range(1, at) if row[s] == row[at]]
            guess = row[before[-1] + 1] if before else None
            assert (guess == row[at + 1]) == bool(mark[at])
    assert not told[:, -1].any()


def test_training_is_seeded_and_lowers_the_loss():
    short = SETTINGS.model_copy(update={"steps": 12, "batch": 16})
    one, same = (train_repeats_subject(short, seed=1) for _ in range(2))
    assert one.fingerprint == same.fingerprint
    rows, _ = draw_repeats(SETTINGS, 200, seed=9)
    loss = torch.nn.functional.cross_entropy(
        one.run(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    )
    start = train_repeats_subject(short.model_copy(update={"steps": 1, "lr": 1e-9}), seed=1)
    before = torch.nn.functional.cross_entropy(
        start.run(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    )
    assert loss < before
