"""`unweave fit-check` at the command line."""

from pathlib import Path

import pytest
import torch

from unweave import load_subject, token_rows
from unweave.cli import main
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.formats import save_foreign

FIXTURES = Path(__file__).resolve().parents[1] / "dictionaries" / "fixtures"
HOME = "blocks.2.resid_post"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert isinstance(ending.value.code, int)
    return ending.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plus and minus every principal direction: any vector, made at layer 2, in SAELens' files."""
    wren = load_subject("wren")
    rows = token_rows(wren, "heldout", tokens=6000, context=48).train
    with torch.inference_mode():
        found = wren.run(rows, capture=[HOME], logits=False).sites[HOME]
    x = found[:, 1:].flatten(0, 1).float().clone()
    directions = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0))).eigenvectors.T[-24:]
    spec = autoencoder(HOME, 128, 48, ReLU(), name="made", decoder="free", pre_bias=True)
    made = Dictionary(spec).eval()
    for matrix in (made.W_enc, made.W_dec):
        matrix.data.copy_(torch.cat([directions, -directions]))
    made.b_dec.data.copy_(x.mean(0))
    place = tmp_path_factory.mktemp("dictionaries") / "made"
    save_foreign(made, place, "saelens")
    return place


def test_a_foreign_folder_in_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit-check", folder, "wren", "--tokens", "400") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"made fits {HOME} of wren: FVU 0.")
    assert lines[1].split()[:2] == [HOME, "none"]
    assert lines[1].endswith("<- asked about")


def test_in_another_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "blocks.2.mlp.out"
    assert run("fit-check", folder, "wren", "--site", wrong, "--tokens", "400") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"made does not belong at {wrong} of wren" in lines[0]
    assert f"it belongs at {HOME}" in lines[0]
    assert lines[-1].split()[0] == wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("saelens/standard", "wren"), "standard reads vectors of width 12, and blocks.2.resid"),
        (("saelens/topk", "wren"), "does not say where in a network it belongs"),
        (("sparsify/run", "wren", "--site", HOME), "say which with --part layers.1"),
        (("sparsify/run", "wren", "--part", "layers.9"), "its parts are layers.1, layers.2"),
        (("saelens/nothing", "wren"), "there is no"),
    ],
)
def test_one_sentence_for_what_cannot_be_checked(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *rest = arguments
    assert run("fit-check", FIXTURES / first, *rest) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
