"""When patterns come from features, and when they are the subject's own."""

import pytest
from tiny_subject import tiny_llama

from unweave.pipeline.fitting import part_specs
from unweave.pipeline.settings import DecompileSettings


def test_features_make_patterns_in_a_narrow_stream_and_not_in_a_wide_one():
    narrow, wide = tiny_llama(), tiny_llama(hidden_size=320)
    assert wide.d_model > 256
    chosen = DecompileSettings().resolved(narrow)
    assert (chosen.k_query, chosen.k_key, chosen.local.pattern_lr) == (16, 16, None)
    chosen = DecompileSettings().resolved(wide)
    assert (chosen.k_query, chosen.k_key) == (0, 0)
    assert chosen.local.pattern_lr < chosen.local.lr


@pytest.mark.parametrize("hidden", [32, 320])
def test_what_is_asked_for_is_what_is_done(hidden):
    subject = tiny_llama(hidden_size=hidden)
    chosen = DecompileSettings(k_query=0, k_key=5).resolved(subject)
    assert (chosen.k_query, chosen.k_key) == (0, 5)


def test_parts_stand_in_the_order_of_computation_and_none_where_no_latent_may_be_active():
    def names(**active):
        specs = part_specs(tiny_llama(), latents=2, k_mlp=3, k_attention=3, skip=False, **active)
        return [spec.name for spec in specs if spec.name.startswith("L1")]

    assert names() == ["L1.attn", "L1.mlp"]
    assert names(k_key=2) == ["L1.k", "L1.attn", "L1.mlp"]
    assert names(k_query=2, k_key=2) == ["L1.q", "L1.k", "L1.attn", "L1.mlp"]


def test_widths_are_those_of_the_projections_groups_of_heads_included():
    specs = part_specs(
        tiny_llama(), latents=2, k_mlp=3, k_attention=3, k_query=3, k_key=3, skip=False
    )
    sizes = {spec.name: (spec.d_in, spec.d_out) for spec in specs[:3]}
    assert sizes == {"L0.q": (32, 32), "L0.k": (32, 16), "L0.attn": (32, 32)}
