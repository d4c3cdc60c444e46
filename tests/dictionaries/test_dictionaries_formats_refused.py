"""Foreign files that are damaged, unknown or hostile: one sentence each, and nothing is run."""

import io
import json
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.dictionaries.formats import load_foreign
from unweave.dictionaries.formats.torch_archive import load_archive
from unweave.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"


class Hostile:
    """Touches a file when a pickle machine builds it."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return Path.touch, (self.victim,)


def archive(path: Path, program: bytes, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", program)
        for name, content in files.items():
            out.writestr(f"archive/data/{name}", content)
    return path


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    victim, path = tmp_path / "touched", tmp_path / "ae.pt"
    torch.save({"W_enc": torch.zeros(2), "more": Hostile(victim)}, path)
    with pytest.raises(UserError, match=r"__builtin__\.getattr.* nothing of it was run"):
        load_archive(path)
    assert not victim.exists()
    # The control: a general machine runs it.
    torch.load(path, weights_only=False)
    assert victim.exists()


PROGRAMS = {
    "a global": b"cposix\nsystem\n(S'true'\ntR.",
    "a hidden global": pickle.dumps(print, protocol=4),
    "an instance": b"(S'true'\nios\nsystem\n.",
    "a call of a dict": b"}(tR.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent object": b"\x80\x02X\x06\x00\x00\x00modeleQ.",
    "a list": b"\x80\x02]q\x00.",
    "a key that is a tuple": b"\x80\x02}(K\x01K\x02\x86K\x01u.",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02u.",
    "nothing": b"",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_only_a_dict_of_tensors_is_read(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plain dict of tensors|damaged"):
        load_archive(archive(tmp_path / "ae.pt", program))


def test_what_torch_saves_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    odd = {
        "turned": torch.randn(4, 5).T.bfloat16(),
        "part": torch.arange(12.0)[3:9:2],
        "number": torch.tensor(7, dtype=torch.int),
        "empty": torch.empty(0, 3),
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    for state in (module.state_dict(), odd, OrderedDict()):
        for protocol in (2, 3, 4, 5):
            torch.save(state, tmp_path / "ae.pt", pickle_protocol=protocol)
            found = load_archive(tmp_path / "ae.pt")
            assert list(found) == list(state)
            for name, tensor in state.items():
                assert found[name].dtype == tensor.dtype
                assert torch.equal(found[name], tensor)


def test_a_tensor_cannot_reach_outside_its_bytes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, buffer)
    program = zipfile.ZipFile(buffer).read("archive/data.pkl")
    six = torch.arange(6.0).numpy().tobytes()
    good = load_archive(archive(tmp_path / "good.pt", program, **{"0": six}))
    assert torch.equal(good["a"], torch.arange(6.0))
    with pytest.raises(UserError, match="20 bytes"):
        load_archive(archive(tmp_path / "short.pt", program, **{"0": six[:20]}))
    # (6,) is the shape: K\x06\x85; seven numbers would read beyond the end
    longer = program.replace(b"K\x06\x85", b"K\x07\x85")
    assert longer != program
    with pytest.raises(UserError, match="beyond storage"):
        load_archive(archive(tmp_path / "long.pt", longer, **{"0": six}))
    # Its six numbers begin one late
    later = program.replace(b"QK\x00", b"QK\x01")
    assert later != program
    with pytest.raises(UserError, match="beyond storage"):
        load_archive(archive(tmp_path / "late.pt", later, **{"0": six}))
    with pytest.raises(UserError, match="no archive that torch"):
        load_archive(archive(tmp_path / "none.pt", program))


def test_older_and_truncated_archives(tmp_path: Path) -> None:
    path = tmp_path / "ae.pt"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"1\.6 or later"):
        load_archive(path)
    torch.save({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        load_archive(path)


def edited(tmp_path: Path, case: str, file: str, **changes: object) -> Path:
    """A copy of a fixture with fields of a JSON file changed."""
    folder = tmp_path / "copy"
    shutil.copytree(FIXTURES / case, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return folder


EDITS = [
    ("saelens/topk", "cfg.json", {"architecture": "temporal"}, "architecture 'temporal'"),
    ("saelens/topk", "cfg.json", {"architecture": "batchtopk"}, "save_inference_model"),
    ("saelens/topk", "cfg.json", {"normalize_activations": "constant_norm_rescale"}, "normalised"),
    ("saelens/topk", "cfg.json", {"d_in": "many"}, "d_in"),
    ("saelens/topk", "cfg.json", {"d_sae": 41}, "has shape (40,) where"),
    ("saelens/topk", "cfg.json", {"k": 400}, "k=400 exceeds its 40 latents"),
    ("saelens/topk", "cfg.json", {"k": None}, "activation.topk.k"),
    ("saelens/topk", "cfg.json", {"architecture": "gated"}, "lacks the tensor"),
    ("sparsify/autoencoder", "cfg.json", {"activation": "groupmax"}, "only topk"),
    ("sparsify/autoencoder", "cfg.json", {"skip_connection": True}, "lacks the tensor 'W_skip'"),
    ("dictionary_learning/topk", "config.json", {"trainer": {}}, "trainer.dict_class"),
    (
        "dictionary_learning/topk",
        "config.json",
        {"trainer": {"dict_class": "CrossCoder", "activation_dim": 12, "dict_size": 40}},
        "class 'CrossCoder'",
    ),
    (
        "dictionary_learning/topk",
        "config.json",
        {"trainer": {"dict_class": "GatedAutoEncoder", "activation_dim": 12, "dict_size": 40}},
        "lacks the tensor 'gate_bias'",
    ),
    (
        "dictionary_learning/topk",
        "config.json",
        {"trainer": {"dict_class": "AutoEncoderTopK", "activation_dim": 13, "dict_size": 40}},
        "has shape",
    ),
]


@pytest.mark.parametrize(("case", "file", "changes", "said"), EDITS, ids=lambda v: str(v)[:30])
def test_settings_that_do_not_fit(
    case: str, file: str, changes: dict, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        load_foreign(edited(tmp_path, case, file, **changes))
    assert "\n" not in str(error.value)


def test_saelens_scale_beside_the_weights(tmp_path: Path) -> None:
    how = {"normalize_activations": "expected_average_only_in"}
    folder = edited(tmp_path, "saelens/standard", "cfg.json", **how)
    with pytest.raises(UserError, match="fold it into the weights"):
        load_foreign(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    (scaled,) = load_foreign(folder).values()
    (plain,) = load_foreign(FIXTURES / "saelens" / "standard").values()
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scaled(x), plain(x / 4) * 4, atol=1e-6)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(UserError, match="scaling_factor"):
        load_foreign(folder)


def test_saelens_before_version_6(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(FIXTURES / "saelens" / "topk", folder)
    old = {
        "d_in": 12,
        "d_sae": 40,
        "hook_name": "blocks.1.hook_mlp_out",
        "architecture": "standard",
    }
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    (folder / "cfg.json").write_text(json.dumps(old | {"normalize_activations": None}))
    (found,) = load_foreign(folder).values()
    wanted = load_tensors(FIXTURES / "saelens" / "topk.safetensors")
    assert torch.allclose(found(wanted["x"]), wanted["y"], atol=1e-5)
    assert found.spec.writes[0].site == "blocks.1.mlp.out"


def _spoil(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load_tensors(path)
        change(tensors)
        path.unlink()
        save_tensors(path, tensors)

    return spoil


SPOILT = {
    "gone": (lambda path: path.unlink(), "no dictionary in"),
    "a tensor too few": (_spoil(lambda t: t.pop("b_enc")), "lacks the tensor 'b_enc'"),
    "a tensor too many": (_spoil(lambda t: t.update(extra=torch.ones(1))), "'extra'"),
    "misshapen": (_spoil(lambda t: t.update(W_enc=t["W_enc"].T)), r"\(40, 12\)"),
    "not finite": (_spoil(lambda t: t["W_dec"][0].fill_(torch.nan)), "NaN or infinite"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:500]), "truncated"),
    "a pickle": (lambda path: torch.save({}, path), "pickle"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_spoilt_weights(spoil: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = edited(tmp_path, "saelens/standard", "cfg.json")
    spoil(folder / "sae_weights.safetensors")
    with pytest.raises(UserError, match=said):
        load_foreign(folder)


def test_an_npz_with_objects_or_without_a_threshold(tmp_path: Path) -> None:
    path, victim = tmp_path / "params.npz", tmp_path / "touched"
    np.savez(path, W_enc=np.array([Hostile(victim)], dtype=object))
    with pytest.raises(UserError, match="no archive of plain arrays"):
        load_foreign(path)
    assert not victim.exists()
    np.savez(path, W_enc=np.ones((3, 4)), W_dec=np.ones((4, 3)), b_dec=np.ones(3))
    with pytest.raises(UserError, match="lacks the tensor 'b_enc'"):
        load_foreign(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="no archive of plain arrays"):
        load_foreign(path)


def test_configurations_of_circuit_tracer(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(FIXTURES / "circuit_tracer" / "relu", folder)
    good = (folder / "config.yaml").read_text()

    def said(text: str) -> str:
        (folder / "config.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            load_foreign(folder)
        return str(error.value)

    assert "not YAML" in said("{")
    assert "not YAML" in said("a: !!python/object/apply:os.system ['true']\n")
    assert "the whole" in said("- a list\n")
    assert "model_kind" in said(good.replace("transcoder_set", "lorsa"))
    assert "addresses elsewhere" in said(good + "transcoders: ['hf://someone/something']\n")
    assert "W_enc_0.safetensors" in said(good.replace("transcoder_set", "cross_layer_transcoder"))
    (folder / "config.yaml").write_text(good)
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(UserError, match="layer_1"):
        load_foreign(folder)


def test_places_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        load_foreign(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"sae_weights\.safetensors"):
        load_foreign(tmp_path)
