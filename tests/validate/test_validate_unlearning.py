"""Unlearning: a network that knows two subjects, and dictionaries that can and cannot tell them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.subject import load_subject, wrap_module
from unweave.validate.placed import Placed
from unweave.validate.protocols.protocol import Bench, Refused
from unweave.validate.protocols.unlearning import UnlearningSettings, unlearning, unlearning_on
from unweave.validate.protocols.unlearning_clamp import (
    Activity,
    activity,
    clamped,
    forgettable,
    matched,
)
from unweave.validate.protocols.unlearning_questions import (
    Asked,
    AskingSettings,
    Question,
    answered,
    asked_of,
    chance_of,
    fetch_questions,
    known_questions,
    questions_of_pairs,
    read_questions,
    right_answers,
    write_questions,
)

ANSWERS = 4
HALF = 20
"""Entities of each subject; the first half is to be forgotten."""
QUERY, START = 2 * HALF, 2 * HALF + 1
SETTINGS = UnlearningSettings(thresholds=(0.01,), latents=(4, 8), multipliers=(1.0, 20.0))


class Facts(nn.Module):
    """Entity e has the answer e % 4, written along that coordinate; a query reads all up to it."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(2 * HALF + 2, ANSWERS + 3)
        for entity in range(2 * HALF):
            table[entity, entity % ANSWERS] = 1.0
            table[entity, ANSWERS + (entity >= HALF)] = 0.1
        self.embed = nn.Embedding.from_pretrained(table)
        self.mid = nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mid(self.embed(tokens)).cumsum(1)[..., :ANSWERS]


SUBJECT = wrap_module(Facts(), name="facts")
ASKED = [
    Asked([START, entity, QUERY], [[a] for a in range(ANSWERS)], entity % ANSWERS)
    for entity in range(2 * HALF)
]


class Facts4:
    """A latent for each answer of each subject, or of both; others fire as often but do nothing."""

    def __init__(self, *, apart: bool) -> None:
        d = ANSWERS + 3
        decoys = torch.zeros(ANSWERS, d)
        decoys[:, -1] = 1.0
        self.apart = apart
        self.W_dec = torch.cat([torch.eye(d)[:ANSWERS]] * 2 + [decoys])
        self.n_latents = len(self.W_dec)

    def encode(self, x: Tensor) -> SparseCode:
        acts = x[:, :ANSWERS]
        late = (x[:, ANSWERS + 1] > 0)[:, None] & torch.tensor(self.apart)
        both = torch.cat([acts * ~late, acts * late], 1)
        return SparseCode.from_dense(torch.cat([both, acts], 1))

    def decode(self, code: SparseCode) -> Tensor:
        return code.dense() @ self.W_dec

    def directions(self) -> Tensor:
        return self.W_dec


def _rows(low: int, high: int) -> Tensor:
    rows = torch.randint(low, high, (8, 12), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = START
    return rows


def _outcome(coder, tmp_path, settings=SETTINGS):
    bench = Bench(SUBJECT, Placed("d", coder, ("mid",), ("mid",)), tmp_path)
    rows = _rows(0, HALF), _rows(HALF, 2 * HALF)
    return unlearning_on(bench, settings, ASKED[:HALF], ASKED[HALF:], *rows)


def test_latents_of_the_subject_alone_unlearn_it_whole(tmp_path):
    found = _outcome(Facts4(apart=True), tmp_path)
    assert found.numbers["unlearning_score"].value == 1.0
    assert found.controls["unlearning_score_random_latents"].value == 0.0
    assert found.controls["unlearning_score_random"].value < 0.8
    assert {t["latents"] for t in found.details["trials"]["random_latents"]} == {ANSWERS}
    trials = found.details["trials"]["dictionary"]
    assert {t["retain"] for t in trials} == {1.0}


def test_latents_of_both_subjects_unlearn_nothing(tmp_path):
    found = _outcome(Facts4(apart=False), tmp_path)
    assert found.numbers["unlearning_score"].value == 0.0
    assert {t["latents"] for t in found.details["trials"]["dictionary"]} == {0}


def test_forgetting_everything_counts_for_nothing(tmp_path):
    settings = SETTINGS.model_copy(update={"thresholds": (1.1,)})
    found = _outcome(Facts4(apart=False), tmp_path, settings)
    assert found.numbers["unlearning_score"].value == 0.0
    assert min(t["forget"] for t in found.details["trials"]["dictionary"]) == 0.0


def test_multipliers_may_be_of_a_latents_own_strength(tmp_path):
    coder = Facts4(apart=True)
    weak = Coefficients(lambda x: coder.encode(x).dense() / 100, coder.W_dec * 100)
    settings = SETTINGS.model_copy(update={"unit": "mean firing", "multipliers": (2.0,)})
    for one in (coder, weak):
        assert _outcome(one, tmp_path, settings).numbers["unlearning_score"].value == 1.0


def test_firings_are_counted_without_position_zero():
    coder = Facts4(apart=True)
    found = activity(SUBJECT, Placed("d", coder, ("mid",), ("mid",)), _rows(0, HALF))
    tokens = _rows(0, HALF)[:, 1:]
    share = [(tokens % ANSWERS == a).float().mean() for a in range(ANSWERS)]
    torch.testing.assert_close(found.frequency[:ANSWERS], torch.stack(share))
    assert float(found.frequency[ANSWERS : 2 * ANSWERS].sum()) == 0.0
    torch.testing.assert_close(found.strength[:ANSWERS], torch.ones(ANSWERS))


def test_the_frequent_ones_are_chosen_among_the_rare_ones_and_matched_by_frequency():
    forget = Activity(torch.tensor([0.3, 0.5, 0.2, 0.0, 0.29, 0.01]), torch.ones(6))
    retain = Activity(torch.tensor([0.0, 0.2, 0.001, 0.0, 0.5, 0.5]), torch.ones(6))
    chosen = forgettable(forget, retain, 0.01, 5)
    assert chosen.tolist() == [0, 2]
    others = matched(chosen, forget, seed=0)
    assert set(others.tolist()) <= {1, 4, 5}
    assert len(set(others.tolist())) == 2


def test_only_firing_latents_are_clamped():
    code = SparseCode.from_dense(torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]]))
    edit = clamped([0, 2], torch.tensor([5.0, 6.0, 7.0]))
    assert edit(code, (1, 2)).dense().tolist() == [[-5.0, 2.0, 0.0], [0.0, 3.0, -7.0]]


def test_guessing_has_its_probability():
    assert chance_of(0, 10, 0.25) == pytest.approx(1.0)
    assert chance_of(10, 10, 0.5) == pytest.approx(0.5**10)
    assert chance_of(8, 10, 0.5) == pytest.approx(56 / 1024)


def _questions(count: int) -> list[Question]:
    pairs = [(f"Place {i}", ("north", "south", "east", "west")[i % 4]) for i in range(count)]
    return questions_of_pairs(pairs, "The way to %s is")


def test_a_subject_that_guesses_is_refused_with_the_count(tmp_path):
    for name in ("forget", "retain"):
        write_questions(tmp_path / "unlearning" / f"{name}.jsonl", _questions(24))
    wren, site = load_subject("wren"), "blocks.2.resid_post"
    coder = Coefficients(lambda x: x, torch.eye(wren.d_model))
    bench = Bench(
        wren, Placed("id", coder, (site,), (site,)), tmp_path, data=tmp_path, text="heldout"
    )
    with pytest.raises(Refused, match=r"answers \d+ of 24 questions to forget, no better than"):
        unlearning(bench)


def test_a_folder_without_questions_is_refused(tmp_path):
    wren, site = load_subject("wren"), "blocks.2.resid_post"
    one = Placed("id", Coefficients(lambda x: x, torch.eye(wren.d_model)), (site,), (site,))
    with pytest.raises(Refused, match=r"needs unlearning/forget\.jsonl"):
        unlearning(Bench(wren, one, tmp_path, data=tmp_path, text="heldout"))


def test_pairs_become_questions_with_their_answer_among_the_choices():
    questions = _questions(12)
    for at, question in enumerate(questions):
        assert question.question == f"The way to Place {at} is"
        assert question.choices[question.answer] == ("north", "south", "east", "west")[at % 4]
        assert sorted(question.choices) == ["east", "north", "south", "west"]
    assert len({q.answer for q in questions}) > 1


def test_a_question_put_in_other_orders_keeps_its_answer():
    question = Question(question="?", choices=("a", "b", "c"), answer=1)
    turned = question.ordered((2, 1, 0))
    assert turned.choices[turned.answer] == "b"
    with pytest.raises(ValueError, match="counted from 0"):
        Question(question="?", choices=("a", "b"), answer=2)


def test_what_a_subject_says_is_what_is_scored():
    wren = load_subject("wren")
    settings = AskingSettings(form="cloze")
    stem = "Once upon a"
    questions = [
        Question(question=stem, choices=("time", "dog", "the"), answer=0),
        Question(question=stem, choices=("dog", "time", "the"), answer=0),
        Question(question=stem, choices=("time", "time"), answer=0),
    ]
    asked = asked_of(wren, questions, settings)
    assert list(asked) == [0, 1]  # the third one's choices cannot be told apart
    assert right_answers(wren, list(asked.values()), settings).tolist() == [True, False]
    first = answered(wren, questions, settings)
    assert first.right.tolist() == [True, False]
    assert known_questions(wren, questions, first, settings) == [asked[0]]


def test_letters_are_asked_in_every_order():
    wren = load_subject("wren")
    questions = [Question(question="What?", choices=("x", "y"), answer=i % 2) for i in range(6)]
    first = answered(wren, questions, AskingSettings())
    assert int(first.right.sum()) == 3  # it says the same letter whatever the question
    assert known_questions(wren, questions, first, AskingSettings()) == []


def test_files_of_questions_are_read_and_what_is_wrong_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    write_questions(path, _questions(5))
    assert read_questions(path) == _questions(5)
    path.write_text(json.dumps({"question": "?", "choices": ["a"], "answer": 0}) + "\n")
    with pytest.raises(UserError, match="line 1 is no question"):
        read_questions(path)
    with pytest.raises(UserError, match="No file"):
        read_questions(tmp_path / "absent.jsonl")


def test_without_the_package_or_the_hub_one_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install"):
        fetch_questions("wmdp-bio")

    def gone(*names: str, split: str) -> None:
        raise ConnectionError("no such host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=gone))
    with pytest.raises(UserError, match=r"did not give the questions wmdp-bio: no such host"):
        fetch_questions("wmdp-bio")


def test_published_questions_are_asked_for_where_they_are(monkeypatch):
    asked = []

    def load(*names: str, split: str) -> list[dict]:
        asked.append((*names, split))
        return [{"question": "?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "s"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    (bio,), (history,) = fetch_questions("wmdp-bio"), fetch_questions("high_school_us_history")
    assert asked == [
        ("cais/wmdp", "wmdp-bio", "test"), ("cais/mmlu", "high_school_us_history", "test"),
    ]  # fmt: skip
    assert (bio.topic, history.topic) == ("biology", "high school us history")
    assert bio.choices[bio.answer] == "c"


def test_unlearned_questions_are_resampled_for_the_interval(tmp_path):
    found = _outcome(Facts4(apart=True), tmp_path).numbers["unlearning_score"]
    assert (found.low, found.high) == (1.0, 1.0)
    assert np.isfinite(found.value)
