"""Prompts of unequal length: filled up on the right, run together as they run alone."""

import torch
from tiny_subject import START, tiny_llama, tiny_rows

from unweave.subject import load_subject
from unweave.subject.prompts import by_length, padded, prompt_rows


def test_rows_are_filled_up_on_the_right():
    group = padded([[1, 5, 6], [1, 7]])
    assert group.tokens.tolist() == [[1, 5, 6], [1, 7, 0]]
    assert group.last.tolist() == [2, 1]


def test_what_is_filled_in_changes_nothing():
    subject = tiny_llama()
    rows = [row[: 4 + 3 * at].tolist() for at, row in enumerate(tiny_rows(4))]
    group = padded(rows)
    together = subject.run(group.tokens).logits[torch.arange(4), group.last]
    alone = [subject.run(torch.tensor([row])).logits[0, -1] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone))


def test_every_row_is_in_one_group_with_others_of_its_length():
    rows = [[1] * (1 + at % 3) for at in range(7)]
    groups = list(by_length(rows, 3))
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert groups[0].tolist() == [0, 3, 6]
    assert list(by_length([], 3)) == []


def test_prompts_begin_with_the_start_token():
    wren = load_subject("wren")
    (row,) = prompt_rows(wren, ["Once"])
    assert row == [wren.start_token, *wren.tokenizer.encode("Once")]
    assert tiny_llama().start_token == START
