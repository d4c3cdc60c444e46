"""Edges into queries and keys, in every family, and none out of them."""

import numpy as np
import pytest
import torch
from tiny_subject import FAMILIES, family_subject

from unweave.activations.workers import Workers
from unweave.decompile.edges import LOGITS, TOKENS, interaction_edges, virtual_weights
from unweave.decompile.firings import PartFirings
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.pipeline.fitting import part_specs


@pytest.fixture(params=FAMILIES, scope="module")
def subject(request):
    return family_subject(request.param)


@pytest.fixture(scope="module")
def parts(subject):
    made = {}
    specs = part_specs(subject, latents=1, k_mlp=5, k_attention=4, k_query=3, k_key=2, skip=False)
    for seed, spec in enumerate(specs):
        g = torch.Generator().manual_seed(seed)
        part = Part(spec.model_copy(update={"input_scale": 1.3, "output_scale": 0.6}))
        with torch.no_grad():
            for tensor in part.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=g))
        part.unit_decoder_()
        made[spec.name] = part
    return made


def test_weights_into_queries_and_keys_are_what_attention_reads(subject, parts):
    """Small steps across a stream whose norm they do not move, as the MLP's edges are tested."""
    g = torch.Generator().manual_seed(2)
    written = torch.randn(5, 32, generator=g) + 0.1
    span = torch.linalg.qr(torch.cat([torch.ones(1, 32), written]).T).Q
    base = torch.randn(32, generator=g)
    base = 5 * (base - span @ (span.T @ base))
    site, tokens = "blocks.1.attn.in", torch.full((5, 1), 5)
    read = [
        subject.run(
            tokens,
            capture=[site],
            replace={"blocks.1.resid_pre": (base + step * written)[:, None]},
            logits=False,
        ).sites[site][:, 0]
        for step in (0.05, -0.05)
    ]
    latents = torch.tensor([0, 9, 31])
    for name in ("L1.q", "L1.k"):
        wanted = 1.3 * parts[name].W_enc.detach()[latents] @ ((read[0] - read[1]) / 0.1).T
        found = virtual_weights(subject, parts[name], written, latents)
        assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.9995


def test_the_stream_flows_into_scores_and_scores_into_nothing(subject, parts):
    fired = PartFirings(
        np.arange(9, dtype=np.int64), np.full(8, 3, dtype=np.int32), np.ones(8, dtype=np.float16)
    )
    with Workers(1) as workers:
        edges = interaction_edges(subject, parts, dict.fromkeys(parts, fired), workers=workers)
    flows = set(zip(edges.source_part, edges.target_part, strict=True))
    assert {("L0.attn", "L1.q"), ("L0.mlp", "L1.k"), (TOKENS, "L0.q"), ("L1.mlp", LOGITS)} <= flows
    assert all(place_of(source).writes_stream for source, _ in flows if source != TOKENS)
