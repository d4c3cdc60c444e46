"""What loads, what it loads as, and what is refused with one sentence."""

import json
import shutil

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file

from unweave.errors import UserError
from unweave.subject import load_subject, wrap_module
from unweave.subject.loading import pick_dtype, save_folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Llama as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_folder(wrap_module(tiny_model("llama"), name="tiny"), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "tiny-llama")


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_saved_network_loads_as_it_was(saved, tokens):
    subject = load_subject(str(saved), dtype="float32")
    assert (subject.name, subject.family) == ("tiny-llama", "llama")
    assert torch.equal(subject.run(tokens).logits, tiny_model("llama")(tokens).logits)
    assert not subject.model.training
    assert not any(p.requires_grad for p in subject.model.parameters())
    assert subject.tokenizer is None
    assert subject.start_token == 1


def test_the_fingerprint_is_of_the_stored_weights(saved, folder):
    whole = load_subject(str(saved)).fingerprint
    assert len(whole) == 64
    assert load_subject(str(saved), dtype="bfloat16").fingerprint == whole
    edit_weights(folder, lambda t: t["model.norm.weight"].add_(1e-3))
    assert load_subject(str(folder)).fingerprint != whole


def test_sharded_weights_load(folder, tokens):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file, metadata={"format": "pt"})
    where = {key: file for file, keys in parts.items() for key in keys}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    loaded = load_subject(str(folder), dtype="float32")
    assert torch.equal(loaded.run(tokens).logits, tiny_model("llama")(tokens).logits)
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"b\.safetensors is missing though the index names it"):
        load_subject(str(folder))


def test_dtypes(saved):
    assert load_subject(str(saved), dtype="bfloat16").dtype == torch.bfloat16
    assert load_subject(str(saved), dtype="float32").dtype == torch.float32
    assert load_subject(str(saved)).dtype == pick_dtype("auto")
    with pytest.raises(UserError, match="dtype is auto, float32 or bfloat16, not int8"):
        load_subject(str(saved), dtype="int8")


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def only_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04never to be opened")


def nothing_but_a_config(folder):
    (folder / "model.safetensors").unlink()


def put(name, number):
    return lambda folder: edit_weights(folder, lambda t: t[name].view(-1)[3:5].fill_(number))


def drop(name):
    return lambda folder: edit_weights(folder, lambda t: t.pop(name))


def misshape(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda t: t.update({name: torch.zeros(3, 5)}))


def configure(**values):
    def edit(folder):
        file = folder / "config.json"
        config = json.loads(file.read_text()) | values
        file.write_text(json.dumps(config))

    return edit


UP = "model.layers.1.mlp.up_proj.weight"
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "is not a model config"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "is not a model config"),
    "no weights": (nothing_but_a_config, r"no model\.safetensors"),
    "a pickle": (only_a_pickle, r"only as a pickle \(pytorch_model\.bin\).*convert it to safeten"),
    "truncated": (truncate, "is truncated or not a safetensors file"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"x" * 999), "is truncated or not"
    ),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "is truncated or not"),
    "NaN": (put(UP, float("nan")), rf"weight {UP} has 2 numbers that are NaN or infinite"),
    "infinity": (put(UP, float("inf")), rf"weight {UP} has 2 numbers that are NaN or infinite"),
    "missing weight": (drop(UP), rf"1 weights are missing from its safetensors, {UP}"),
    "missing head": (drop("lm_head.weight"), "lm_head.weight among them"),
    "wrong shape": (misshape, r"layers\.0\.mlp\.up_proj\.weight is \(3, 5\) where .*\(48, 32\)"),
    "not causal": (configure(**BERT), "not a causal language model.*BertForMaskedLM"),
    "unknown type": (configure(model_type="warp"), "not a causal language model"),
    "own code": (
        configure(auto_map={"AutoConfig": "evil.Config"}, model_type="warp"), "not a causal"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_folders_are_refused_in_one_sentence(folder, case):
    damage, says = BROKEN[case]
    damage(folder)
    with pytest.raises(UserError, match=says) as caught:
        load_subject(str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_bad_index_is_refused(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text("[]")
    with pytest.raises(UserError, match="is not an index of weight files"):
        load_subject(str(folder))
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(UserError, match="outside its own folder"):
        load_subject(str(folder))


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="there is no subject no-such-thing"):
        load_subject("no-such-thing")
    with pytest.raises(UserError, match=r"there is no subject \./nowhere/model"):
        load_subject("./nowhere/model")
    with pytest.raises(UserError, match="unweave subjects fetch smollm2-135m"):
        load_subject("smollm2-135m")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"no folder owner/model, and the hub did not.*no route to"):
        load_subject("owner/model")


def test_a_hub_model_loads_from_its_snapshot(monkeypatch, saved, tokens):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(saved))
    subject = load_subject("owner/model", dtype="float32")
    assert subject.name == "owner/model"
    assert torch.equal(subject.run(tokens).logits, tiny_model("llama")(tokens).logits)


def test_a_gguf_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_subject(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"not one")
    with pytest.raises(UserError, match="is not a GGUF file"):
        load_subject(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(16))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_subject(str(tmp_path / "model.gguf"))


def test_gguf_without_its_packages_names_the_extra(tmp_path, monkeypatch):
    import sys

    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(16))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf.*unweave\[gguf\]"):
        load_subject(str(tmp_path / "model.gguf"))


def test_a_wrapped_module_with_nan_is_refused():
    net = torch.nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="weight weight has 1 numbers"):
        wrap_module(net, name="net")


def test_an_unknown_architecture_runs_by_module_paths(tmp_path, tokens):
    import transformers

    config = transformers.OPTConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=24,
        max_position_embeddings=64, word_embed_proj_dim=16, pad_token_id=0,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config).eval()
    subject = wrap_module(model, name="opt")
    run = subject.run(tokens, capture=["model.decoder.layers.0.fc1"])
    assert run.sites["model.decoder.layers.0.fc1"].shape[-1] == 24
    assert torch.equal(run.logits, model(tokens).logits)
    with pytest.raises(UserError, match=r"no row of the table knows.*register_family"):
        subject.run(tokens, capture=["blocks.0.mlp.out"])
    with pytest.raises(UserError, match="register_family"):
        subject.mlp_weights(0)


def test_stories260k_loads(shared_data):
    subject = load_subject(str(shared_data / "stories260K" / "hf"), dtype="float32")
    assert (subject.name, subject.n_layers, subject.d_model) == ("stories260K", 5, 64)
    ids = subject.tokenizer.encode("Once upon a time, there was a")
    assert subject.tokenizer.decode(ids).strip() == "Once upon a time, there was a"
    assert "".join(subject.tokenizer.pieces(ids)).strip() == "Once upon a time, there was a"
    tokens = torch.tensor([[subject.start_token, *ids]])
    run = subject.run(tokens, capture=subject.sites())
    plain = subject.model(tokens).logits
    assert (run.logits - plain).abs().max() <= 5e-5
    loss = torch.nn.functional.cross_entropy(run.logits[0, :-1], tokens[0, 1:])
    assert loss < 3


def test_wren_loads():
    subject = load_subject("wren", dtype="float32")
    assert subject.name == "wren"
    text = "Once upon a time there was a little girl."
    ids = subject.tokenizer.encode(text)
    assert subject.tokenizer.decode(ids).strip() == text
    tokens = torch.tensor([[subject.start_token, *ids]])
    run = subject.run(tokens, capture=subject.sites())
    assert (run.logits - subject.model(tokens).logits).abs().max() <= 5e-5
    assert torch.nn.functional.cross_entropy(run.logits[0, :-1], tokens[0, 1:]) < 4
