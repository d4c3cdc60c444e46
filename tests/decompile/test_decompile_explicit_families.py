"""Both executions agree in every family: norms that centre, learned positions, windows, caps."""

import pytest
import torch
from tiny_subject import FAMILIES, START, bump, family_subject, tiny_rows

from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.explicit.plain import refuse_unless_plain
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.pipeline.fitting import part_specs

VOCAB, LENGTH = 97, 14
"""Rows are longer than the windows, 4 and 8 positions."""


def random_parts(subject, *, patterns=True, gated=False):
    """Parts unlike the subject's own blocks, and unlike these at a start token."""
    k = 4 if patterns else 0
    specs = part_specs(
        subject, latents=1, k_mlp=5, k_attention=4, k_query=k, k_key=k, skip=False, gated=gated
    )
    parts = {spec.name: bump(Part(spec), 0.3, seed=seed) for seed, spec in enumerate(specs)}
    for part in parts.values():
        part.start_output.normal_(generator=torch.Generator().manual_seed(1))
    return parts


def logits_of(subject, parts, rows):
    with torch.no_grad():
        return DecompiledNetwork(subject, parts)(rows)


def assert_both_agree(subject, parts, rows):
    wanted, network = logits_of(subject, parts, rows), ExplicitNetwork(subject, parts)
    torch.testing.assert_close(network(rows), wanted, atol=1e-4, rtol=1e-4)
    past, found = None, []
    for tokens in rows.split([6, 1, 1, 3, 3], dim=1):
        logits, past = network.step(tokens, past)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-4, rtol=1e-4)
    assert past.get_seq_length() == LENGTH
    return network, wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_passes_and_steps_equal_the_factored_form(family):
    subject = family_subject(family)
    rows = tiny_rows(3, LENGTH, vocab=VOCAB)
    rows[0, 9] = START  # past the first position it is a token like any other
    _, wanted = assert_both_agree(subject, random_parts(subject), rows)
    assert wanted.std() > 0.1
    # The test can fail: what attention sees matters.
    other = rows.clone()
    other[:, 8] = 7
    assert (logits_of(subject, random_parts(subject), other) - wanted)[:, 9:].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama-bias", "gpt2", "gpt-neox", "qwen3", "gemma2"])
def test_patterns_of_the_subjects_own_are_made_in_features_too(family):
    subject = family_subject(family)
    rows = tiny_rows(2, LENGTH, vocab=VOCAB)
    parts = random_parts(subject, patterns=False)
    assert not any(name[-1] in "qk" for name in parts)
    assert_both_agree(subject, parts, rows)
    one = {n: p for n, p in random_parts(subject).items() if n != "L1.k"}
    assert_both_agree(subject, one, rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_gated_latents_are_two_readers(family):
    subject = family_subject(family)
    rows = tiny_rows(2, LENGTH, vocab=VOCAB)
    rows[:, 0] = 7
    parts = random_parts(subject, gated=True)
    network, wanted = assert_both_agree(subject, parts, rows)
    assert set(network.weights.gates) == {"L0.mlp", "L1.mlp"}
    with torch.no_grad():
        parts["L0.mlp"].b_gate.add_(1.0)  # the test can fail
    assert (ExplicitNetwork(subject, parts)(rows) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt2", "learned positions"),
        ("gemma2", "another norm"),
        ("qwen3", "norms its heads"),
        ("mistral", "windows"),
    ],
)
def test_what_is_more_than_sums_and_scores_is_told_from_what_is_not(family, why):
    subject = family_subject(family)
    with pytest.raises(UserError, match=why):
        refuse_unless_plain(ExplicitNetwork(subject, random_parts(subject)))


def test_only_whole_networks_of_plain_latents_are_plain():
    subject = family_subject("llama")
    refuse_unless_plain(ExplicitNetwork(subject, random_parts(subject)))
    for why, parts in {
        "gated": random_parts(subject, gated=True),
        "without sparse queries": random_parts(subject, patterns=False),
    }.items():
        with pytest.raises(UserError, match=why):
            refuse_unless_plain(ExplicitNetwork(subject, parts))
