"""Values that key features tell are learnt from them; values that they do not tell are not."""

import torch

from unweave.dictionaries.attention.value_gating import (
    fit_linear,
    move,
    random_gating,
    unexplained,
)
from unweave.training.attention.value_gating import GatingSettings, learn_gating

ROWS, N, KEYS, KV, HEADS, D = 40, 8, 6, 2, 4, 4


def world(*, told: bool):
    generator = torch.Generator().manual_seed(0)
    keys = (torch.rand(ROWS, N, KEYS, generator=generator) < 0.3).float()
    source = keys if told else (torch.rand(keys.shape, generator=generator) < 0.3).float()
    # The first value feature needs two key features at once, as no linear map does.
    both = (source[..., 0] * source[..., 1])[..., None]
    values = torch.cat([source, 2 * both], -1) @ torch.randn(KEYS + 1, KV * D, generator=generator)
    pattern = torch.rand(ROWS, HEADS, N, N, generator=generator).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    values = values.unflatten(-1, (KV, D))
    return keys, pattern, values, move(pattern, values)


def test_moving_shares_values_among_the_heads_of_a_group():
    _, pattern, values, z = world(told=True)
    want = sum(pattern[3, 2, 5, s] * values[3, s, 1] for s in range(N))
    assert torch.allclose(z[3, 5, 2], want, atol=1e-5)


def test_values_that_keys_tell_are_learnt_and_others_are_not():
    settings = GatingSettings(steps=250, rows=20, lr=0.02, penalty=1e-4)
    left = {}
    for told in (True, False):
        keys, pattern, values, z = world(told=told)
        gating = random_gating(KEYS, 24, values[:30].flatten(0, 1), seed=1)
        learn_gating(gating, keys[:30], pattern[:30], z[:30], seed=0, settings=settings)
        with torch.no_grad():
            left[told] = unexplained(move(pattern[30:], gating.values(keys[30:])), z[30:])
        weights, offset = fit_linear(keys[:30].flatten(0, 1), values[:30].flatten(0, 1))
        linear = torch.einsum("rsb,bhd->rshd", keys[30:], weights) + offset
        left[told, "linear"] = unexplained(move(pattern[30:], linear), z[30:])
    assert left[True] < 0.05
    assert left[True] < left[True, "linear"] < 0.4
    assert left[False] > 0.6
