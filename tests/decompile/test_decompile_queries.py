"""Queries and keys from features: exact where nothing is lost, in every family and every mode."""

import pytest
import torch
from tiny_subject import FAMILIES, START, bump, family_subject, tiny_llama, tiny_rows

from unweave.decompile.modes import (
    clean_logits,
    original_logits,
    propagated_logits,
    single_logits,
)
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs
from unweave.subject.generation import continue_rows
from unweave.subject.key_values import cache_argument, roomy_cache
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import ExactAttentionOutput, ExactProjection


def signed_part(spec, block, start):
    """Every coordinate of the input as two latents, x_i and -x_i: all of them lose nothing."""
    eye = torch.eye(spec.d_in)
    part = Part(spec.model_copy(update={"n_latents": 2 * spec.d_in, "k": 2 * spec.d_in}))
    W = block(eye) - block.b_out
    with torch.no_grad():
        part.W_enc.copy_(torch.cat([eye, -eye]))
        part.W_dec.copy_(torch.cat([W, -W]))
        part.b_dec.copy_(block.b_out)
        part.start_output.copy_(start)
    return part


def exact_block(subject, name):
    weights, groups = subject.attention_weights(int(name[1])), subject.n_heads // subject.n_kv_heads
    if name.endswith("q"):
        return ExactProjection(weights.W_Q, weights.b_Q)
    bias = None if weights.b_K is None else weights.b_K[::groups]
    return ExactProjection(weights.W_K[::groups], bias)


def lossless(subject):
    """Parts for all queries and keys."""
    specs = part_specs(subject, latents=1, k_mlp=1, k_attention=1, k_query=1, k_key=1, skip=False)
    specs = [spec for spec in specs if spec.name[-1] in "qk"]
    first = torch.full((1, 1), START)
    starts = subject.run(first, capture=[spec.output_site for spec in specs]).sites
    return {
        spec.name: signed_part(
            spec, exact_block(subject, spec.name), starts[spec.output_site].flatten()
        )
        for spec in specs
    }


def at_most(parts, k):
    """The same latents, of which fewer may be active."""
    made = {}
    for name, part in parts.items():
        made[name] = Part(part.spec.model_copy(update={"k": k}))
        made[name].load_state_dict(part.state_dict())
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_exact_where_nothing_is_lost_and_wrong_where_much_is(family):
    subject = family_subject(family)
    parts, rows = lossless(subject), tiny_rows(3, vocab=97)
    sites = [f"blocks.{layer}.attn.pattern" for layer in range(2)]
    before = subject.run(rows, capture=sites).sites

    def worst(placed):
        with subject.swapped(stand_ins(placed.values(), AtStart())), torch.no_grad():
            after = subject.run(rows, capture=sites).sites
        return max((after[site] - before[site]).abs().max().item() for site in sites)

    assert worst(parts) < 1e-5
    assert worst(at_most(parts, 8)) > 1e-3  # of 32 coordinates


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def inexact(subject):
    """Queries, keys and outputs that are all a little wrong."""
    exact = lossless(subject)
    parts = {name: bump(part, 0.05, seed=i) for i, (name, part) in enumerate(exact.items())}
    specs = part_specs(subject, latents=2, k_mlp=1, k_attention=6, skip=False)
    outputs = [bump(Part(spec), 0.2) for spec in specs if spec.name.endswith("attn")]
    return parts | {part.spec.name: part for part in outputs}


def test_exact_copies_change_nothing_in_any_mode(subject):
    rows = tiny_rows(3)
    placed = dict(stand_ins(lossless(subject).values(), AtStart()))
    for layer in range(2):
        placed[f"L{layer}.attn"] = ExactAttentionOutput(subject.attention_weights(layer))
    original = original_logits(subject, rows)
    for logits in (
        propagated_logits(subject, placed, rows),
        clean_logits(subject, placed, rows),
        *(logits for _, logits in single_logits(subject, placed, rows)),
    ):
        torch.testing.assert_close(logits, original, atol=1e-4, rtol=1e-4)


def test_clean_gives_attention_the_patterns_that_features_make_of_the_clean_stream(
    subject, inexact
):
    rows = tiny_rows(3)
    placed = stand_ins(inexact.values(), AtStart())
    sites = [f"blocks.{layer}.attn.{site}" for layer in range(2) for site in ("in", "q", "k")]
    with torch.no_grad():
        seen, outputs = subject.run(rows, capture=sites).sites, {}
        for layer in range(2):
            block = f"blocks.{layer}.attn"
            made = {
                f"{block}.{kind}": placed[f"L{layer}.{kind}"](seen[f"{block}.in"]).view_as(
                    seen[f"{block}.{kind}"]
                )
                for kind in ("q", "k")
            }
            z = subject.run(rows, capture=[f"{block}.z"], replace=made).sites[f"{block}.z"]
            outputs[f"{block}.out"] = placed[f"L{layer}.attn"](z)
        wanted = subject.run(rows, replace=outputs).logits
    found = clean_logits(subject, placed, rows)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (found - propagated_logits(subject, placed, rows)).abs().max() > 1e-3


def test_single_replaces_one_and_holds_those_before_it(subject, inexact):
    rows = tiny_rows(3)
    placed = stand_ins(inexact.values(), AtStart())
    found = dict(single_logits(subject, placed, rows))
    assert list(found) == ["L0.q", "L0.k", "L0.attn", "L1.q", "L1.k", "L1.attn"]
    for name, logits in found.items():
        alone = propagated_logits(subject, {name: placed[name]}, rows)
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_the_start_token_has_the_stored_query_and_key(subject, inexact):
    network = DecompiledNetwork(subject, inexact)
    out = network.subject.run(tiny_rows(2), capture=["blocks.0.attn.q", "blocks.0.attn.k"]).sites
    for kind in ("q", "k"):
        first = out[f"blocks.0.attn.{kind}"][:, 0].flatten(1)
        assert torch.equal(first, inexact[f"L0.{kind}"].start_output.expand(2, -1))


def test_writing_with_a_cache_equals_writing_without(subject, inexact):
    network = DecompiledNetwork(subject, inexact)
    prompt = torch.tensor([[START, 7, 9]])
    written, row = continue_rows(network.subject, prompt, 8)[0], prompt
    for _ in range(8):
        with torch.no_grad():
            row = torch.cat([row, network(row)[:, -1:].argmax(-1)], dim=1)
    assert written == row[0, 3:].tolist()
    model = network.skeleton
    cache = {cache_argument(model): roomy_cache(model.config, 4), "use_cache": True}
    with torch.no_grad():
        model(row[:, :3], **cache)
        stepped = model(row[:, 3:4], **cache).logits[:, -1]
        torch.testing.assert_close(stepped, network(row[:, :4])[:, -1], rtol=1e-4, atol=1e-5)


def test_codes_count_queries_and_keys(subject, inexact):
    codes = DecompiledNetwork(subject, inexact).codes(tiny_rows(2))
    assert set(codes) == set(inexact)
    assert codes["L0.q"].value.shape == (2 * 16, 64)
