"""`unweave convert` at the command line."""

from pathlib import Path

import pytest

from unweave.cli import main
from unweave.dictionaries.formats import load_foreign

FIXTURES = Path(__file__).resolve().parents[1] / "dictionaries" / "fixtures"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ending:
        main([str(argument) for argument in arguments])
    assert isinstance(ending.value.code, int)
    return ending.value.code


def test_a_dictionary_goes_round_all_formats_that_can_hold_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FIXTURES / "saelens" / "topk"
    for name in ("sparsify", "dictionary_learning", "unweave", "saelens"):
        assert run("convert", source, tmp_path / name, "--to", name) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0].startswith(f"{source.name}: topk k=5, 12 -> 40 -> 12")
        assert "largest difference on random vectors: latents" in printed[1]
        assert printed[2] == f"one dictionary written to {tmp_path / name} as {name}"
        source = tmp_path / name
    assert (source / "sae_weights.safetensors").is_file()


def test_sets_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = FIXTURES / "circuit_tracer" / "relu"
    assert run("convert", source, tmp_path / "many", "--to", "dictionary_learning") == 0
    assert "3 dictionaries written" in capsys.readouterr().out
    assert list(load_foreign(tmp_path / "many")) == ["L0.mlp", "L1.mlp", "L2.mlp"]
    source = FIXTURES / "circuit_tracer" / "clt"
    assert run("convert", source, tmp_path / "ours", "--to", "unweave") == 0
    assert run("convert", tmp_path / "ours", tmp_path / "back", "--to", "circuit_tracer") == 0
    assert "L2.mlp: relu, 12 -> 40 -> 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "to", "said"),
    [
        ("saelens/gated", "sparsify", "it knows topk only, and this is gated"),
        ("saelens/gated", "onnx", "no format onnx"),
        ("saelens/none", "unweave", "there is no"),
    ],
)
def test_what_cannot_be_converted(
    source: str, to: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", FIXTURES / source, tmp_path / "new", "--to", to) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_copy_that_differs_is_not_passed_off_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unweave.dictionaries import formats
    from unweave.dictionaries.formats import saelens

    def wrong(dictionary, folder: Path) -> None:
        dictionary.b_dec.data += 1
        saelens.write(dictionary, folder)
        dictionary.b_dec.data -= 1

    monkeypatch.setitem(formats._WRITE, "saelens", wrong)
    assert run("convert", FIXTURES / "saelens/topk", tmp_path / "new", "--to", "saelens") == 2
    assert "does not do what its original does: topk" in capsys.readouterr().err
