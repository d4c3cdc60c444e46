"""Multiply-adds counted by formula are those that torch counts while the networks run."""

import math

import pytest
import torch
from tiny_subject import bump, family_subject, tiny_rows
from torch.utils.flop_counter import FlopCounterMode

from unweave.decompile.counting import explicit_work, factored_work, original_work
from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs

LENGTH = 40
ROWS = tiny_rows(1, LENGTH, vocab=97)


def _bag(weight, indices, offsets, *args, out_val=None, **kwargs):
    return 2 * indices.numel() * weight.shape[1]


def _product(a, b, *args, out_val=None, **kwargs):
    # A complex product is four real ones.
    return 8 * out_val.numel() if out_val.is_complex() else 0


def _raw(count):
    count._get_raw = True
    return count


COUNTED = {
    torch.ops.aten._embedding_bag: _raw(_bag),
    torch.ops.aten._embedding_bag_forward_only: _raw(_bag),
    torch.ops.aten.mul: _raw(_product),
}
"""What torch's own table lacks."""


def multiply_adds(run):
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2 / LENGTH


def parts_of(subject, *, k=6, **how):
    specs = part_specs(
        subject, latents=1, k_mlp=6, k_attention=5, k_query=k, k_key=k, skip=False, **how
    )
    return {spec.name: bump(Part(spec), 0.3, seed=seed) for seed, spec in enumerate(specs)}


def patterns(subject):
    """Attention that is written out as products, which torch counts on every machine."""
    return [f"blocks.{layer}.attn.pattern" for layer in range(subject.n_layers)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "gemma2"])
def test_the_original(family):
    subject = family_subject(family)
    counted = multiply_adds(lambda: subject.run(ROWS, capture=patterns(subject)))
    # Angles of rotary positions are a product in these models, of half a head's width a token.
    angles = counted - sum(original_work(subject, LENGTH).values())
    assert 0 <= angles <= subject.d_head / 2


@pytest.mark.parametrize(("family", "gated"), [("llama", True), ("gpt2", False)])
def test_the_factored_form_but_for_decoders_which_are_no_products_to_torch(family, gated):
    subject = family_subject(family)
    parts = parts_of(subject, gated=gated)
    network = DecompiledNetwork(subject, parts)
    counted = multiply_adds(lambda: network.subject.run(ROWS, capture=patterns(subject)))
    work = factored_work(subject, parts, LENGTH)
    # Decoders: k rows of W_dec a token.
    assert work.pop("decoders") == sum(p.spec.k * p.spec.d_out for p in parts.values())
    assert 0 <= counted - sum(work.values()) <= subject.d_head / 2
    if family == "gpt2":  # one projection for all three still runs whole
        assert work["queries"] == original_work(subject, LENGTH)["queries"]


@pytest.mark.parametrize(("family", "gated"), [("llama", True), ("gpt2", False), ("gemma2", False)])
def test_the_explicit_form(family, gated):
    subject = family_subject(family)
    # All query and key features are on everywhere, so that the formula's bound is reached.
    parts = parts_of(subject, k=subject.d_model, gated=gated)
    network = ExplicitNetwork(subject, parts)
    counted = multiply_adds(lambda: network(ROWS))
    missed = sum(explicit_work(subject, parts, LENGTH, queries=LENGTH).values()) - counted
    # Where one writer alone is on, joining the 5 + 2 of the first part is no product to torch.
    assert 0 <= missed < 8


def test_features_that_never_fire_are_counted_all_the_same():
    subject = family_subject("llama")
    parts = parts_of(subject)
    network = ExplicitNetwork(subject, parts)
    counted = multiply_adds(lambda: network(ROWS))
    work = explicit_work(subject, parts, LENGTH, queries=LENGTH)
    certain = sum(count for name, count in work.items() if name not in ("products", "adds"))
    assert certain + 0.4 * (work["products"] + work["adds"]) < counted <= sum(work.values())


def test_a_step_costs_less_than_a_pass_and_more_the_more_it_sees():
    subject = family_subject("llama")
    parts = parts_of(subject)
    one, few, many = (sum(explicit_work(subject, parts, seen).values()) for seen in (1, 8, 40))
    assert one < few < many
    whole = explicit_work(subject, parts, 40, queries=40)
    assert whole["products"] < explicit_work(subject, parts, 40)["products"]
    assert math.isclose(whole["reads"], explicit_work(subject, parts, 40)["reads"])
