"""The whole path on tiny random networks of other families, and what is left when it is refused."""

import random
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from pydantic import ValidationError
from tiny_subject import family_subject, tiny_llama

from unweave.activations.window import HarvestSettings
from unweave.artifact.check import check
from unweave.artifact.folder import open_artifact
from unweave.cli.app import main
from unweave.errors import UserError
from unweave.pipeline import DecompileSettings, decompile
from unweave.pipeline.job import unfinished
from unweave.pipeline.settings import EvidenceSettings, MeasureSettings
from unweave.subject import Subject, wrap_module
from unweave.subject.tokenizer import Tokenizer
from unweave.training.joint import JointSettings
from unweave.training.local import LocalSettings

WORDS = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu") for b in ("ra", "se", "ti", "vo", "zu")]
TINY = DecompileSettings(
    tokens=1600,
    context=16,
    latents=2,
    k_mlp=4,
    k_attention=4,
    k_query=3,
    k_key=3,
    threads=1,
    harvest=HarvestSettings(window_tokens=512),
    local=LocalSettings(batch=128),
    joint=JointSettings(tokens=256, micro_rows=4),
    evidence=EvidenceSettings(most_tokens=512),
    measure=MeasureSettings(tokens=128, single_tokens=128, samples=1, sample_tokens=5),
)


def reading(subject: Subject) -> Subject:
    """The same network with a tokenizer of a word a token."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{w: i + 3 for i, w in enumerate(WORDS)}}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return wrap_module(subject.model, name=subject.name, tokenizer=Tokenizer(fast))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Paragraphs in which every word has a few words that follow it."""
    draw = random.Random(0)
    after = {word: draw.sample(WORDS, 3) for word in WORDS}
    paragraphs = []
    for _ in range(40):
        words = [draw.choice(WORDS)]
        while len(words) < 60:
            words.append(draw.choice(after[words[-1]]))
        paragraphs.append(" ".join(words))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(paragraphs))
    return str(path)


@pytest.fixture(scope="module")
def llama() -> Subject:
    return reading(tiny_llama(max_position_embeddings=16))


@pytest.mark.parametrize("family", ["gemma2", "gpt-neox", "gpt2"])
def test_a_random_network_of_any_family_goes_the_whole_way(family, text, tmp_path):
    subject = reading(family_subject(family))
    out = decompile(subject, settings=TINY.model_copy(update={"text": text}), out=tmp_path / "x")
    assert check(out).violations == []
    scores = open_artifact(out).scores()
    kinds = ("q", "k", "attn", "mlp")
    assert [part.part for part in scores.parts] == [
        f"L{n}.{kind}" for n in (0, 1) for kind in kinds
    ]
    assert all(part.l0 <= 4 for part in scores.parts)
    assert scores.splice.propagated.kl.value > 0
    assert not unfinished(out).exists()


def test_a_bfloat16_network_goes_the_whole_way_too(text, tmp_path):
    """As `load_subject` makes it where the processor multiplies bfloat16."""
    subject = reading(tiny_llama())
    subject.model.to(torch.bfloat16)
    out = decompile(subject, settings=TINY.model_copy(update={"text": text}), out=tmp_path / "x")
    assert check(out).violations == []
    scores = open_artifact(out).scores()
    assert 0 < scores.splice.propagated.kl.value < scores.controls["mean_ablation"].kl.value
    assert all(0 < part.fvu < 1 for part in scores.parts)


def test_a_context_with_no_room_for_samples_is_no_obstacle(llama, text, tmp_path):
    """Rows as long as the subject's context, and more sample tokens than it has."""
    measure = TINY.measure.model_copy(update={"sample_tokens": 100})
    settings = TINY.model_copy(update={"text": text, "measure": measure})
    out = decompile(llama, settings=settings, out=tmp_path / "x")
    assert check(out).violations == []
    # Once with the likeliest tokens, once by chance.
    assert (out / "samples.json").read_text().count("prompt") == 2


def test_rows_in_which_nothing_can_be_measured_are_refused():
    with pytest.raises(ValidationError, match="context"):
        DecompileSettings(context=2)


def bad_texts(folder: Path) -> dict[str, tuple[str, str]]:
    """What is wrong, the text, and what the sentence must say."""
    files = {
        "empty": b"",
        "blank": b" \n\n\t\n",
        "short": b"bara bara",
        "binary": b"\xff\xfe\x00bara",
    }
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content)
    (folder / "weights.bin").write_bytes(b"x")
    (folder / "nothing").mkdir()
    return {
        "missing": (str(folder / "no.txt"), "no.txt"),
        "empty": (str(folder / "empty.txt"), "empty"),
        "blank": (str(folder / "blank.txt"), "empty"),
        "short": (str(folder / "short.txt"), "too few"),
        "binary": (str(folder / "binary.txt"), "UTF-8"),
        "kind": (str(folder / "weights.bin"), "neither"),
        "folder": (str(folder / "nothing"), "no .txt"),
    }


WRONG = ["missing", "empty", "blank", "short", "binary", "kind", "folder"]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_text_that_cannot_be_read_leaves_nothing_and_blocks_nothing(
    wrong, llama, text, tmp_path, monkeypatch
):
    (tmp_path / "runs").mkdir()
    bad, words = bad_texts(tmp_path)[wrong]
    out = tmp_path / "runs" / "x"
    with pytest.raises(UserError, match=words):
        decompile(llama, settings=TINY.model_copy(update={"text": bad}), out=out)
    assert list(out.parent.iterdir()) == []

    class Fitting(Exception):
        pass

    def stop(*_args, **_kwargs):
        raise Fitting

    monkeypatch.setattr("unweave.pipeline.fitting.fit_parts", stop)
    with pytest.raises(Fitting):  # the same place with a text that can be read
        decompile(llama, settings=TINY.model_copy(update={"text": text}), out=out)


def test_a_refusal_in_the_middle_keeps_what_was_done(llama, text, tmp_path, monkeypatch):
    settings = TINY.model_copy(update={"text": text})
    out = tmp_path / "x"

    def full(*_args, **_kwargs):
        raise UserError("The disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("unweave.pipeline.fitting.tune_jointly", full)
        with pytest.raises(UserError, match="disk is full"):
            decompile(llama, settings=settings, out=out)
    assert not out.exists()
    assert (unfinished(out) / "done" / "local.json").is_file()

    def never(*_args, **_kwargs):
        raise AssertionError("was done already")

    with monkeypatch.context() as patch:
        patch.setattr("unweave.pipeline.fitting.fit_parts", never)
        patch.setattr("unweave.pipeline.fitting.token_rows", never)
        decompile(llama, settings=settings, out=out)
    assert check(out).violations == []


def test_checkpoints_go_when_their_stage_is_done(llama, text, tmp_path, monkeypatch):
    settings = TINY.model_copy(update={"text": text, "checkpoint_seconds": 0.0})
    out = tmp_path / "x"
    seen = []

    def look(*_args, **_kwargs):
        seen.append({path.name for path in unfinished(out).iterdir()})
        raise UserError("enough")

    monkeypatch.setattr(sys.modules["unweave.pipeline.decompile"], "rivals", look)
    with pytest.raises(UserError, match="enough"):
        decompile(llama, settings=settings, out=out)
    assert "local-parts" in seen[0]
    assert not {"local", "joint"} & seen[0]


def said_by(arguments: list[str], capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["missing", "empty", "short"])
def test_the_command_line_says_what_is_wrong_with_a_text(wrong, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    bad, words = bad_texts(tmp_path)[wrong]
    out = tmp_path / "runs" / "x"
    code, said = said_by(["decompile", "wren", "--text", bad, "--out", str(out)], capsys)
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
    assert list(out.parent.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    places = [tmp_path / "file" / "x", Path("/sys/unweave-test/x")]  # root may write elsewhere
    for out in [place for place in places if place.parent.parent.exists()]:
        code, said = said_by(["decompile", "wren", "--text", "heldout", "--out", str(out)], capsys)
        assert code == 2, said
        assert said.startswith("unweave: ")
        assert "cannot be written" in said
        assert said.count("\n") == 1


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    code, said = said_by(["decompile", "wren", "--out", str(tmp_path)], capsys)
    assert code == 2
    assert str(tmp_path) in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
