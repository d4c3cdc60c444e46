"""Hidden Markov languages: their best predictor, and what is found of their states."""

import itertools
import math

import pytest
import torch

from unweave.dictionaries.baselines.linear import Coefficients, read_by
from unweave.errors import UserError
from unweave.validate.truth.states import auroc, belief_r2, state_latents
from unweave.validate.worlds.hmm import (
    HiddenMarkov,
    mess3,
    nested_hmm,
    sparse_hmm,
    topic_of,
)
from unweave.validate.worlds.hmm_network import (
    LearnerSettings,
    excess,
    stream,
    train_hmm_subject,
    untrained_hmm_subject,
)

ALL = (mess3, sparse_hmm, nested_hmm)


def golden_mean() -> HiddenMarkov:
    """From A: 0 and stay or 1 and to B, a half each; from B: 0 and back."""
    T = torch.zeros(2, 2, 2)
    T[0, 0, 0] = T[1, 0, 1] = 0.5
    T[0, 1, 0] = 1.0
    return HiddenMarkov(T, name="golden mean")


def test_a_process_whose_entropy_rate_is_known_has_it() -> None:
    process = golden_mean()
    assert process.start.tolist() == pytest.approx([2 / 3, 1 / 3])
    # From A one bit, from B none, and the state is known after the first 1.
    rate = process.entropy_rate(rows=400, positions=200)
    assert rate == pytest.approx(2 / 3 * math.log(2), abs=0.005)
    share = (2 / 3, 1 / 3)
    assert process.context_free_ce() == pytest.approx(-sum(p * math.log(p) for p in share))
    with pytest.raises(UserError, match="cannot emit"):
        process.beliefs(torch.tensor([[2, 1, 1]]))


@pytest.mark.parametrize("make", ALL)
def test_beliefs_are_bayes_rule_over_all_hidden_paths(make) -> None:
    process = make()
    rows = process.draw(3, 4, seed=5)
    n = process.n_states
    for row in range(3):
        emitted = rows.tokens[row, 1:].tolist()
        weight = torch.zeros(n, dtype=torch.float64)
        for path in itertools.product(range(n), repeat=4):
            chance = process.start[path[0]].item()
            for token, here, there in zip(emitted, path, path[1:], strict=False):
                chance *= process.T[token, here, there].item()
            weight[path[-1]] += chance
        assert rows.beliefs[row, -1].tolist() == pytest.approx((weight / weight.sum()).tolist())


@pytest.mark.parametrize("make", ALL)
def test_what_is_drawn_has_the_frequencies_that_are_predicted(make) -> None:
    process = make()
    rows = process.draw(4000, 8, seed=0)
    assert (rows.tokens[:, 0] == process.n_tokens).all()
    assert rows.tokens[:, 1:].max() < process.n_tokens
    said = process.predict(rows.beliefs)
    assert torch.allclose(said.sum(2), torch.ones(4000, 8, dtype=torch.float64))
    true = torch.bincount(rows.tokens[:, 7], minlength=process.n_tokens) / 4000
    assert (true - said[:, 6].mean(0)).abs().max() < 0.03
    hidden = torch.bincount(rows.states[:, 7], minlength=process.n_states) / 4000
    assert (hidden - rows.beliefs[:, 7].mean(0)).abs().max() < 0.03
    again = process.draw(4000, 8, seed=0)
    assert torch.equal(again.tokens, rows.tokens)
    assert not torch.equal(process.draw(4000, 8, seed=1).tokens, rows.tokens)


def test_context_is_worth_something_in_every_language() -> None:
    for make in ALL:
        process = make()
        rate = process.entropy_rate(rows=64, positions=128)
        assert rate < process.last_token_ce() - 0.05
        assert process.last_token_ce() <= process.context_free_ce() + 1e-9
    nested = nested_hmm()
    # Neither the frequencies nor the last token tell anything of a topic.
    assert nested.last_token_ce() == pytest.approx(math.log(3), abs=1e-6)
    assert topic_of(torch.tensor([0, 2, 3, 8])).tolist() == [0, 0, 1, 2]


def test_what_is_no_process_is_refused() -> None:
    with pytest.raises(UserError, match="sum to one"):
        HiddenMarkov(torch.full((2, 2, 2), 0.3), name="none")


def test_beliefs_in_vectors_are_found_and_others_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    belief = torch.rand(600, 4, generator=generator)
    written = torch.randn(4, 20, generator=generator)
    noise = 0.01 * torch.randn(600, 20, generator=generator)
    x = belief @ written + noise + 3.0
    assert belief_r2(x[:300], belief[:300], x[300:], belief[300:]) > 0.95
    dealt = belief[torch.randperm(600, generator=generator)]
    assert belief_r2(x[:300], dealt[:300], x[300:], dealt[300:]) < 0.05


def test_auroc_counts_ties_half() -> None:
    value = torch.tensor([[0.0, 3.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    truth = torch.tensor([[True], [False], [True], [False]])
    wanted = [0.75, 0.75, 0.5]
    assert auroc(value, truth)[0].tolist() == pytest.approx(wanted)


def reader(rows) -> Coefficients:
    return Coefficients(read_by(rows, torch.zeros(rows.shape[1])), rows)


def test_latents_that_are_the_states_are_found_one_to_one() -> None:
    states = torch.randint(4, (800,), generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.one_hot(states, 4).float()
    found = state_latents(reader(torch.eye(4)), x, states)
    assert found.auroc == found.f1 == found.matched_f1 == 1
    assert found.shuffled_auroc < 0.6
    assert found.shuffled_f1 < 0.5
    negative = state_latents(reader(-torch.eye(4)), x, states)
    assert negative.matched_f1 == 1


def test_one_latent_for_two_states_is_half_a_matching() -> None:
    states = torch.randint(2, (800,), generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.one_hot(states, 2).float()
    found = state_latents(reader(torch.tensor([[1.0, 1.0]])), x, states)
    assert found.auroc == pytest.approx(0.5)
    assert found.matched_f1 == pytest.approx(1 / 3, abs=0.05)
    with pytest.raises(UserError, match="at least two occur"):
        state_latents(reader(torch.eye(2)), x, torch.zeros(800, dtype=torch.long))


def test_a_network_that_has_learned_holds_the_beliefs_and_an_untrained_one_less() -> None:
    process = mess3()
    settings = LearnerSettings(positions=10, layers=1, width=32, steps=150, batch=64, lr=1e-2)
    rows, others = process.draw(300, 10, seed=11), process.draw(300, 10, seed=12)
    belief, truth = (r.beliefs[:, 1:].flatten(0, 1) for r in (rows, others))
    found = {}
    for make in (train_hmm_subject, untrained_hmm_subject):
        subject = make(process, settings, seed=3)
        x, y = (stream(subject, r, "blocks.0.resid_post") for r in (rows, others))
        found[make] = excess(subject, process, others), belief_r2(x, belief, y, truth)
    (trained, held), (blank, less) = found[train_hmm_subject], found[untrained_hmm_subject]
    assert trained.best - 0.002 < trained.ce < trained.last_token
    assert blank.ce > blank.last_token + 0.1
    assert held > 0.97
    # Mess3's belief is nearly a weighted sum of the last tokens, which random attention keeps too:
    # most of it is there before any training. What is left over has to shrink.
    assert 1 - held < 0.5 * (1 - less)
