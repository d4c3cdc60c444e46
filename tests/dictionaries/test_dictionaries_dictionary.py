"""A dictionary: on disk and back, the same function in raw units, nested, folded, normalised."""

import json

import pytest
import torch
from torch import Tensor

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.code import Coder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import load_dictionary, save_dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.dictionaries.encoder.switch import Switch
from unweave.errors import UserError

D, LATENTS = 6, 24
PORTS = {"reads": (Port(site="in", width=D),), "writes": (Port(site="out", width=4),)}
SPECS = {
    "relu": autoencoder("s", D, LATENTS, ReLU(), decoder="free", pre_bias=True),
    "topk": autoencoder("s", D, LATENTS, TopK(k=4), pre_bias=True),
    "batchtopk": autoencoder("s", D, LATENTS, BatchTopK(k=4), nesting=(6, 12, LATENTS)),
    "abstopk": autoencoder("s", D, LATENTS, AbsTopK(k=4)),
    "jumprelu": autoencoder("s", D, LATENTS, JumpReLU(threshold=0.3), nesting=(6, LATENTS)),
    "gated": autoencoder("s", D, LATENTS, Gated(), pre_bias=True),
    "prolu": autoencoder("s", D, LATENTS, ProLU(), decoder="normalised"),
    "glu": autoencoder("s", D, LATENTS, TopK(k=4), encoder=GLU(), layer_norm=True),
    "switch": autoencoder("s", D, LATENTS, TopK(k=4), encoder=Switch(experts=3)),
    "kron": autoencoder("s", D, LATENTS, TopK(k=4), encoder=Kronecker(left=2, right=2)),
    "pursuit": autoencoder("s", D, LATENTS, TopK(k=4), encoder=Pursuit(), pre_bias=True),
    "skip": DictionarySpec(n_latents=LATENTS, activation=TopK(k=4), skip=True, **PORTS),
    "two sites": DictionarySpec(
        reads=(Port(site="a", width=2, scale=3.0), Port(site="b", width=4, scale=0.5)),
        writes=(Port(site="a", width=2, scale=3.0), Port(site="b", width=4, scale=0.5)),
        n_latents=LATENTS,
        activation=ReLU(),
        decoder="free",
        norm="sum",
    ),
}
EVERY = pytest.mark.parametrize("name", SPECS)


def filled(spec: DictionarySpec, seed: int = 0) -> Dictionary:
    dictionary = Dictionary(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            if name != "activation.log_threshold":
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.6)
        if "activation.threshold" in dictionary.state_dict():
            dictionary.activation.threshold.fill_(0.4)
    if spec.decoder == "unit":
        dictionary.unit_decoder_()
    return dictionary.eval()


def inputs(rows: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


@EVERY
def test_what_was_saved_is_loaded(name, tmp_path):
    dictionary = filled(SPECS[name])
    save_dictionary(dictionary, tmp_path / "d")
    loaded = load_dictionary(tmp_path / "d")
    assert loaded.spec == dictionary.spec
    assert torch.equal(loaded(inputs()), dictionary(inputs()))
    assert isinstance(loaded, Coder)
    again = tmp_path / "again"
    save_dictionary(loaded, again)
    for file in ("spec.json", "weights.safetensors"):
        assert (again / file).read_bytes() == (tmp_path / "d" / file).read_bytes()


def test_a_spoilt_dictionary_is_refused(tmp_path):
    folder = tmp_path / "d"
    save_dictionary(filled(SPECS["topk"]), folder)
    spec = folder / "spec.json"
    good = spec.read_text()
    spec.write_text(json.dumps({**json.loads(good), "n_latents": LATENTS + 1}))
    with pytest.raises(UserError, match=r"W_dec|W_enc|b_enc"):
        load_dictionary(folder)
    spec.write_text(json.dumps({**json.loads(good), "colour": "blue"}))
    with pytest.raises(UserError, match="colour"):
        load_dictionary(folder)
    spec.unlink()
    with pytest.raises(UserError, match=r"No spec\.json"):
        load_dictionary(folder)


@EVERY
def test_it_is_the_same_function_of_raw_vectors_whatever_their_scale(name):
    """Vectors a thousand times as long, scales a thousandth: the output is a thousand times it."""
    dictionary, other = filled(SPECS[name]), filled(SPECS[name])
    factor = 1024.0
    reads = [port.scale / factor for port in other.spec.reads]
    writes = [port.scale / factor for port in other.spec.writes]
    other.rescale_(reads, writes)
    torch.testing.assert_close(other(inputs() * factor), dictionary(inputs()) * factor)
    code, same = dictionary.encode(inputs()), other.encode(inputs() * factor)
    torch.testing.assert_close(same.dense(), code.dense())
    torch.testing.assert_close(other.directions(), dictionary.directions() * factor)


def test_scales_belong_to_their_sites():
    dictionary = filled(SPECS["two sites"])
    assert dictionary.input_scale.tolist() == [3.0, 3.0, 0.5, 0.5, 0.5, 0.5]
    x = inputs()
    latents = torch.relu((x * dictionary.input_scale) @ dictionary.W_enc.T + dictionary.b_enc)
    y = (latents @ dictionary.W_dec + dictionary.b_dec) / dictionary.output_scale
    torch.testing.assert_close(dictionary(x), y)
    a, b = dictionary.W_dec[:, :2], dictionary.W_dec[:, 2:]
    torch.testing.assert_close(dictionary.lengths(), a.norm(dim=1) + b.norm(dim=1))


@EVERY
def test_encode_then_decode_is_the_pass(name):
    dictionary, x = filled(SPECS[name]), inputs()
    if dictionary.spec.skip or dictionary.spec.layer_norm:
        with pytest.raises(UserError, match="needs its input"):
            dictionary.decode(dictionary.encode(x))
        return
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x)), dictionary(x))


def test_a_skip_is_a_linear_map_beside_the_latents():
    dictionary, x = filled(SPECS["skip"]), inputs()
    code = dictionary.encode(x)
    sparse = code.dense() @ dictionary.W_dec + dictionary.b_dec
    torch.testing.assert_close(dictionary(x), sparse + x @ dictionary.W_skip.T)


def test_layer_norm_is_taken_off_and_put_back():
    dictionary, x = filled(SPECS["glu"]), inputs()
    shifted = 40 * x + 7
    torch.testing.assert_close(dictionary(shifted), 40 * dictionary(x) + 7, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        dictionary.encode(shifted).value, dictionary.encode(x).value, rtol=1e-3, atol=1e-3
    )
    plain = filled(SPECS["glu"].model_copy(update={"layer_norm": False}))
    assert not torch.allclose(plain.encode(shifted).dense(), plain.encode(x).dense(), rtol=0.1)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", [ReLU(), TopK(k=7), BatchTopK(k=7)])
def test_nesting_is_every_prefix_alone(activation, skip):
    nesting = (1, 6, 7, LATENTS)
    spec = autoencoder("s", D, LATENTS, activation, nesting=nesting, skip=skip)
    dictionary, x = filled(spec).double(), inputs().double()
    passed = dictionary.run(x)
    assert passed.prefixes is not None
    dense = passed.sparse_code.dense()
    beside = dictionary.b_dec + (x @ dictionary.W_skip.T if skip else 0.0)
    for place, end in enumerate(nesting):
        naive = dense[:, :end] @ dictionary.W_dec[:end] + beside
        torch.testing.assert_close(passed.prefixes[:, place], naive)
    torch.testing.assert_close(passed.y, passed.prefixes[:, -1])
    flat = filled(spec.model_copy(update={"nesting": ()})).double()
    torch.testing.assert_close(flat.run(x).y, passed.y)


def test_the_gradients_of_nesting_are_those_of_naive_prefixes():
    spec = autoencoder("s", D, LATENTS, TopK(k=7), nesting=(6, 7, LATENTS))
    dictionary, x = filled(spec).double(), inputs().double()
    weight = torch.arange(1.0, 4.0, dtype=torch.float64)[None, :, None]
    passed = dictionary.run(x)
    dense = passed.sparse_code.dense()
    W, b = dictionary.W_dec, dictionary.b_dec
    naive = torch.stack([dense[:, :end] @ W[:end] + b for end in spec.nesting], 1)
    for told, wanted in zip(
        torch.autograd.grad(
            (weight * passed.prefixes).square().sum(), dictionary.parameters(), retain_graph=True
        ),
        torch.autograd.grad((weight * naive).square().sum(), dictionary.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(told, wanted)


@pytest.mark.parametrize("decoder", ["free", "normalised"])
@pytest.mark.parametrize("pre_bias", [False, True])
def test_lengths_are_folded_without_changing_the_function(decoder, pre_bias):
    spec = autoencoder("s", D, LATENTS, ReLU(), decoder=decoder, pre_bias=pre_bias)
    dictionary, x = filled(spec), inputs()
    before, charge = dictionary(x), dictionary.encode(x).dense() * dictionary.lengths()
    dictionary.fold_lengths_()
    torch.testing.assert_close(dictionary(x), before)
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(LATENTS))
    torch.testing.assert_close(dictionary.encode(x).dense(), charge)


def test_what_is_not_homogeneous_is_not_folded():
    with pytest.raises(UserError, match="can be folded"):
        filled(SPECS["jumprelu"]).fold_lengths_()
    with pytest.raises(UserError, match="can be folded"):
        filled(SPECS["kron"]).fold_lengths_()


def test_a_code_does_not_depend_on_its_neighbours_and_mode_is_given_back():
    for name, spec in SPECS.items():
        dictionary = filled(spec).train()
        whole = dictionary.encode(inputs(9)).dense()
        alone = torch.cat([dictionary.encode(row[None]).dense() for row in inputs(9)])
        torch.testing.assert_close(alone, whole, msg=name)
        assert dictionary.training


def test_vectors_of_another_width_are_told_apart():
    with pytest.raises(UserError, match="reads vectors of width 6 "):
        filled(SPECS["topk"])(torch.zeros(3, 7))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation": TopK(k=25)}, "k=25 exceeds its 24 latents"),
        ({"nesting": (6, 12)}, "nesting must ascend to n_latents=24"),
        ({"nesting": (6, 6, 24)}, "nesting must ascend"),
        ({"encoder": Switch(experts=5)}, "5 experts do not share 24 latents"),
        ({"encoder": Switch(experts=4), "activation": ReLU()}, "goes with a topk"),
        ({"encoder": Kronecker(left=5, right=5)}, "no multiple of 5 x 5"),
        ({"encoder": Pursuit()}, "set pre_bias"),
        ({"encoder": Pursuit(), "pre_bias": True, "decoder": "free"}, "unit decoder rows"),
        ({"encoder": GLU(), "activation": Gated()}, "needs a linear encoder"),
        ({"writes": (Port(site="o", width=3),), "pre_bias": True}, "need reads like its writes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, said):
    whole = autoencoder("s", D, LATENTS, TopK(k=4)).model_dump()
    with pytest.raises(ValueError, match=said):
        DictionarySpec.model_validate({**whole, **{k: _plain(v) for k, v in changes.items()}})


def _plain(value):
    return value.model_dump() if hasattr(value, "model_dump") else value
