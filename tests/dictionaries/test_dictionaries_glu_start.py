"""Gated latents from the network's own neurons are the network's own MLP."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.linear import Linear
from unweave.dictionaries.glu_start import start_glu_
from unweave.errors import UserError
from unweave.subject import load_subject


def transcoder(subject, layer, activation, n_latents, *, encoder=None, **changes):
    ports = [Port(site=f"blocks.{layer}.mlp.{s}", width=subject.d_model) for s in ("in", "out")]
    spec = DictionarySpec(
        reads=(ports[0],), writes=(ports[1],), n_latents=n_latents,
        activation=activation, encoder=encoder or GLU(), **changes,
    )  # fmt: skip
    return Dictionary(spec)


def vectors(subject, layer, rows):
    sites = [f"blocks.{layer}.mlp.{side}" for side in ("in", "out")]
    run = subject.run(rows, capture=sites, logits=False)
    return [run.sites[site][:, 1:].flatten(0, 1) for site in sites]


@pytest.mark.parametrize("name", ["wren", "tiny"])
def test_all_signed_neurons_are_the_mlp(name):
    subject = load_subject("wren", dtype="float32") if name == "wren" else tiny_llama()
    rows = torch.randint(3, 60, (12, 24), generator=torch.Generator().manual_seed(0))
    x, y = vectors(subject, 1, rows)
    n = 2 * subject.geometry.d_mlp
    dictionary = transcoder(subject, 1, AbsTopK(k=n), n).eval()
    start_glu_(dictionary, subject.mlp_weights(1), x, y)
    fresh = torch.randint(3, 60, (6, 24), generator=torch.Generator().manual_seed(1))
    x, y = vectors(subject, 1, fresh)
    size = y.square().mean().sqrt()
    assert ((dictionary(x) - y).abs().amax() / size).item() < 1e-5
    lengths = dictionary.W_dec.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_without_signs_only_shut_gates_are_missed():
    subject = tiny_llama()
    x, y = vectors(subject, 0, tiny_rows(30))
    n = 2 * subject.geometry.d_mlp
    weights = subject.mlp_weights(0)
    dictionary = transcoder(subject, 0, ReLU(), n)
    start_glu_(dictionary, weights, x, y)
    gate = torch.nn.functional.silu(x @ weights.W_gate.T)
    open_alone = (gate.clamp_min(0) * (x @ weights.W_in.T)) @ weights.W_out
    missed = (y - open_alone).mean(0)
    torch.testing.assert_close(dictionary(x), open_alone + missed, rtol=1e-4, atol=1e-4)


def test_the_strongest_writers_come_first():
    subject = tiny_llama()
    x, y = vectors(subject, 0, tiny_rows(30))
    weights = subject.mlp_weights(0)
    few = transcoder(subject, 0, AbsTopK(k=20), 20)
    start_glu_(few, weights, x, y)
    product = torch.nn.functional.silu(x @ weights.W_gate.T)[:, None] * torch.relu(
        torch.stack([x @ weights.W_in.T, -(x @ weights.W_in.T)], 1)
    )
    written = product.abs().mean(0) * weights.W_out.norm(dim=1)
    best = written.flatten().topk(20).values
    strength = few.encode(x).dense().abs().mean(0) / few.output_scale[0]
    torch.testing.assert_close(strength, best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few(x).mean(0), y.mean(0), rtol=1e-3, atol=1e-4)
    fvu = (few(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    weakest = transcoder(subject, 0, AbsTopK(k=20), 20)
    start_glu_(weakest, weights, x, y)
    with torch.no_grad():
        weakest.W_dec.copy_(weakest.W_dec.flip(0))
    shuffled = (weakest(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert fvu < 0.9 < shuffled


def test_latents_beyond_the_neurons_start_at_data():
    subject = tiny_llama()
    x, y = vectors(subject, 0, tiny_rows(30))
    n = 2 * subject.geometry.d_mlp
    dictionary = transcoder(subject, 0, TopK(k=8), n + 40)
    start_glu_(dictionary, subject.mlp_weights(0), x, y)
    assert (dictionary.encode(x).fired()[n:] > 0).float().mean() > 0.5
    assert (dictionary.encoder.W_gate[n:] == 0).all()
    lengths = dictionary.W_dec.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_what_cannot_be_started_so_is_refused():
    subject = tiny_llama()
    x, y = vectors(subject, 0, tiny_rows(4))
    weights = subject.mlp_weights(0)
    with pytest.raises(UserError, match="neurons with gates need glu"):
        start_glu_(transcoder(subject, 0, TopK(k=2), 8, encoder=Linear()), weights, x, y)
    ungated = type(weights)(**{**vars(weights), "W_gate": None})
    with pytest.raises(UserError, match="not gated"):
        start_glu_(transcoder(subject, 0, TopK(k=2), 8), ungated, x, y)
    gelu = type(weights)(**{**vars(weights), "activation": "gelu"})
    with pytest.raises(UserError, match="gated by gelu"):
        start_glu_(transcoder(subject, 0, TopK(k=2), 8), gelu, x, y)
    with pytest.raises(UserError, match="has a skip"):
        start_glu_(transcoder(subject, 0, TopK(k=2), 8, skip=True), weights, x, y)
