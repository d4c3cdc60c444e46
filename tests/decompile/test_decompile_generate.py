"""The decompiled network writes: with a cache as without, by its own means and by transformers'."""

import pytest
import torch
from tiny_subject import FAMILIES, START, bump, family_subject, tiny_llama, tiny_rows

from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.pipeline.fitting import part_specs

VOCAB = 97


def random_network(subject):
    """Parts for everything, unlike the subject's own blocks and unlike at a start token."""
    specs = part_specs(subject, latents=2, k_mlp=5, k_attention=4, k_query=4, k_key=4, skip=False)
    parts = {spec.name: bump(Part(spec), 0.3, seed=seed) for seed, spec in enumerate(specs)}
    for part in parts.values():
        part.start_output.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return DecompiledNetwork(subject, parts)


@pytest.mark.parametrize("first", ["start", "other"])
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_the_whole_pass(family, first):
    network = random_network(family_subject(family))
    rows = tiny_rows(3, vocab=VOCAB)
    if first == "other":
        rows[:, 0] = 7
    rows[0, 9] = START  # past the first position it is a token like any other
    with torch.no_grad():
        wanted = network(rows)
    past, found = None, []
    for tokens in rows.split([5, 1, 1, 3, 6], dim=1):  # windows of 4 and 8 positions are left
        logits, past = network.step(tokens, past)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-4, rtol=1e-4)
    # The test can fail: without what was seen before, the rest is another text.
    alone = network.step(rows[:, 5:]).logits
    assert (alone - wanted[:, 5:]).abs().max() > 1e-2


@pytest.fixture(scope="module")
def network():
    return random_network(tiny_llama())


def test_it_writes_what_whole_passes_write(network):
    rows = tiny_rows(3, 6)
    found = network.generate(rows, max_new=10)
    wanted = rows
    with torch.no_grad():
        for _ in range(10):
            wanted = torch.cat([wanted, network(wanted)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, wanted)
    assert len(set(found[:, 6:].flatten().tolist())) > 3


def test_transformers_own_generate_writes_the_same(network):
    rows = tiny_rows(3, 6)
    written = network.skeleton.generate(
        rows, attention_mask=torch.ones_like(rows), max_new_tokens=10, min_new_tokens=10,
        do_sample=False, eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(written, network.generate(rows, max_new=10))


def test_chance_is_the_seeds(network):
    rows = tiny_rows(2, 4)
    one, again, other = (
        network.generate(rows, max_new=12, temperature=1.0, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_rows_that_would_outgrow_the_context_are_refused(network):
    with pytest.raises(UserError, match="exceed the context"):
        network.generate(tiny_rows(1, 60), max_new=10)
