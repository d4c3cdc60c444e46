"""Recursive attribution: exact in every family, and the way back that was built in."""

import pytest
import torch
from hand_attention import hand_dictionary, hand_subject, repeated_rows
from test_circuits_attention_direct import pre_activations, random_dictionary
from tiny_subject import FAMILIES, family_subject, tiny_llama, tiny_rows
from torch import Tensor

from unweave.circuits.attention.direct import direct_attribution
from unweave.circuits.attention.reading import Places
from unweave.circuits.attention.recursive import FIRST, RecursiveAttribution, recursive_attribution
from unweave.circuits.attention.upstream import Upstream
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.errors import UserError
from unweave.subject import Subject

SITE = "blocks.1.attn.z"
POSITION, LATENT = torch.tensor([3, 11, 11, 7]), torch.tensor([0, 5, 6, 19])


def attributed(subject: Subject, row: Tensor, **given: object) -> RecursiveAttribution:
    dictionary = random_dictionary(subject, pre_bias=True)
    return recursive_attribution(subject, SITE, dictionary, row, POSITION, LATENT, **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written_upstream_adds_up_to_the_pre_activation(family: str) -> None:
    subject = family_subject(family)
    row = tiny_rows(1, 12, vocab=97)[0]
    z = subject.run(row[None], capture=[SITE]).sites[SITE][0]
    pre = pre_activations(random_dictionary(subject, pre_bias=True), z)[POSITION, LATENT]
    one_of_two = torch.tensor([[False, True, False, True]])
    for follow in (None, one_of_two, torch.ones(1, 4, dtype=torch.bool)):
        found = attributed(subject, row, follow=follow)
        torch.testing.assert_close(found.total, pre, rtol=0, atol=1e-4)
        assert found.mlps.abs().max() > 1e-4
        assert found.heads.abs().max() > 1e-4
        assert not found.embed[0, 4:].any()


def test_through_three_blocks_whichever_heads_are_followed() -> None:
    subject = tiny_llama(num_hidden_layers=4)
    row, site = tiny_rows(1)[0], "blocks.3.attn.z"
    port = (Port(site=site, width=32),)
    spec = DictionarySpec(reads=port, writes=port, n_latents=20, activation=TopK(k=4))
    dictionary = Dictionary(spec).requires_grad_(False).eval()
    dictionary.encoder.W_enc.normal_(generator=torch.Generator().manual_seed(0))
    pre = pre_activations(dictionary, subject.run(row[None], capture=[site]).sites[site][0])
    masks = [torch.zeros(3, 4).bool(), torch.ones(3, 4).bool(), torch.eye(4)[:3].bool()]
    totals, heads = [], []
    for follow in masks:
        found = recursive_attribution(
            subject, site, dictionary, row, POSITION, LATENT, follow=follow
        )
        totals.append(found.total)
        heads.append(found.heads[:, 0].abs().sum())
    for total in totals:
        torch.testing.assert_close(total, pre[POSITION, LATENT], rtol=0, atol=2e-4)
    assert heads[1] > heads[0], "more arrives from block 0 once later heads are followed"


def test_the_way_back_through_two_heads_is_the_one_that_was_built_in() -> None:
    """Head 1.1 reads what 0.0 copied to the position after the token: follow it, find the token."""
    subject, tokens = hand_subject(), repeated_rows(1, 8)
    dictionary = hand_dictionary(1, [(1, int(tokens[0, 4]))])
    at, latent = torch.tensor([9]), torch.tensor([0])
    near = recursive_attribution(subject, SITE, dictionary, tokens[0], at, latent)
    assert near.heads[0, 0, 0].argmax() == 5
    assert near.heads[0, 0, 1].abs().max() < 1e-4
    assert near.embed.abs().max() < 0.2 * near.heads.max(), "no token is written there"
    both = torch.ones(1, 2, dtype=torch.bool)
    far = recursive_attribution(subject, SITE, dictionary, tokens[0], at, latent, follow=both)
    assert far.embed[0].argmax() == 4
    assert far.embed[0, 4] > 0.9 * near.heads[0, 0, 0, 5]
    direct = direct_attribution(subject, SITE, dictionary, tokens, Places(at * 0, at, latent))
    torch.testing.assert_close(near.total, direct.total)
    assert direct.by_source[0].argmax() == 5, "directly, only the place in between is seen"


@pytest.mark.parametrize("site", ["blocks.0.mlp.out", "blocks.0.attn.z", "blocks.0.resid_post"])
def test_latents_upstream_and_their_error_share_all_that_arrives(site: str) -> None:
    subject, row = tiny_llama(), tiny_rows(1)[0]
    read = "blocks.0.mlp.in" if site.endswith("mlp.out") else site
    ports = [(Port(site=name, width=32, scale=1.3),) for name in (read, site)]
    spec = DictionarySpec(reads=ports[0], writes=ports[1], n_latents=48, activation=TopK(k=5))
    coder = Dictionary(spec).requires_grad_(False).eval()
    g = torch.Generator().manual_seed(0)
    for weight in (coder.encoder.W_enc, coder.W_dec):
        weight.normal_(generator=g)
    upstream = [Upstream("some", coder, read, site), Upstream("axes", coordinates(32), site, site)]
    found = attributed(subject, row, upstream=upstream)
    whole = {
        "blocks.0.mlp.out": found.mlps.sum((1, 2)),
        "blocks.0.attn.z": found.heads.sum((1, 2, 3)),
        "blocks.0.resid_post": found.total - found.offset - found.constant,
    }[site]
    for share in found.upstream.values():
        torch.testing.assert_close(share.total, whole, rtol=0, atol=1e-4)
    some, axes = found.upstream["some"], found.upstream["axes"]
    assert len(some.latent) <= 5 * 15
    assert some.position.min() == 1
    assert some.contribution.abs().max() > 1e-3
    assert some.rest.abs().max() > 1e-3, "random directions leave something over"
    assert axes.rest[:, 1:].abs().max() < 1e-4, "axes leave nothing over"
    # One latent's share is its strength times its direction's, which the axes tell by themselves.
    code = coder.encode(subject.run(row[None], capture=[read]).sites[read][0, 1:])
    entry = int(some.contribution[1].abs().argmax())
    at, which = int(some.position[entry]), int(some.latent[entry])
    values = subject.run(row[None], capture=[site]).sites[site][0, at]
    here = axes.position == at
    slope = torch.zeros(32)
    slope[axes.latent[here] % 32] = axes.contribution[1, here] / values[axes.latent[here] % 32]
    expected = float(code.dense()[at - 1, which] * coder.directions()[which] @ slope)
    assert float(some.contribution[1, entry]) == pytest.approx(expected, rel=1e-3)


def test_what_is_not_on_the_way_is_refused() -> None:
    subject, row = tiny_llama(), tiny_rows(1)[0]
    later = Upstream("later", coordinates(32), "blocks.1.mlp.out", "blocks.1.mlp.out")
    with pytest.raises(UserError, match=r"later writes .*not on the way to block 1"):
        attributed(subject, row, upstream=[later])
    with pytest.raises(UserError, match="1 layers of 4 heads"):
        attributed(subject, row, follow=torch.ones(2, 4, dtype=torch.bool))
    start = Upstream("tokens", coordinates(32), FIRST, FIRST)
    assert attributed(subject, row, upstream=[start]).upstream["tokens"].rest[:, 0].any()
