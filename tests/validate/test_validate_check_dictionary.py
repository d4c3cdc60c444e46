"""The battery passes every dictionary we have and catches one broken for each of its checks."""

import pytest
import torch
from torch import nn

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.dictionaries.encoder.switch import Switch
from unweave.validate.check_dictionary import check_dictionary, hold_dictionary

WIDTH, LATENTS = 6, 96


def coder_of(activation, **changes):
    return autoencoder("here", WIDTH, LATENTS, activation, **changes)


def between(activation, widths_in, widths_out, **changes):
    def ports(widths):
        return tuple(Port(site=f"s{i}.{w}", width=w, scale=0.5 + i) for i, w in enumerate(widths))

    return DictionarySpec(
        reads=ports(widths_in),
        writes=ports(widths_out),
        n_latents=LATENTS,
        activation=activation,
        **changes,
    )


ACTIVATIONS = {
    "relu": ReLU(),
    "topk": TopK(k=3),
    "batchtopk": BatchTopK(k=3),
    "abstopk": AbsTopK(k=3),
    "jumprelu": JumpReLU(threshold=0.2),
    "jumprelu-all": JumpReLU(threshold=0.2, bandwidth=0.5, gradient_to="all"),
    "gated": Gated(),
    "prolu": ProLU(),
}
NEST = (24, 48, LATENTS)
SPECS = {name: coder_of(activation) for name, activation in ACTIVATIONS.items()}
SPECS |= {
    f"{name}-{kind}": coder_of(ACTIVATIONS[name], decoder=kind, pre_bias=True)
    for name in ("relu", "topk")
    for kind in ("free", "normalised")
}
SPECS |= {
    f"nested-{name}": coder_of(ACTIVATIONS[name], nesting=NEST)
    for name in ("relu", "topk", "batchtopk", "jumprelu")
}
SPECS |= {
    "layer-norm": coder_of(TopK(k=3), layer_norm=True),
    "skip": between(TopK(k=3), [5], [7], skip=True),
    "skip-relu-nested": between(ReLU(), [5], [7], skip=True, nesting=NEST),
    "transcoder": between(BatchTopK(k=3), [5], [7]),
    "crosscoder": between(ReLU(), [3, 4], [3, 4], decoder="free", norm="sum"),
    "cross-layer": between(JumpReLU(threshold=0.2), [5], [4, 4, 4], decoder="free"),
    "glu-topk": coder_of(TopK(k=3), encoder=GLU()),
    "glu-relu": coder_of(ReLU(), encoder=GLU()),
    "glu-batchtopk": coder_of(BatchTopK(k=3), encoder=GLU()),
    "switch": coder_of(TopK(k=3), encoder=Switch(experts=4)),
    "kronecker-topk": coder_of(TopK(k=3), encoder=Kronecker(left=4, right=3)),
    "kronecker-batchtopk": coder_of(BatchTopK(k=3), encoder=Kronecker(left=4, right=3)),
    "kronecker-relu": coder_of(ReLU(), encoder=Kronecker(left=4, right=3)),
    "pursuit": coder_of(TopK(k=3), encoder=Pursuit(), pre_bias=True),
}


def filled(spec: DictionarySpec, kind=Dictionary) -> Dictionary:
    """Every weight at random, so that no bias or gate is idle; always the same."""
    dictionary = kind(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if name == "activation.log_threshold":
                weight += 0.1 * drawn
            else:
                weight.copy_(drawn * (0.4 if weight.ndim > 1 else 0.1))
    if spec.decoder == "unit":
        dictionary.unit_decoder_()
    return dictionary


def failures(make) -> dict[str, str]:
    found = check_dictionary(make)
    return {one.check: one.detail for one in found if one.verdict == "failed"}


@pytest.mark.parametrize("name", SPECS)
def test_every_dictionary_keeps_its_promises(name: str) -> None:
    hold_dictionary(lambda: filled(SPECS[name]))


def test_a_pursuit_that_comes_back_to_a_latent_adds_up() -> None:
    spec = coder_of(TopK(k=12), encoder=Pursuit(), pre_bias=True)
    assert "code_is_ragged" not in failures(lambda: filled(spec))
    dictionary = filled(spec)
    x = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))
    code = dictionary.encode(x)
    assert (code.value == 0).any()
    residual = x - dictionary.b_dec
    for _ in range(12):
        best = (residual @ dictionary.W_dec.T).max(1)
        residual = residual - best.values.relu()[:, None] * dictionary.W_dec[best.indices]
    torch.testing.assert_close(dictionary.decode(code), (x - residual).detach())


def test_few_checks_are_skipped_and_each_says_why() -> None:
    for name, most in {"topk": 0, "batchtopk": 0, "relu": 2, "jumprelu": 1, "skip": 5}.items():
        skipped = [f for f in check_dictionary(lambda n=name: filled(SPECS[n])) if f.detail]
        assert len(skipped) <= most, (name, skipped)
        assert all(found.verdict == "skipped" for found in skipped)


class ForwardOfItsOwn(Dictionary):
    def forward(self, x):
        return super().forward(x) * 1.01


class OneRowAtATime(Dictionary):
    def forward(self, x):
        y = super().forward(x)
        return y if x.ndim == 2 else y.flip(0)


class SinglePrecision(Dictionary):
    def forward(self, x):
        return super().forward(x.float()).float()


class CutsAGradient(Dictionary):
    def run(self, x):
        self.encoder.b_enc.requires_grad_(False)
        out = super().run(x)
        self.encoder.b_enc.requires_grad_(True)
        return out._replace(y=out.y + self.b_dec.detach() - self.b_dec)


class Forgets(Dictionary):
    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.register_buffer("moved", torch.ones(()), persistent=False)

    def encode(self, x):
        return super().encode(x + self.moved)


class Spendthrift(Dictionary):
    def encode(self, x):
        code = super().encode(x)
        return SparseCode.from_topk(
            torch.arange(5).expand(len(x), 5), code.value.new_ones(len(x), 5), self.n_latents
        )


class TakesTheWeakest(Dictionary):
    def encode(self, x):
        pre = self.encoder.dense(x).detach()
        value, latent = pre.topk(3, dim=1, largest=False)
        return SparseCode.from_topk(latent, value.relu(), self.n_latents)


class Negative(Dictionary):
    def encode(self, x):
        code = super().encode(x)
        return code._replace(value=-code.value)


class DenseInside(Dictionary):
    def run(self, x):
        pre = self.encoder.dense(x)
        latents = torch.where(pre >= pre.topk(3, dim=1).values[:, -1:], pre.relu(), 0.0)
        return super().run(x)._replace(y=latents @ self.W_dec + self.b_dec)


class DenseBackward(Dictionary):
    def run(self, x):
        out = super().run(x)
        return out._replace(y=_ThroughADense.apply(out.y, self.n_latents))


class _ThroughADense(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, n):
        ctx.n = n
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return g + g.new_zeros(len(g), ctx.n).sum(1, keepdim=True), None


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (ForwardOfItsOwn, "forward_is_encode_and_decode"),
        (OneRowAtATime, "forward_keeps_leading_axes"),
        (SinglePrecision, "float64_stays_float64"),
        (CutsAGradient, "gradients_are_slopes"),
        (Spendthrift, "chosen_are_as_many_as_promised"),
        (TakesTheWeakest, "strongest_are_chosen"),
        (Negative, "signs_are_as_promised"),
        (DenseInside, "nothing_dense_is_created"),
        (DenseBackward, "nothing_dense_is_created"),
    ],
)
def test_a_broken_dictionary_is_caught(broken, check: str) -> None:
    assert check in failures(lambda: filled(coder_of(TopK(k=3)), broken))


def test_what_is_not_saved_is_caught() -> None:
    assert "saved_is_loaded" in failures(lambda: filled(coder_of(TopK(k=3)), Forgets))


def test_decoding_without_what_is_needed_is_caught() -> None:
    class Careless(Dictionary):
        def decode(self, code):
            return code.dense() @ self.W_dec.detach()

    found = failures(lambda: filled(SPECS["skip"], Careless))
    assert "without the input" in found["forward_is_encode_and_decode"]


def test_a_batch_that_keeps_too_many_is_caught() -> None:
    def make():
        dictionary = filled(coder_of(BatchTopK(k=3)))
        dictionary.activation.k = 4
        return dictionary

    assert "chosen_are_as_many_as_promised" in failures(make)


def test_a_threshold_that_is_not_respected_is_caught() -> None:
    class Low(nn.Module):
        threshold = torch.tensor(0.2)

        def forward(self, pre, b_enc):
            return pre * (pre > 0.1)

    def make():
        dictionary = filled(coder_of(JumpReLU(threshold=0.2)))
        dictionary.activation = Low()
        return dictionary

    assert "strongest_are_chosen" in failures(make)


def test_a_broken_kernel_under_every_dictionary_is_caught(monkeypatch) -> None:
    from unweave.dictionaries.kernels import ragged

    right = ragged.over_rows
    monkeypatch.setattr(
        ragged, "over_rows", lambda w, rows, support: 1.01 * right(w, rows, support)
    )
    assert set(failures(lambda: filled(SPECS["topk"]))) == {"gradients_are_slopes"}
