"""Virtual weights where the effect is known: exact, undone on the way, and of a wrong graph."""

import numpy as np
import pytest
import torch
from tiny_subject import bump, family_subject, tiny_llama, tiny_rows
from torch import Tensor

from unweave.decompile.edges import virtual_weights, written_by
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError
from unweave.pipeline.fitting import part_specs
from unweave.subject import Subject
from unweave.validate.bootstrap import BootstrapSettings
from unweave.validate.interventions.edge_pairs import Edge, feature_edges, firing, retargeted
from unweave.validate.interventions.virtual_weights import (
    VirtualEffects,
    VirtualWeightSettings,
    virtual_weight_effects,
)

D, SOURCES, TARGETS, FIRST = 32, 8, 6, 3
SCALE = 100 / D**0.5
"""Of every norm: one coordinate of the stream is 100 wherever one looks."""
ROWS = tiny_rows(24, 12, vocab=FIRST + SOURCES)
FEW = BootstrapSettings(resamples=20)
SETTINGS = VirtualWeightSettings(sources=8, rows=6, bootstrap=FEW)
FAMILY = VirtualWeightSettings(sources=8, rows=4, bootstrap=FEW)


def by_hand() -> Subject:
    """Attention writes nothing; the stream has a coordinate for each token, and a large one."""
    subject = tiny_llama(num_hidden_layers=3)
    with torch.no_grad():
        for block in subject.model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.fill_(1.0)
        subject.model.model.embed_tokens.weight.zero_()
        subject.model.model.embed_tokens.weight[:, -1] = 100
        for token in range(SOURCES):
            subject.model.model.embed_tokens.weight[FIRST + token, token] = 1
    return subject


def part(layer: int, reads: Tensor, bias: float, writes: Tensor) -> Part:
    """As many latents at once as there are, so that none competes."""
    spec = PartSpec(
        name=f"L{layer}.mlp", input_site=f"blocks.{layer}.mlp.in",
        output_site=f"blocks.{layer}.mlp.out", d_in=D, d_out=D, n_latents=len(reads),
        k=len(reads), input_scale=2.0, output_scale=0.5,
    )  # fmt: skip
    made = Part(spec)
    with torch.no_grad():
        made.W_enc.copy_(reads)
        made.b_enc.fill_(bias)
        made.W_dec.copy_(writes)
    return made


def axes(first: int, count: int) -> Tensor:
    return torch.eye(D)[first : first + count]


def three(undone: bool) -> dict[str, Part]:
    """Sources in the first block, targets in the last; the one between may undo it, twice over."""
    random = torch.Generator().manual_seed(1)
    mixes = torch.randn(TARGETS, SOURCES, generator=random)
    reads = mixes @ axes(8, SOURCES)
    between = torch.zeros(SOURCES, D)
    if undone:  # what it passes on is 2 (input scale) / (scale 0.5) times what it reads
        between = axes(8, SOURCES)
        reads = reads - 2 * SCALE * 0.5 / 2 * mixes @ axes(16, SOURCES)
    parts = [
        part(0, 10 * axes(0, SOURCES), 0, axes(8, SOURCES)),
        part(1, between, 1, axes(16, SOURCES)),
        part(2, reads, 20, torch.zeros(TARGETS, D)),
    ]
    return {one.spec.name: one for one in parts}


def true_edges(subject: Subject, parts: dict[str, Part]) -> list[Edge]:
    every = torch.arange(SOURCES), torch.arange(TARGETS)
    written = written_by(subject, parts["L0.mlp"], every[0])
    weight = virtual_weights(subject, parts["L2.mlp"], written, every[1]).tolist()
    return [
        Edge("L0.mlp", s, "L2.mlp", t, weight[t][s]) for s in range(SOURCES) for t in range(TARGETS)
    ]


def effects(undone: bool, wrong: bool = False) -> VirtualEffects:
    subject, parts = by_hand(), three(undone)
    edges = true_edges(subject, parts)
    if wrong:
        drawn = torch.randn(len(edges), generator=torch.Generator().manual_seed(0)).tolist()
        edges = [edge._replace(weight=w) for edge, w in zip(edges, drawn, strict=True)]
    return virtual_weight_effects(subject, parts, edges, ROWS, SETTINGS)


def test_where_all_is_linear_every_effect_is_foreseen_and_by_wrong_weights_is_not() -> None:
    found = effects(undone=False)
    assert len(found.pairs) == SOURCES * TARGETS
    for (_, _, whose), one in found.agreements(FEW).items():
        if whose == "own":
            assert one.sign.value == 1
            assert one.rank.value > 0.999
            assert one.slope.value == pytest.approx(1, abs=2e-3)
            assert one.r2.value > 0.9999
        else:
            assert abs(one.rank.value) < 0.5
            assert one.sign.value < 0.75
            assert one.r2.value < 0.3
    # By hand: an activation is 10 * 2 / SCALE, what it writes twice that, read at 2 / SCALE.
    edge = found.pairs[0]
    weight = three(False)["L2.mlp"].W_enc[edge.target, 8 + edge.source].item()
    by_hand = -weight * 2 / SCALE * (10 * 2 / SCALE) / 0.5
    assert found.measured["total", "activation"][0] == pytest.approx(by_hand, rel=1e-2)


def test_what_is_undone_on_the_way_is_foreseen_directly_and_wrong_in_all() -> None:
    every = effects(undone=True).agreements(FEW)
    for what in ("pre", "activation"):
        assert every["direct", what, "own"].rank.value > 0.999
        total = every["total", what, "own"]
        assert total.rank.value < -0.99
        assert total.sign.value == 0
        assert total.slope.value == pytest.approx(-1, abs=0.02)


def test_a_wrong_graph_comes_out_bad() -> None:
    for (_, _, whose), one in effects(undone=False, wrong=True).agreements(FEW).items():
        if whose == "own":
            assert abs(one.rank.value) < 0.4
            assert one.r2.value < 0.2
            assert one.sign.value < 0.7


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma2", "gpt2"])
def test_along_attention_and_through_every_familys_norms(family: str) -> None:
    subject = family_subject(family)
    subject.model.double()  # small changes of small numbers
    parts = {}
    specs = part_specs(subject, latents=2, k_mlp=8, k_attention=64, k_query=0, k_key=64, skip=False)
    for seed, spec in enumerate(specs):
        made = bump(Part(spec.model_copy(update={"input_scale": 1.7})), 1.0, seed=seed)
        made.unit_decoder_()
        with torch.no_grad():
            if place_of(spec.name).writes_stream:  # so little that norms hardly move
                made.W_dec.mul_(0.005)
            if spec.name.startswith("L1"):
                made.b_enc.add_(50)  # all could be active, whatever is silenced
        parts[spec.name] = made
    table = [Edge("L0.mlp", s, to, s, 0.0) for to in ("L1.attn", "L1.k") for s in range(64)] * 6
    edges = retargeted(subject, parts, table)
    found = virtual_weight_effects(subject, parts, edges, tiny_rows(12, 12, vocab=90), FAMILY)
    every = found.agreements(FEW)
    assert every["direct", "pre", "own"].rank.value > 0.9
    assert every["direct", "pre", "own"].r2.value > 0.9
    assert every["direct", "pre", "own"].slope.value == pytest.approx(1, abs=0.1)
    assert abs(every["direct", "pre", "partner"].rank.value) < 0.5
    # Nothing lies between the first MLP and the keys after it but the norm of what Gemma writes.
    keys = np.array([edge.target_part == "L1.k" for edge in found.pairs])
    assert 20 < keys.sum() < len(keys) - 20
    direct, total = (found.measured[route, "pre"][keys] for route in ("direct", "total"))
    apart = np.abs(total - direct).max() / np.abs(direct).max()
    assert apart < (0.3 if family == "gemma2" else 1e-4)


def test_edges_of_tokens_and_logits_are_left_out_of_the_table() -> None:
    table = {
        "source": np.array(["token/3", "L0.mlp/1@abcdef", "L0.mlp/2@abcdef"], dtype=object),
        "target": np.array(["L1.mlp/4@123456", "logit/5", "L1.attn/0@123456"], dtype=object),
        "weight": np.array([1.0, 2.0, -3.0], dtype=np.float32),
    }
    assert feature_edges(table) == [Edge("L0.mlp", 2, "L1.attn", 0, -3.0)]


def test_what_cannot_be_tested_is_refused() -> None:
    subject, parts = by_hand(), three(False)
    edges = true_edges(subject, parts)
    with pytest.raises(UserError, match="all parts"):
        virtual_weight_effects(subject, {"L0.mlp": parts["L0.mlp"]}, edges, ROWS, SETTINGS)
    silent = torch.full_like(ROWS, FIRST + SOURCES + 5)
    silent[:, 0] = ROWS[0, 0]
    with pytest.raises(UserError, match="fires on these rows"):
        virtual_weight_effects(subject, parts, edges, silent, SETTINGS)
    much = SETTINGS.model_copy(update={"least": 1000})
    with pytest.raises(UserError, match="give more rows"):
        virtual_weight_effects(subject, parts, edges, ROWS, much)


def test_gated_latents_are_counted_by_size_and_refused_in_a_sentence() -> None:
    subject = tiny_llama()
    specs = part_specs(
        subject, latents=2, k_mlp=8, k_attention=8, k_query=0, k_key=0, skip=False, gated=True
    )
    parts = {spec.name: bump(Part(spec), 1.0, seed=n) for n, spec in enumerate(specs)}
    for part in parts.values():
        if part.b_gate is not None:
            part.b_gate.data.fill_(-6.0)  # shut, so that what passes is a little below zero
    rows = tiny_rows(12, 12, vocab=subject.vocab_size)
    fired = firing(DecompiledNetwork(subject, parts), parts, rows)
    assert all((one.mass >= 0).all() and (one.mass > 0).any() for one in fired.values())
    table = [Edge("L0.attn", n, "L0.mlp", n, 1.0) for n in range(specs[0].n_latents)]
    with pytest.raises(UserError, match="gated latents"):
        virtual_weight_effects(subject, parts, table, rows, FAMILY)
