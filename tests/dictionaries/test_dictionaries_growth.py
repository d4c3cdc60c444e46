"""A grown dictionary: what it was, and new latents where it had none."""

import pytest
import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.switch import Switch
from unweave.dictionaries.growth import grow
from unweave.errors import UserError

D, OLD, NEW = 10, 24, 60
X = torch.randn(400, D, generator=torch.Generator().manual_seed(1)) + 1
PORTS = [Port(site=site, width=D, scale=0.5) for site in ("in", "out")]


def random(spec: DictionarySpec) -> Dictionary:
    dictionary = Dictionary(spec)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in dictionary.parameters():
            weight += torch.randn(weight.shape, generator=generator)
    dictionary.unit_decoder_()
    return dictionary


KINDS = {
    "topk": autoencoder("s", D, OLD, TopK(k=2), pre_bias=True),
    "nested": autoencoder("s", D, OLD, TopK(k=2), nesting=(8, OLD)),
    "batchtopk": autoencoder("s", D, OLD, BatchTopK(k=2), layer_norm=True),
    "jumprelu": autoencoder("s", D, OLD, JumpReLU(threshold=0.5), decoder="free"),
    "gated": autoencoder("s", D, OLD, Gated()),
    "glu": autoencoder("s", D, OLD, ReLU(), encoder=GLU()),
    "transcoder": DictionarySpec(
        reads=PORTS[:1], writes=PORTS[1:], n_latents=OLD, activation=TopK(k=2), skip=True
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_the_same_wherever_no_new_latent_is_chosen(kind):
    old = random(KINDS[kind]).eval()
    y = X.flip(1) if kind == "transcoder" else None
    grown = grow(old, NEW, X, y, height=3.0)
    assert grown.n_latents == NEW
    code = grown.encode(X)
    new = torch.zeros(len(X), dtype=torch.bool)
    new[code.support.row[(code.support.latent >= OLD) & (code.value != 0)]] = True
    with torch.no_grad():
        before, after = old(X), grown(X)
        torch.testing.assert_close(after[~new], before[~new], atol=1e-5, rtol=1e-5)
        assert new.any()
        assert ((after - before)[new].abs().amax(1) > 1e-4).float().mean() > 0.9
        grown.W_enc[OLD:] = 0
        grown.b_enc[OLD:] = -1
        torch.testing.assert_close(grown(X), before, atol=1e-5, rtol=1e-5)
    assert grown.spec.nesting == ((8, OLD, NEW) if kind == "nested" else ())


def test_new_latents_stand_where_the_old_ones_miss_something():
    """Of sixteen planted directions the old dictionary knows eight."""
    g = torch.Generator().manual_seed(3)
    true = torch.linalg.qr(torch.randn(24, 24, generator=g)).Q[:16]
    there = (torch.rand(600, 16, generator=g) < 0.1).float()
    x = (there * (1 + torch.rand(600, 16, generator=g))) @ true
    old = Dictionary(autoencoder("s", 24, 8, TopK(k=4)))
    with torch.no_grad():
        old.W_enc.copy_(true[:8])
        old.W_dec.copy_(true[:8])
    grown = grow(old, 108, x)
    share = (grown.W_dec[8:] @ true.T).square()
    assert share[:, 8:].sum(1).mean() > 0.97
    assert (grown.W_dec[8:] @ true[8:].T).amax(0).min() > 0.9, "each of the eight is found"
    assert torch.equal(grown.W_dec[:8], true[:8])
    torch.testing.assert_close(grown.W_enc[8:].norm(dim=1), torch.full((100,), 0.5))

    def missing(dictionary: Dictionary) -> float:
        return (dictionary(x) - x).square().sum().item()

    with torch.no_grad():
        assert missing(grown) < 0.7 * missing(old)
    again, other = grow(old, 108, x), grow(old, 108, x, seed=1)
    assert torch.equal(again.W_dec, grown.W_dec)
    assert not torch.equal(other.W_dec, grown.W_dec)


def test_what_cannot_be_grown_is_refused():
    old = random(KINDS["topk"])
    with pytest.raises(UserError, match="has 24 latents already"):
        grow(old, OLD, X)
    with pytest.raises(UserError, match="the vectors that it reads alone"):
        grow(old, NEW, X, X)
    with pytest.raises(UserError, match="as many vectors read as written"):
        grow(random(KINDS["transcoder"]), NEW, X)
    switch = random(autoencoder("s", D, OLD, TopK(k=2), encoder=Switch(experts=4)))
    with pytest.raises(UserError, match="switch encoder"):
        grow(switch, NEW, X)
