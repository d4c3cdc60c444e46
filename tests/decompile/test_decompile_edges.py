"""Virtual weights against finite differences of what a feature reads."""

import numpy as np
import pytest
import torch
from tiny_subject import tiny_llama

from unweave.activations.workers import Workers
from unweave.decompile.edges import EdgeSettings, interaction_edges, virtual_weights
from unweave.decompile.firings import PartFirings
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture
def parts(subject):
    made = {}
    for seed, spec in enumerate(part_specs(subject, latents=2, k_mlp=5, k_attention=4, skip=False)):
        generator = torch.Generator().manual_seed(seed)
        part = Part(spec.model_copy(update={"input_scale": 1.7, "output_scale": 0.6}))
        with torch.no_grad():
            for tensor in part.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
        part.unit_decoder_()
        made[spec.name] = part
    return made


def pre_activation(part, x):
    """Dense pre-activations, each latent reading its own head's slice."""
    spec = part.spec
    slices = (x * spec.input_scale).reshape(spec.heads, spec.d_read)
    head = torch.arange(spec.n_latents) // (spec.n_latents // spec.heads)
    return (part.W_enc * slices[head]).sum(1) + part.b_enc


@pytest.mark.parametrize("layer", [0, 1])
def test_into_an_mlp_they_are_the_derivative_through_the_norms_gain(subject, parts, layer):
    part = parts[f"L{layer}.mlp"]
    gain = subject.norm_gain(layer, "mlp")
    stream, written = torch.randn(32), torch.randn(3, 32)
    with torch.no_grad():  # the norm's common factor is frozen: at one
        step = torch.stack(
            [
                pre_activation(part, gain * (stream + w)) - pre_activation(part, gain * stream)
                for w in written
            ],
            dim=1,
        )
        latents = torch.tensor([0, 5, 17, 63])
        found = virtual_weights(subject, part, written, latents)
    assert torch.allclose(found, step[latents], atol=1e-3)


def test_into_attention_they_are_the_derivative_along_the_heads_values(subject, parts):
    part = parts["L1.attn"]
    weights, gain = subject.attention_weights(1), subject.norm_gain(1, "attn")

    def z(stream):  # one source position attended to fully by every head
        return torch.einsum("d,hde->he", gain * stream, weights.W_V).flatten()

    stream, written = torch.randn(32), torch.randn(2, 32)
    with torch.no_grad():
        step = torch.stack(
            [
                pre_activation(part, z(stream + w)) - pre_activation(part, z(stream))
                for w in written
            ],
            dim=1,
        )
        latents = torch.tensor([0, 20, 40, 63])  # of all four heads, two groups of keys
        found = virtual_weights(subject, part, written, latents)
    assert torch.allclose(found, step[latents], atol=1e-3)


def firings(columns, n_tokens):
    """Firings of latents given as {latent: (tokens, value)}."""
    triples = sorted((t, latent, v) for latent, (ts, v) in columns.items() for t in ts)
    counts = np.bincount([t for t, _, _ in triples], minlength=n_tokens)
    return PartFirings(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array([latent for _, latent, _ in triples], dtype=np.int32),
        np.array([v for _, _, v in triples], dtype=np.float16),
    )


def test_an_edge_delivers_its_weight_times_what_the_source_does_while_the_target_fires(
    subject, parts
):
    tokens = 40
    fired = {name: firings({}, tokens) for name in parts}
    fired["L0.mlp"] = firings({3: (range(0, 20), 2.0), 4: (range(20, 40), 2.0)}, tokens)
    fired["L1.mlp"] = firings({7: (range(0, 10), 1.0)}, tokens)
    with Workers(1) as workers:
        edges = interaction_edges(
            subject, parts, fired, workers=workers, settings=EdgeSettings(tokens=tokens)
        )
    at = {
        (edges.source_part[i], edges.source[i]): (edges.weight[i], edges.used[i])
        for i in range(len(edges.weight))
        if (edges.target_part[i], edges.target[i]) == ("L1.mlp", 7)
    }
    source, target = parts["L0.mlp"], parts["L1.mlp"]
    written = source.W_dec.detach()[3:5] / source.spec.output_scale
    weight = virtual_weights(subject, target, written, torch.tensor([7]))[0]
    assert at["L0.mlp", 3] == pytest.approx((weight[0].item(), 2 * weight[0].item()), rel=1e-4)
    # Latent 4 never meets the target: interference, whatever its weight.
    assert at["L0.mlp", 4] == pytest.approx((weight[1].item(), 0.0), rel=1e-4)
    assert {part for part, _ in at} == {"L0.mlp", "token"}


def test_edges_to_logits_are_those_of_the_last_layers_parts(subject, parts):
    fired = {name: firings({1: (range(5), 1.5)}, 10) for name in parts}
    with Workers(1) as workers:
        edges = interaction_edges(subject, parts, fired, workers=workers)
    out = [i for i, part in enumerate(edges.target_part) if part == "logit"]
    assert {edges.source_part[i] for i in out} == {"L1.attn", "L1.mlp"}
    part, unembed = parts["L1.mlp"], subject.unembed()
    written = part.W_dec.detach()[1] / part.spec.output_scale
    effect = (unembed - unembed.mean(0)) @ written
    for i in out:
        if edges.source_part[i] == "L1.mlp":
            assert edges.weight[i] == pytest.approx(effect[edges.target[i]].item(), rel=1e-4)
            assert edges.used[i] == pytest.approx(1.5 * edges.weight[i], rel=1e-3)
