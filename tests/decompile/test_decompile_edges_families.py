"""In every family, weights of the graph are what the network itself makes of a written vector.

Written vectors are orthogonal to the (mean-free) stream that they are added to, so that they do
not move what a norm divides by: its scale is frozen without touching the norm. They do have a
mean, which a LayerNorm takes out and an RMSNorm does not.
"""

import numpy as np
import pytest
import torch
from tiny_subject import FAMILIES, family_subject
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.decompile.edges import (
    interaction_edges,
    logit_directions,
    virtual_weights,
    written_by,
)
from unweave.decompile.firings import PartFirings
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs

TOKENS = torch.full((1, 1), 5)
LATENTS = torch.tensor([0, 9, 18, 31])


@pytest.fixture(params=FAMILIES, scope="module")
def subject(request):
    return family_subject(request.param)


@pytest.fixture(scope="module")
def parts(subject):
    made = {}
    for seed, spec in enumerate(part_specs(subject, latents=1, k_mlp=5, k_attention=4, skip=False)):
        g = torch.Generator().manual_seed(seed)
        part = Part(spec.model_copy(update={"input_scale": 1.3, "output_scale": 0.6}))
        with torch.no_grad():
            for tensor in part.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=g))
        part.unit_decoder_()
        made[spec.name] = part
    return made


def effect(subject, at: str, seen: str, written: Tensor) -> Tensor:
    """Change of the site `seen` per change of the site `at` along each vector, [vectors, width]."""
    g = torch.Generator().manual_seed(7)
    base = torch.randn(32, generator=g)
    # Mean-free, and orthogonal to all that is written.
    span = torch.linalg.qr(torch.cat([torch.ones(1, 32), written]).T).Q
    base = 5 * (base - span @ (span.T @ base))
    sides = []
    for sign in (1, -1):
        put = (base + sign * 0.05 * written)[:, None]
        run = subject.run(TOKENS.expand(len(written), 1), capture=[seen], replace={at: put})
        sides.append(run.sites[seen][:, 0].flatten(1))
    return (sides[0] - sides[1]) / 0.1


def written(count=5):
    vectors = torch.randn(count, 32, generator=torch.Generator().manual_seed(2))
    return vectors / vectors.norm(dim=1, keepdim=True) + 0.1  # and a mean


def same_but_for_a_factor(found: Tensor, wanted: Tensor) -> None:
    cosine = torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)
    assert cosine > 0.9995
    assert wanted.abs().max() > 1e-3


def test_into_an_mlp(subject, parts):
    part = parts["L1.mlp"]
    before = "resid_pre" if subject.geometry.parallel else "resid_mid"
    reads = effect(subject, f"blocks.1.{before}", "blocks.1.mlp.in", written())
    wanted = 1.3 * part.W_enc.detach()[LATENTS] @ reads.T
    same_but_for_a_factor(virtual_weights(subject, part, written(), LATENTS), wanted)


def test_into_attention(subject, parts):
    """Through the values: each head's, where several heads share one."""
    part = parts["L1.attn"]
    values = effect(subject, "blocks.1.resid_pre", "blocks.1.attn.v", written())
    per_head = values.view(len(values), subject.n_kv_heads, subject.d_head)
    per_head = per_head.repeat_interleave(subject.n_heads // subject.n_kv_heads, dim=1)
    head = LATENTS // (part.spec.n_latents // part.spec.heads)
    wanted = 1.3 * (part.W_enc.detach()[LATENTS][:, None] * per_head[:, head].movedim(1, 0)).sum(-1)
    same_but_for_a_factor(virtual_weights(subject, part, written(), LATENTS), wanted)


@pytest.mark.parametrize("kind", ["attn", "mlp"])
def test_what_reaches_the_stream(subject, parts, kind):
    part = parts[f"L1.{kind}"]
    directions = part.W_dec.detach()[LATENTS] / 0.6
    wanted = effect(subject, f"blocks.1.{kind}.out", "blocks.1.resid_post", directions)
    if kind == "attn" and not subject.geometry.parallel:
        wanted = effect(subject, "blocks.1.attn.out", "blocks.1.resid_mid", directions)
    same_but_for_a_factor(written_by(subject, part, LATENTS), wanted)


def test_to_the_logits(subject):
    logits = effect(subject, "blocks.1.resid_post", "logits", written())
    wanted = logits - logits.mean(1, keepdim=True)
    same_but_for_a_factor(written() @ logit_directions(subject).T, wanted)


def test_no_edge_goes_where_nothing_flows(subject, parts):
    """Where attention and MLP read the same stream, an MLP does not read its own block's heads."""
    tokens = 8
    fired = PartFirings(
        np.arange(tokens + 1, dtype=np.int64),
        np.full(tokens, 3, dtype=np.int32),
        np.ones(tokens, dtype=np.float16),
    )
    with Workers(1) as workers:
        edges = interaction_edges(subject, parts, dict.fromkeys(parts, fired), workers=workers)
    flows = set(zip(edges.source_part, edges.target_part, strict=True))
    assert (("L0.attn", "L0.mlp") in flows) != subject.geometry.parallel
    assert ("L0.mlp", "L1.attn") in flows
    assert ("L0.attn", "L1.mlp") in flows
    assert ("L1.attn", "L0.mlp") not in flows
    assert ("L1.mlp", "L1.attn") not in flows
