"""ReLU and JumpReLU dictionaries trained on the latents that matter, against all of them."""

import pytest
import torch

from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.penalties.l0 import L0
from unweave.training.penalties.pointwise import Tanh
from unweave.training.penalties.weighted import Penalty, Steering

JUMPS = [
    JumpReLU(threshold=0.9, bandwidth=0.3),
    JumpReLU(threshold=0.9, bandwidth=0.3, gradient_to="all"),
]


def dictionary(activation, *, bias: float, dtype=torch.float64, **changes) -> Dictionary:
    found = Dictionary(autoencoder("s", 24, 160, activation, decoder="free", **changes)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (found.W_enc, found.W_dec):
            weight.copy_(torch.randn(weight.shape, generator=generator) / 24**0.5)
        found.b_enc.fill_(bias)
    return found


def gradients(found: Dictionary, penalties, *, all_latents: bool, target: bool = True):
    x = torch.randn(90, 24, generator=torch.Generator().manual_seed(1)).to(found.W_dec.dtype)
    found.zero_grad()
    passed = found.run(x, target=x if target else None, all_latents=all_latents)
    fit = passed.misfit
    if fit is None:
        fit = (passed.y - x).square().sum(1).mean()
    charged = Steering(penalties).charge(found, passed, done=1.0)
    (fit + charged.total).backward()
    grads = {name: p.grad.clone() for name, p in found.named_parameters() if p.grad is not None}
    return passed, (fit + charged.total).detach(), grads


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("nesting", [(), (40, 160)])
@pytest.mark.parametrize("activation", [ReLU(), *JUMPS])
def test_the_few_have_the_loss_and_the_gradients_of_all(activation, nesting, target):
    jump = activation.kind == "jumprelu"
    forms = (Tanh(), L0()) if jump else (Tanh(),)
    penalties = tuple(Penalty(form=form, weight=0.3, warmup=0) for form in forms)
    found = dictionary(activation, bias=-0.6 if jump else -1.6, nesting=nesting)
    few, loss, grads = gradients(found, penalties, all_latents=False, target=target)
    every, wanted_loss, wanted = gradients(found, penalties, all_latents=True, target=target)
    assert few.latents is None, "they were few"
    assert every.latents is not None
    torch.testing.assert_close(few.sparse_code.dense(), every.latents)
    torch.testing.assert_close(loss, wanted_loss)
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, msg=name)
    if jump:
        assert wanted[
            "log_threshold" if "log_threshold" in wanted else "activation.log_threshold"
        ].any()


def test_many_are_worked_on_together():
    found = dictionary(ReLU(), bias=0.0)
    assert gradients(found, (), all_latents=False)[0].latents is not None


def test_rounded_scores_lose_no_latent_that_counts():
    found = dictionary(JUMPS[0], bias=-0.6, dtype=torch.float32)
    few, *_ = gradients(found, (), all_latents=False)
    every, *_ = gradients(found, (), all_latents=True)
    missed = (few.sparse_code.dense() - every.latents).abs()
    assert (missed > 1e-4).float().mean() < 1e-3
    assert few.latents is None
