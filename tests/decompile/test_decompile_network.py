"""The decompiled network against its own definition: with a cache, without, and in two threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_subject import START, tiny_llama, tiny_rows

from unweave.decompile.modes import original_logits, propagated_logits
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs
from unweave.subject.generation import continue_rows
from unweave.subject.key_values import cache_argument, roomy_cache
from unweave.training.stand_in import AtStart, stand_ins


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def parts(subject):
    """Random parts whose start constants are unlike anything else they write."""
    made = {}
    for seed, spec in enumerate(part_specs(subject, latents=2, k_mlp=5, k_attention=4, skip=True)):
        generator = torch.Generator().manual_seed(seed)
        part = Part(spec)
        with torch.no_grad():
            for tensor in (*part.parameters(), part.start_output):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        part.start_output.add_(2.0)
        made[spec.name] = part
    return made


def test_its_logits_are_those_of_the_propagated_splice(subject, parts):
    rows = tiny_rows(3)
    placed = stand_ins(parts.values(), AtStart())
    with torch.no_grad():
        assert torch.equal(
            DecompiledNetwork(subject, parts)(rows), propagated_logits(subject, placed, rows)
        )


def test_the_start_token_gives_the_stored_constant_and_nothing_else_does(subject, parts):
    network = DecompiledNetwork(subject, parts)
    rows = tiny_rows(2)
    sites = ["blocks.0.attn.out", "blocks.0.mlp.out"]
    out = network.subject.run(rows, capture=sites).sites
    for site, name in zip(sites, ("L0.attn", "L0.mlp"), strict=True):
        constant = parts[name].start_output
        assert torch.equal(out[site][:, 0], constant.expand(2, -1))
        assert not torch.isclose(out[site][:, 1:], constant).all(-1).any()


def test_rows_without_a_start_token_get_no_constant(subject, parts):
    network = DecompiledNetwork(subject, parts)
    rows = tiny_rows(2)
    rows[:, 0] = 5
    out = network.subject.run(rows, capture=["blocks.0.mlp.out"]).sites["blocks.0.mlp.out"]
    assert not torch.isclose(out[:, 0], parts["L0.mlp"].start_output).all(-1).any()


def test_writing_with_a_cache_equals_writing_without(subject, parts):
    network = DecompiledNetwork(subject, parts)
    prompt = torch.tensor([[START, 7, 9]])
    written = continue_rows(network.subject, prompt, 8)[0]
    row = prompt
    for _ in range(8):
        with torch.no_grad():
            row = torch.cat([row, network(row)[:, -1:].argmax(-1)], dim=1)
    assert written == row[0, 3:].tolist()
    assert len(set(written)) > 1


def test_a_start_token_later_in_a_cached_row_gets_no_constant(subject, parts):
    network = DecompiledNetwork(subject, parts)
    model, row = network.skeleton, torch.tensor([[START, 7, 9, START]])
    cache = {cache_argument(model): roomy_cache(model.config, 4), "use_cache": True}
    with torch.no_grad():
        model(row[:, :3], **cache)
        stepped = model(row[:, 3:], **cache).logits[:, -1]
        torch.testing.assert_close(stepped, network(row)[:, -1], rtol=1e-4, atol=1e-5)


def test_it_leaves_the_subject_alone(subject, parts):
    rows = tiny_rows(2)
    before = original_logits(subject, rows)
    DecompiledNetwork(subject, parts)(rows)
    assert torch.equal(original_logits(subject, rows), before)


def test_networks_in_two_threads_do_not_disturb_each_other(subject, parts):
    networks = [DecompiledNetwork(subject, parts) for _ in range(2)]
    rows = [tiny_rows(4, seed=seed) for seed in range(2)]

    def logits(index):
        with torch.no_grad():
            return [networks[index](rows[index]) for _ in range(10)]

    alone = [logits(index)[0] for index in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for index, together in enumerate(pool.map(logits, range(2))):
            assert all(torch.equal(alone[index], one) for one in together)


def test_codes_keep_their_promise_of_sparsity(subject, parts):
    codes = DecompiledNetwork(subject, parts).codes(tiny_rows(2))
    assert set(codes) == set(parts)
    for name, code in codes.items():
        assert code.value.shape == (2 * 16, parts[name].spec.k)
        assert (code.value >= 0).all()


def test_it_is_differentiable_in_its_parts(subject, parts):
    network = DecompiledNetwork(subject, parts)
    network(tiny_rows(1)).square().mean().backward()
    for name, part in parts.items():
        assert part.W_dec.grad is not None, name
        assert part.W_dec.grad.abs().sum() > 0, name
        part.zero_grad()
