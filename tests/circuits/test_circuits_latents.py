"""Circuits whose nodes are latents and errors."""

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import tiny_llama

from unweave.circuits.contrasts import Contrast
from unweave.circuits.latents import (
    CodedSite,
    mean_values,
    node_effects,
    node_metrics,
    of_one_length,
    ranked,
    strongest,
)
from unweave.circuits.running import plain_metrics
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.subject import Subject

LAST, EARLY = "blocks.1.resid_post", "blocks.0.resid_mid"


def same_length(count: int) -> list[Contrast]:
    return list(of_one_length(contrasts(3 * count, 64)))


def random_dictionary(site: str, *, layer_norm: bool = False) -> Dictionary:
    torch.manual_seed(0)
    port = (Port(site=site, width=32),)
    spec = DictionarySpec(
        name="random", reads=port, writes=port, n_latents=48, activation=TopK(k=6),
        layer_norm=layer_norm,
    )  # fmt: skip
    made = Dictionary(spec).requires_grad_(False).eval()
    for weight in (made.encoder.W_enc, made.W_dec, made.b_dec):
        weight.normal_()
    made.W_dec.div_(made.W_dec.norm(dim=1, keepdim=True))
    return made


def coded(site: str, *, layer_norm: bool = False) -> CodedSite:
    return CodedSite(site, random_dictionary(site, layer_norm=layer_norm))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_llama()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_latents_and_error_add_up_to_what_is_there(layer_norm: bool) -> None:
    one = coded(LAST, layer_norm=layer_norm)
    x = torch.randn(3, 5, 32)
    values = one.values(x)
    back = values.code @ one.coder.directions() + values.error
    torch.testing.assert_close(back, x)
    assert (values.code != 0).sum(-1).max() == 6
    if not layer_norm:
        flat = x.flatten(0, 1)
        nothing = one.coder.decode(SparseCode.from_dense(torch.zeros(15, 48)))
        by_latents = (one.coder(flat) - nothing).unflatten(0, (3, 5))
        torch.testing.assert_close(x - values.error, by_latents, rtol=0, atol=1e-4)


def test_all_nodes_are_the_network_and_none_the_mean(subject: Subject) -> None:
    some = same_length(6)
    sites = [coded(EARLY), coded(LAST)]
    means = mean_values(subject, sites, some, batch=4)
    effects = node_effects(subject, sites, some, steps=2)
    none = strongest(effects, ranked(effects), 0)
    everything = [one.complement for one in none]
    found = node_metrics(subject, sites, some, [everything, none], means, batch=4)
    torch.testing.assert_close(found[0], plain_metrics(subject, some)[0], rtol=0, atol=1e-4)
    tokens = torch.tensor([side for c in some for side in (c.clean, c.corrupt)])
    x = subject.run(tokens, capture=[LAST]).sites[LAST].mean(0, keepdim=True)
    logits = subject.run(
        tokens[::2],
        replace={LAST: lambda t: torch.cat([t[:, :1], x[:, 1:].expand_as(t[:, 1:])], 1)},
    ).logits[:, -1]
    expected = logits[:, 5] - logits[:, [6, 7]].mean(1)
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-4)
    assert (found[0] - found[1]).abs().mean() > 0.1


def test_effects_add_up_to_what_the_other_prompt_changes(subject: Subject) -> None:
    """At the last site everything goes by; whatever the dictionary, nothing is lost."""
    some = same_length(6)
    sites = [coded(LAST), coded(LAST, layer_norm=True), CodedSite(LAST, coordinates(32))]
    effects = node_effects(subject, sites, some, steps=40)
    clean, corrupt = plain_metrics(subject, some).mean(1).tolist()
    for one in effects:
        total = (one.latents.sum() + one.error.sum()).item()
        assert total == pytest.approx(corrupt - clean, abs=0.05 * abs(corrupt - clean) + 1e-3)
    assert effects[2].error.abs().max() < 1e-4
    assert effects[0].error.abs().max() > 1e-3


def test_effects_are_those_of_changing_one_node(subject: Subject) -> None:
    some = same_length(4)
    one = CodedSite(LAST, coordinates(32))
    (effects,) = node_effects(subject, [one], some, steps=10)
    ends = [
        subject.run(torch.tensor(side), capture=[LAST]).sites[LAST]
        for side in ([c.clean for c in some], [c.corrupt for c in some])
    ]
    plain, exact = plain_metrics(subject, some)[0].mean(), torch.zeros(32)
    for latent in range(32):
        x = ends[0].clone()
        x[:, -1, latent] = ends[1][:, -1, latent]
        logits = subject.run(torch.tensor([c.clean for c in some]), replace={LAST: x}).logits
        exact[latent] = (logits[:, -1, 5] - logits[:, -1, [6, 7]].mean(1)).mean() - plain
    both = torch.stack([effects.latents[-1], exact])
    assert torch.corrcoef(both)[0, 1] > 0.9
    assert effects.latents[:-1].abs().max() < 1e-6


def test_the_strongest_nodes_are_taken_over_all_sites(subject: Subject) -> None:
    some = same_length(4)
    sites = [coded(EARLY), CodedSite(LAST, coordinates(32))]
    effects = node_effects(subject, sites, some, steps=2)
    order = ranked(effects)
    circuit = strongest(effects, order, 7)
    assert sum(int(c.latents.sum() + c.error.sum()) for c in circuit) == 7
    kept = torch.cat([e.latents[c.latents] for e, c in zip(effects, circuit, strict=True)]).abs()
    left = torch.cat([e.latents[~c.latents] for e, c in zip(effects, circuit, strict=True)]).abs()
    assert kept.min() >= left.max()
    assert len(strongest(effects, order, 0)) == 2


def test_only_prompts_of_the_usual_length_can_be_laid_over_each_other() -> None:
    some = [*contrasts(7, 64), *contrasts(1, 64, longest=5)]
    assert {len(c.clean) for c in of_one_length(some)} == {8}
    assert not list(of_one_length([]))
