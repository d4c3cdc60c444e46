"""Gated parts in a decompiled network: exact with all neurons on, seen by firings and the graph."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.circuits.attention.reading import linear_reads
from unweave.decompile.edges import interaction_edges, virtual_weights
from unweave.decompile.firings import collect_firings
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.formats.part_folder import read
from unweave.dictionaries.gated_start import start_gated
from unweave.dictionaries.part_names import input_site, output_site
from unweave.errors import UserError
from unweave.pipeline.fitting import part_specs
from unweave.validate.baselines import random_part

ROWS = tiny_rows(24, seed=3)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


def gated_parts(subject, k):
    """Every MLP as its own signed neurons, k of them on."""
    latents = 2 * subject.geometry.d_mlp // subject.d_model
    specs = part_specs(
        subject, latents=latents, k_mlp=k, k_attention=4, k_query=4, k_key=4, skip=False, gated=True
    )
    mlps = [spec for spec in specs if spec.name.endswith("mlp")]
    assert [spec.gated for spec in specs] == [spec.name.endswith("mlp") for spec in specs]
    parts = {}
    for layer, spec in enumerate(mlps):
        sites = [input_site(spec.name), output_site(spec.name)]
        run = subject.run(ROWS, capture=sites, logits=False)
        x, y = (run.sites[site][:, 1:].flatten(0, 1) for site in sites)
        part = start_gated(spec, subject.mlp_weights(layer), x, y, seed=0)
        part.start_output.copy_(run.sites[sites[1]][0, 0])
        parts[spec.name] = part
    return parts


def worst(subject, parts):
    rows = tiny_rows(6, seed=11)
    with torch.no_grad():
        before = subject.run(rows).logits
        after = DecompiledNetwork(subject, parts)(rows)
    return ((before - after).abs().max() / before.std()).item()


def test_with_all_neurons_on_the_network_is_the_original(subject):
    n = 2 * subject.geometry.d_mlp
    assert worst(subject, gated_parts(subject, n)) < 1e-4
    assert worst(subject, gated_parts(subject, n // 8)) > 1e-2


def test_firings_and_edges_see_gated_latents(subject):
    parts = gated_parts(subject, 10)
    encoders = {name: (input_site(name), part) for name, part in parts.items()}
    with Workers(1) as workers:
        firings = collect_firings(subject, encoders, ROWS, workers=workers)
        edges = interaction_edges(subject, parts, firings, workers=workers)
    positions = ROWS.numel() - len(ROWS)
    for name, found in firings.items():
        assert found.value.min() > 0
        assert len(found.value) == 10 * positions
        x = subject.run(ROWS, capture=[input_site(name)], logits=False).sites[input_site(name)]
        code = parts[name].encode(x[:, 1:].flatten(0, 1))
        assert (code.value < 0).any()
    assert "L1.mlp" in edges.target_part
    written = parts["L0.mlp"].W_dec.detach()
    every = torch.arange(4)
    both = [
        virtual_weights(subject, parts["L1.mlp"], written, every, gate=g) for g in (False, True)
    ]
    assert not torch.allclose(*both)


def test_what_needs_linear_readings_says_so(subject):
    part = gated_parts(subject, 10)["L0.mlp"]
    with pytest.raises(UserError, match="gated"):
        linear_reads(part)


def test_a_saved_gated_part_reads_as_a_dictionary(subject, tmp_path):
    part = gated_parts(subject, 10)["L0.mlp"]
    part.save(tmp_path)
    dictionary = read(tmp_path, "L0.mlp").eval()
    x = torch.randn(50, subject.d_model)
    torch.testing.assert_close(dictionary(x), part(x), rtol=1e-4, atol=1e-4)
    dense = part.encode(x)
    assert torch.equal(dictionary.encode(x).dense() != 0, _dense(dense, part.spec.n_latents) != 0)


def _dense(code, n_latents):
    return torch.zeros(len(code.value), n_latents).scatter(1, code.latent, code.value)


def test_a_random_gated_part_writes_and_fails(subject):
    parts = gated_parts(subject, 2 * subject.geometry.d_mlp)
    site = output_site("L0.mlp")
    y = subject.run(ROWS, capture=[site], logits=False).sites[site][:, 1:].flatten(0, 1)
    random = {"L0.mlp": random_part(parts["L0.mlp"], y, seed=0)}
    x = torch.randn(50, subject.d_model)
    assert random["L0.mlp"](x).std(0).mean() > 0
    assert worst(subject, random) > 0.1
