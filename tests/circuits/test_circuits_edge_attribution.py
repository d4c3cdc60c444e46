"""Scores of edges beside what cutting each edge really does."""

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import family_subject, tiny_llama
from torch import Tensor

from unweave.circuits.choosing import random_scores
from unweave.circuits.contrasts import in_pairs, logit_difference
from unweave.circuits.edge_attribution import (
    AttributionSettings,
    activation_edge_scores,
    edge_scores,
    integrated_edge_scores,
    node_scores,
)
from unweave.circuits.exact_edges import exact_edge_scores
from unweave.circuits.running import COUNTERFACTUAL, Elsewhere
from unweave.circuits.weight_scores import weight_edge_scores
from unweave.circuits.wired import Wired

SMOOTH = AttributionSettings(steps=5, batch=16)


def rank_correlation(one: Tensor, other: Tensor, mask: Tensor) -> float:
    ranks = [side[mask].argsort().argsort().double() for side in (one, other)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def error(one: Tensor, truth: Tensor) -> float:
    return ((one - truth).square().sum() / truth.square().sum()).item()


def shallow(seed: int = 0, weight: float = 0.15) -> Wired:
    """One block of 19 edges, so that exact scores are few passes."""
    return Wired(tiny_llama(seed=seed, weight=weight, num_hidden_layers=1))


def test_on_a_small_change_gradients_are_the_truth() -> None:
    """The corrupted run is a hair from the clean one, so that everything is straight between."""
    wired, some = shallow(), contrasts(6, 64)
    near = _Near(1e-3)
    exact = exact_edge_scores(wired, some, elsewhere=near, settings=SMOOTH)
    for score in (edge_scores, integrated_edge_scores, activation_edge_scores):
        found = score(wired, some, elsewhere=near, settings=SMOOTH)
        assert error(found, exact) < 1e-3
        assert rank_correlation(found, exact, wired.graph.mask) > 0.99
    drawn = random_scores(wired.graph, seed=0)
    assert abs(rank_correlation(drawn, exact, wired.graph.mask)) < 0.3


class _Near(Elsewhere):
    """A part of the way from the clean to the corrupted prompt."""

    def __new__(cls, share: float) -> "_Near":
        made = super().__new__(cls)
        made.share = share
        return made

    def outputs(self, wired: Wired, pairs) -> Tensor:
        clean = wired.outputs(pairs.clean)
        return clean + self.share * (wired.outputs(pairs.corrupt) - clean)


def test_where_the_network_bends_integrated_gradients_are_nearer_to_the_truth() -> None:
    """In squares: the order of edges need not become better, and in some networks does not."""
    for seed in range(2):
        wired, some = shallow(seed), contrasts(16, 64, seed=seed)
        exact = exact_edge_scores(wired, some, settings=SMOOTH)
        once, along, drawn = (
            edge_scores(wired, some, settings=SMOOTH),
            integrated_edge_scores(wired, some, settings=SMOOTH),
            random_scores(wired.graph, seed=seed),
        )
        assert error(along, exact) < 0.6 * error(once, exact)
        for found in (once, along):
            assert rank_correlation(found, exact, wired.graph.mask) > 0.5
        assert abs(rank_correlation(drawn, exact, wired.graph.mask)) < 0.5


def test_on_the_last_edge_integrated_gradients_are_complete() -> None:
    """The last MLP is read by the logits alone: the whole change lies between the two ends."""
    wired, some = shallow(seed=1, weight=0.3), contrasts(6, 64)
    exact = exact_edge_scores(wired, some, settings=SMOOTH)[-1, -1]
    fine = AttributionSettings(steps=24, batch=16)
    along = activation_edge_scores(wired, some, settings=fine)[-1, -1]
    once = edge_scores(wired, some, settings=fine)[-1, -1]
    assert abs(along - exact) < 0.15 * abs(exact)
    assert abs(once - exact) > abs(exact)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "gemma2"])
def test_a_component_is_worth_the_sum_over_its_edges(family: str) -> None:
    """Beside the gradient at what an MLP or the embedding writes, without the graph."""
    subject = family_subject(family)
    wired, some = Wired(subject), contrasts(4, 97)
    found = node_scores(edge_scores(wired, some))
    pairs = next(in_pairs(some, 4))
    change = wired.outputs(pairs.clean) - COUNTERFACTUAL.outputs(wired, pairs)
    for source, site in ((0, "blocks.0.resid_pre"), (-1, "blocks.1.resid_post")):
        seen: list[Tensor] = []

        def probe(tensor: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(torch.zeros_like(tensor).requires_grad_())
            return tensor + seen[0]

        with torch.enable_grad():
            logits = subject.run(pairs.clean, replace={site: probe}).logits
            slope = torch.autograd.grad(logit_difference(logits, pairs).sum(), seen)[0]
        expected = (change[:, :, source] * slope).sum().item() / 4
        assert found[source].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_zeros_and_means_are_scored_too() -> None:
    wired, some = shallow(), contrasts(6, 64)
    zero = Elsewhere("zero")
    exact = exact_edge_scores(wired, some, elsewhere=zero, settings=SMOOTH)
    found = activation_edge_scores(wired, some, elsewhere=zero, settings=SMOOTH)
    assert rank_correlation(found, exact, wired.graph.mask) > 0.7


def test_batches_change_nothing() -> None:
    wired, some = shallow(), contrasts(7, 64)
    for score in (edge_scores, integrated_edge_scores):
        one = score(wired, some, settings=AttributionSettings(steps=2, batch=3))
        other = score(wired, some, settings=AttributionSettings(steps=2, batch=7))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_weights_alone_are_norms_of_products() -> None:
    subject = tiny_llama()
    graph = Wired(subject).graph
    found = graph.named(weight_edge_scores(subject))
    writes = subject.attention_weights(0).W_O[1]
    gain = subject.norm_gain(1, "attn")[:, None]
    key = subject.attention_weights(1).W_K[2] * gain
    expected = (writes @ key).norm().item()
    assert found["blocks.0.head.1", "blocks.1.kv.1.k"] == pytest.approx(expected, rel=1e-4)
    logits = (subject.mlp_weights(1).W_out @ subject.unembed().T).norm().item()
    assert found["blocks.1.mlp", "logits"] == pytest.approx(logits, rel=1e-4)
