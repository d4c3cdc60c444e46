"""Every encoder: chosen latents are those of its dense form, and gradients are slopes."""

import pytest
import torch
from torch import Tensor

from unweave.dictionaries import dictionary as dictionary_module
from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.linear import Linear
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.dictionaries.encoder.switch import Switch
from unweave.dictionaries.kernels.select import TILE_ROWS, largest

D, LATENTS, K = 6, 24, 3


def filled(dictionary: Dictionary, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in dictionary.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.6)
    dictionary.unit_decoder_()
    return dictionary


def made(encoder, activation=None, **changes) -> Dictionary:
    spec = autoencoder("s", D, LATENTS, activation or TopK(k=K), encoder=encoder, **changes)
    return filled(Dictionary(spec).double())


def inputs(rows: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D, generator=generator, dtype=torch.float64)


def dense_pre(encoder: torch.nn.Module, x: Tensor) -> Tensor:
    """Pre-activations written out from the papers' formulas, without the encoder's own code."""
    if hasattr(encoder, "W_router"):
        p = ((x - encoder.b_router) @ encoder.W_router.T).softmax(1)
        expert = torch.arange(LATENTS) // (LATENTS // encoder.experts)
        own = p.argmax(1)[:, None] == expert[None]
        raw = x @ encoder.W_enc.T + encoder.b_enc
        return torch.where(own, raw * p[:, expert], -torch.inf)
    if hasattr(encoder, "W_left"):
        u = torch.relu(x @ encoder.W_left.T + encoder.b_left)
        v = torch.relu(x @ encoder.W_right.T + encoder.b_right)
        m, n = encoder.left, encoder.right
        pairs = [
            (h * m + i, h * n + j) for h in range(encoder.heads) for i in range(m) for j in range(n)
        ]
        return torch.stack([(u[:, i] * v[:, j]).sqrt() for i, j in pairs], 1)
    up = x @ encoder.W_enc.T + encoder.b_enc
    if hasattr(encoder, "W_gate"):
        gate = x @ encoder.W_gate.T + encoder.b_gate
        return gate * gate.sigmoid() * torch.relu(up)
    return up


ENCODERS = pytest.mark.parametrize(
    "encoder", [Linear(), GLU(), Switch(experts=3), Kronecker(left=2, right=3)]
)


@ENCODERS
@pytest.mark.parametrize("training", [False, True])
def test_chosen_latents_are_those_of_the_dense_form(encoder, training):
    dictionary = made(encoder).train(training)
    x = inputs(TILE_ROWS + 5)
    with torch.no_grad():
        code = dictionary.run(x).sparse_code
        pre = dense_pre(dictionary.encoder, x)
        top = torch.relu(pre.topk(K, dim=1).values)
    torch.testing.assert_close(
        code.value.view(len(x), K).sort(descending=True).values, top.sort(descending=True).values
    )
    at = torch.relu(pre[code.support.row, code.support.latent])
    torch.testing.assert_close(code.value, at)


@ENCODERS
@pytest.mark.parametrize("activation", [TopK(k=K), BatchTopK(k=K), AbsTopK(k=K)])
def test_choosing_in_bfloat16_trains_in_float32(encoder, activation, monkeypatch):
    if encoder.kind == "switch" and activation.kind != "topk":
        return
    monkeypatch.setattr(dictionary_module, "product_dtype", lambda: torch.bfloat16)
    dictionary = made(encoder, activation).float().train()
    x = inputs(200).float()
    passed = dictionary.run(x)
    assert passed.y.dtype == passed.sparse_code.value.dtype == torch.float32
    passed.y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dictionary.parameters())
    exact = dictionary.double().eval() if activation.kind != "batchtopk" else dictionary.double()
    wanted = exact.run(x.double()).sparse_code.dense() != 0
    found = passed.sparse_code.dense() != 0
    assert (wanted == found).double().mean() > 0.98


@pytest.mark.parametrize("encoder", [Linear(), GLU(), Kronecker(left=2, right=3)])
def test_the_dense_form_is_the_formula(encoder):
    dictionary = made(encoder)
    x = inputs(30)
    torch.testing.assert_close(dictionary.encoder.dense(x), dense_pre(dictionary.encoder, x))


@pytest.mark.parametrize(
    ("encoder", "activation"),
    [
        (Linear(), TopK(k=K)),
        (Linear(), AbsTopK(k=K)),
        (GLU(), TopK(k=K)),
        (Switch(experts=3), TopK(k=K)),
        (Kronecker(left=2, right=3), TopK(k=K)),
        (Pursuit(), TopK(k=K)),
    ],
)
def test_gradients_are_slopes_with_respect_to_everything(encoder, activation):
    pre_bias = encoder.kind == "pursuit"
    decoder = "normalised" if pre_bias else "unit"
    dictionary = made(encoder, activation, pre_bias=pre_bias, decoder=decoder)
    names = [name for name, _ in dictionary.named_parameters()]
    x = inputs(5, seed=7).requires_grad_()
    weight = torch.randn(5, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return (weight * torch.func.functional_call(dictionary, named, (x,))).sum()

    leaves = [p.detach().clone().requires_grad_() for p in dictionary.parameters()]
    assert torch.autograd.gradcheck(loss, (x, *leaves), eps=1e-7, atol=1e-4, fast_mode=True)


def test_a_glu_latent_pair_holds_a_gated_neuron_exactly():
    """silu(g.x) (u.x) d = silu(g.x) relu(u.x) d - silu(g.x) relu(-u.x) d, each alone: l0 is two."""
    dictionary = Dictionary(
        autoencoder("s", D, 2, AbsTopK(k=2), encoder=GLU(), decoder="free")
    ).double()
    g, u, d = inputs(3, seed=5)
    with torch.no_grad():
        dictionary.encoder.W_gate.copy_(torch.stack([g, g]))
        dictionary.encoder.W_enc.copy_(torch.stack([u, -u]))
        dictionary.W_dec.copy_(torch.stack([d, -d]))
    x = inputs(50)
    neuron = torch.nn.functional.silu(x @ g) * (x @ u)
    torch.testing.assert_close(dictionary(x), neuron[:, None] * d)


def test_a_token_goes_to_one_expert_and_balance_is_one_when_even():
    dictionary = made(Switch(experts=4), TopK(k=K))
    x = inputs(2000)
    code = dictionary.encode(x)
    expert = code.support.latent.view(-1, K) // (LATENTS // 4)
    on = code.value.view(-1, K) > 0
    assert (expert == dictionary.encoder.route(x).argmax(1)[:, None])[on].all()
    with torch.no_grad():
        dictionary.encoder.W_router.zero_()
        signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        dictionary.encoder.W_router[:, :2] = 100 * signs  # a quadrant each
        dictionary.encoder.b_router.zero_()
        balanced = dictionary.encoder.balance(x)
        dictionary.encoder.b_router[:2] = -100.0  # everybody to the first
        collapsed = dictionary.encoder.balance(x)
    assert balanced.item() == pytest.approx(1, abs=0.02)
    assert collapsed.item() == pytest.approx(4, rel=1e-3)


def test_more_places_than_an_expert_has_latents_stay_empty():
    dictionary = made(Switch(experts=4), TopK(k=10))
    code = dictionary.encode(inputs(40))
    assert code.l0() <= LATENTS / 4
    assert torch.isfinite(code.value).all()
    assert torch.isfinite(dictionary(inputs(40))).all()


def test_pursuit_takes_the_best_direction_of_what_is_left():
    dictionary = made(Pursuit(), pre_bias=True)
    x = inputs(40)
    code = dictionary.encode(x).dense()
    D_rows = dictionary.decoder().detach()
    for row, found in zip(x - dictionary.b_dec.detach(), code, strict=True):
        residual, wanted = row.clone(), torch.zeros(LATENTS, dtype=torch.float64)
        for _ in range(K):
            best = (D_rows @ residual).argmax()
            strength = torch.relu(D_rows[best] @ residual)
            wanted[best] += strength
            residual = residual - strength * D_rows[best]
        torch.testing.assert_close(found, wanted)


def test_a_latent_that_a_pursuit_takes_twice_counts_once():
    dictionary = Dictionary(
        autoencoder("s", 2, 3, TopK(k=3), encoder=Pursuit(), pre_bias=True)
    ).double()
    narrow = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        dictionary.W_dec.copy_(narrow)
    x = torch.tensor([[1.0, 0.55]], dtype=torch.float64)
    code = dictionary.encode(x)
    distinct = int((code.dense() != 0).sum())
    assert code.l0() == distinct
    assert int(code.fired().sum()) == distinct
    torch.testing.assert_close(dictionary.decode(code), dictionary(x))


@pytest.mark.parametrize("k", [1, K, 40])
def test_routed_rows_meet_the_latents_of_their_expert_alone_and_lose_nothing(k):
    dictionary = made(Switch(experts=3), TopK(k=min(k, LATENTS)))
    x = inputs(150)
    scorer = dictionary.encoder.scorer(x.dtype)
    assert torch.bincount(dictionary.encoder.route(x).argmax(1), minlength=3).gt(0).all()
    multiplied: list[int] = []
    groups = [
        group._replace(scorer=lambda tile, g=group: multiplied.append(len(tile)) or g.scorer(tile))
        for group in scorer._groups
    ]
    scorer._groups = groups
    chosen = largest(scorer, x, LATENTS, k)
    assert sum(multiplied) == len(x), "each row was multiplied by one expert"
    everything = scorer(x)
    size = min(k, LATENTS // 3)
    wanted = everything.topk(size, dim=1)
    own = chosen.support.latent.view(-1, size)
    assert torch.equal(own.sort(dim=1).values, wanted.indices.sort(dim=1).values), (
        "of all, the best"
    )
    picked = everything.gather(1, own)
    torch.testing.assert_close(chosen.score.view(-1, size), picked)


def test_a_kronecker_code_has_gradients_for_the_factors_of_chosen_latents_alone():
    dictionary = made(Kronecker(left=2, right=3), TopK(k=K))
    x = inputs(20)
    passed = dictionary.run(x)
    passed.y.square().sum().backward()
    sparse = {name: p.grad.clone() for name, p in dictionary.encoder.named_parameters()}
    dictionary.zero_grad()
    pre = dictionary.encoder.dense(x)
    code = passed.code
    latents = torch.zeros_like(pre)
    mask = latents.index_put((code.support.row, code.support.latent), torch.ones_like(code.value))
    y = dictionary._offset((pre * mask) @ dictionary.W_dec, x)
    y.square().sum().backward()
    for name, parameter in dictionary.encoder.named_parameters():
        torch.testing.assert_close(sparse[name], parameter.grad)
