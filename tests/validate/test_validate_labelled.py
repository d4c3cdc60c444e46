"""Labelled texts: one's own tables, public files, and examples drawn from them."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from unweave.errors import UserError
from unweave.validate import hub_sets
from unweave.validate.labelled import Example, draw_classes, load_sets, split_set


def test_tables_of_every_form_are_read(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one, two",x\nthree,y\n,x\n')
    (tmp_path / "b.tsv").write_text("label\ttext\tcue\nx\tone\tm\ny\ttwo\tf\n" * 5)
    (tmp_path / "c").mkdir()
    for side in ("train", "test"):
        rows = [{"text": f"{side} {i}", "label": i % 2} for i in range(4)]
        (tmp_path / "c" / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "notes.txt").write_text("text and label")
    a, b, c = load_sets(tmp_path)
    assert {e.text for e in (*a.train, *a.test)} == {"one, two", "three"}
    assert b.crossed
    assert not a.crossed
    assert len(b.test) == 2
    assert c.train[1] == Example("train 1", "1")
    assert c.labels == ["0", "1"]
    assert len({one.sha256 for one in (a, b, c)}) == 3
    assert load_sets(tmp_path / "c") == [c]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\nonly text\n", "no text or no label"),
        ("a.jsonl", '{"text": "x", "label": 1}\nnot json\n', "cannot be read"),
        ("a.jsonl", '["text", "label"]\n', "not an object"),
        ("a.csv", "sentence,mark\nx,1\n", "no labelled texts"),
    ],
)
def test_a_bad_table_is_told_in_a_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        load_sets(tmp_path)


def test_no_folder_is_told():
    with pytest.raises(UserError, match="no folder"):
        load_sets(Path("nowhere"))


def test_classes_are_drawn_evenly_and_balanced_by_the_cue():
    counts = {("x", "m"): 9, ("x", "f"): 30, ("y", "m"): 20, ("y", "f"): 20}
    examples = [
        Example(f"{label}{cue}{i}", label, cue)
        for (label, cue), count in counts.items()
        for i in range(count)
    ]
    drawn = draw_classes(examples, ["x", "y"], 40, seed=0)
    assert {name: len(texts) for name, texts in drawn.items()} == {"x": 18, "y": 18}
    assert Counter(text[1] for text in drawn["x"]) == {"m": 9, "f": 9}
    assert draw_classes(examples, ["x", "y"], 40, seed=0) == drawn
    assert draw_classes(examples, ["x", "y"], 40, seed=1) != drawn
    assert len(draw_classes(examples, ["y"], 10, seed=0)["y"]) == 10
    examples += [Example(f"z{i}", "z", "m") for i in range(7)]
    assert len(draw_classes(examples, ["x", "z"], 40, seed=0)["x"]) == 7


def test_a_split_keeps_every_text_once():
    made = split_set("s", [Example(str(i), "x") for i in range(50)], 0)
    assert len(made.test) == 10
    assert {e.text for e in (*made.train, *made.test)} == {str(i) for i in range(50)}
    assert [int(e.text) for e in made.train] == sorted(int(e.text) for e in made.train)


def test_public_files_are_known_by_their_names(shared_data):
    found = {one.name: one for one in load_sets(shared_data)}
    assert len(found["ag_news"].labels) == 4
    assert len(found["sst2"].train) == 6920
    assert set(found["subjectivity"].labels) == {"objective", "subjective"}
    assert len(found["movie_reviews"].train) + len(found["movie_reviews"].test) == 2000
    assert found["cities"].train[0].label in ("true", "false")
    assert [name for name, one in found.items() if one.crossed] == ["reviews"]
    assert {(e.label, e.cue) for e in found["reviews"].test} == {
        (label, cue) for label in ("positive", "negative") for cue in ("sentence", "review")
    }


class Hub:
    """Stands for the package of data sets."""

    def load_dataset(self, name: str, *more: str, split: str, **options: object) -> list[dict]:
        body = "x" * 600
        return {
            "LabHC/bias_in_bios": [{"hard_text": "She teaches.", "profession": 21, "gender": 1}],
            "canrager/amazon_reviews_mcauley_1and5": [
                {"text": "Good", "category": 24, "rating": 5}
            ],
            "fancyzhx/ag_news": [{"text": "News", "label": 2}],
            "Helsinki-NLP/europarl": [{"translation": dict.fromkeys(hub_sets.LANGUAGES, "Sir,")}],
            "parquet": [{"code": body, "path": "a/b.py"}, {"code": body, "path": "a/b.rs"}],
        }[name]


def test_the_hub_is_asked_for_the_published_columns(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", Hub())
    assert hub_sets.bios().train == (Example("She teaches.", "professor", "female"),)
    assert hub_sets.amazon().test == (Example("Good", "Books", "5.0"),)
    assert hub_sets.amazon_sentiment().test == (Example("Good", "5.0"),)
    assert hub_sets.ag_news().train == (Example("News", "2"),)
    assert {e.label for e in hub_sets.europarl().train} <= set(hub_sets.LANGUAGES)
    code = hub_sets.github_code()
    assert [(len(e.text), e.label) for e in code.train] == [(600 - hub_sets.LICENCE, "Python")]


def test_without_the_package_or_the_hub_one_is_told_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="--data"):
        hub_sets.ag_news()


def test_the_published_classes_and_pairs_exist():
    for one in hub_sets.PROBING:
        assert len(one.classes) in (0, 5)
    for one in hub_sets.CROSSED:
        assert len(one.pairs) == 4
    assert hub_sets.PROBING[0].classes[3] == "dentist"
