"""Text becomes rows: the right tokens, split by document, the same every time."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_model

from unweave.errors import UserError
from unweave.progress import QUIET
from unweave.subject import load_subject, open_text, token_rows, wrap_module
from unweave.subject.own_text import OwnText, batch_rows
from unweave.subject.texts import Need, read_documents


class Letters:
    """A tokenizer of one token a character: a is 3, b is 4, and so on; newline is 2."""

    bos, eos = 1, 2

    def encode(self, text):
        return [2 if c == "\n" else 3 + (ord(c) - ord("a")) % 26 for c in text]

    def encode_many(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join("\n" if i == 2 else chr(ord("a") + i - 3) for i in ids)


class Said:
    """Progress that keeps the lines."""

    def __init__(self):
        self.lines = []

    def task(self, title, *, total, unit):
        return QUIET.task(title, total=total, unit=unit)

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def subject():
    subject = wrap_module(tiny_model("llama"), name="tiny")
    subject.tokenizer = Letters()
    return subject


@pytest.fixture
def file(tmp_path):
    """Twenty documents, each of one letter."""
    rows = [{"text": chr(ord("a") + i) * (40 + i)} for i in range(20)]
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return file


def test_rows_hold_the_documents_end_to_end(subject, file):
    rows = token_rows(subject, str(file), tokens=320, context=16, seed=3)
    assert rows.train.shape == (18, 16)
    assert rows.heldout.shape == (2, 16)
    assert rows.tokens == 320
    assert rows.train.dtype == torch.int64
    for row in torch.cat([rows.train, rows.heldout]).tolist():
        assert row[0] == 1
        assert 1 not in row[1:]
        # One letter until a document ends; then a blank line; then another letter.
        pieces = subject.tokenizer.decode(row[1:]).strip("\n").split("\n\n")
        assert all(len(set(piece)) <= 1 for piece in pieces)
        assert len(pieces) <= 2


def test_no_document_is_on_both_sides(subject, file):
    for seed in range(5):
        rows = token_rows(subject, str(file), tokens=640, context=16, seed=seed)
        assert (len(rows.train), len(rows.heldout)) == (36, 4)
        train = set(rows.train.flatten().tolist()) - {1, 2}
        heldout = set(rows.heldout.flatten().tolist()) - {1, 2}
        assert train
        assert heldout
        assert not train & heldout


def test_equal_arguments_give_equal_rows_and_others_do_not(subject, file):
    def rows(**changes):
        arguments = {"tokens": 320, "context": 16, "seed": 0} | changes
        return token_rows(subject, str(file), **arguments)

    one, same, other = rows(), rows(), rows(seed=1)
    assert torch.equal(one.train, same.train)
    assert torch.equal(one.heldout, same.heldout)
    assert one.sha256 == same.sha256
    assert len({one.sha256, other.sha256, rows(tokens=304).sha256, rows(context=8).sha256}) == 4


def test_one_document_is_cut_in_two(subject, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "abcdefghij" * 40}))
    rows = token_rows(subject, str(tmp_path / "one.jsonl"), tokens=10_000, context=17)
    assert len(rows.train) == 23
    assert len(rows.heldout) == 2


def test_less_text_than_asked_for_is_said_and_used(subject, file):
    said = Said()
    rows = token_rows(subject, str(file), tokens=100_000, context=16, progress=said)
    # 990 letters and 19 blank lines, less one partial row on each side and a blank line more.
    assert 64 <= len(rows.train) + len(rows.heldout) <= 68
    assert any("fewer than the 100,000 asked for" in line for line in said.lines)


def test_txt_files_are_cut_at_blank_lines(tmp_path):
    paragraphs = [chr(ord("a") + i) * 900 for i in range(7)]
    (tmp_path / "t.txt").write_text("\n\n\n".join(paragraphs) + "\n", "utf-8")
    documents = read_documents(tmp_path / "t.txt")
    assert [len(document) for document in documents] == [2704, 2704, 900]
    assert "\n\n".join(documents) == "\n\n".join(paragraphs)


def test_a_folder_is_all_its_files(subject, tmp_path, file):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "more.txt").write_text("z" * 300)
    (tmp_path / "ignored.csv").write_text("1,2")
    documents = open_text(str(tmp_path)).read(0)
    assert sorted(len(document) for document in documents) == [*range(40, 60), 300]


def write(text):
    return lambda file: file.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("t.txt", write(""), r"the text .*t\.txt is empty"),
        ("t.txt", write(" \n\n \n"), "is empty"),
        ("t.jsonl", write('{"text": ""}'), "is empty"),
        ("t.txt", write("abc"), "has 3 tokens: too few for one row of 15"),
        ("t.txt", write("a" * 25), "has 25 tokens: too few"),
        ("t.txt", write(b"abc\xff\xfe"), "is not UTF-8 text: byte 3"),
        ("t.jsonl", write('{"text": "a"}\n{"txt": "b"}'), "line 2 is not a JSON object"),
        ("t.jsonl", write("{"), "line 1 is not a JSON object"),
        ("t.jsonl", write('{"text": 3}'), "line 1: its text is no string"),
        ("t.csv", write("a,b"), r"is neither \.txt nor \.jsonl"),
        ("empty", lambda file: file.mkdir(), r"has no \.txt or \.jsonl file"),
        ("absent.txt", lambda file: None, "there is no text"),
    ],
)
def test_bad_texts_are_refused_in_one_sentence(subject, tmp_path, name, make, says):
    make(tmp_path / name)
    with pytest.raises(UserError, match=says) as caught:
        token_rows(subject, str(tmp_path / name), tokens=100, context=16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 20}, "fewer than two rows of 16"),
        ({"context": 65}, "rows of 65 tokens do not suit tiny: from 2 to 64"),
        ({"context": 1}, "rows of 1 tokens do not suit"),
        ({"heldout_share": 0.0}, "held-out share"),
    ],
)
def test_senseless_requests_are_refused(subject, file, changes, says):
    arguments = {"tokens": 100, "context": 16} | changes
    with pytest.raises(UserError, match=says):
        token_rows(subject, str(file), **arguments)


def test_a_tokenizer_of_another_model_is_refused(subject, tmp_path):
    class Wide(Letters):
        def encode_many(self, texts):
            return [[200] * 100 for text in texts]

    other = wrap_module(tiny_model("llama"), name="tiny")
    other.tokenizer = Wide()
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(UserError, match="token id 200, outside the vocabulary of tiny, 97"):
        token_rows(other, str(tmp_path / "t.txt"), tokens=32, context=16)


def test_a_text_needs_a_tokenizer(file):
    with pytest.raises(UserError, match="tiny has no tokenizer"):
        token_rows(wrap_module(tiny_model("llama"), name="tiny"), str(file), tokens=99, context=9)


@pytest.fixture
def small_batches(monkeypatch, tmp_path):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("unweave.subject.own_text.batch_rows", lambda subject: 8)
    return tmp_path / "cache"


def test_a_subject_writes_its_own_text_once(subject, small_batches, monkeypatch):
    first = token_rows(subject, "self", tokens=160, context=16, seed=5)
    files = sorted(small_batches.rglob("*.safetensors"))
    assert files
    assert subject.fingerprint[:32] in str(files[0])
    monkeypatch.setattr("unweave.subject.own_text.continue_rows", None)  # must not write again
    assert token_rows(subject, "self", tokens=160, context=16, seed=5).sha256 == first.sha256
    monkeypatch.undo()


def test_interrupted_writing_goes_on_to_the_same_text(subject, small_batches):
    whole = token_rows(subject, "self", tokens=320, context=16, seed=5)
    files = sorted(small_batches.rglob("*.safetensors"))
    assert len(files) > 1
    files[-1].unlink()
    again = token_rows(subject, "self", tokens=320, context=16, seed=5)
    assert again.sha256 == whole.sha256
    other = token_rows(subject, "self", tokens=320, context=16, seed=6)
    assert other.sha256 != whole.sha256


def test_own_text_is_drawn_from_the_subject(subject, monkeypatch, tmp_path):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    need = Need(tokens=2048 * 4, context=4, seed=0)
    documents = OwnText().documents(subject, need, QUIET)
    first = [int(next(documents)[0]) for _ in range(2000)]
    expected = subject.run(torch.tensor([[1]])).logits[0, -1].softmax(-1)
    expected[[1, 2]] = 0  # the subject ends before it writes: no document
    expected = (expected / expected.sum()).numpy()
    counts = np.bincount(first, minlength=97) / len(first)
    assert np.abs(counts - expected).sum() < 0.25


def test_a_changed_subject_does_not_write_its_own_text(subject, small_batches):
    swapped = subject.swapped({"L0.mlp": torch.nn.Identity()})
    with swapped, pytest.raises(UserError, match="parts swapped in is not its own"):
        token_rows(subject, "self", tokens=160, context=16)


def test_heldout_is_for_wren_only(subject):
    with pytest.raises(UserError, match="the text heldout is token ids of wren, and not for tiny"):
        token_rows(subject, "heldout", tokens=160, context=16)


def test_wren_reads_its_heldout_text():
    wren = load_subject("wren")
    rows = token_rows(wren, "heldout", tokens=8192, context=128)
    assert (len(rows.train), len(rows.heldout)) == (58, 6)
    loss = torch.nn.functional.cross_entropy(
        wren.run(rows.heldout).logits[:, :-1].flatten(0, 1), rows.heldout[:, 1:].flatten()
    )
    assert loss < 5


def test_batches_are_larger_for_small_subjects(subject):
    assert batch_rows(subject) == 256
