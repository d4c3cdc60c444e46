"""A part on disk and in memory: equal after a round trip, and refused when it does not fit."""

import json
import pickle

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError


def spec(**changes):
    plain = {
        "name": "L0.mlp", "input_site": "blocks.0.mlp.in", "output_site": "blocks.0.mlp.out",
        "d_in": 8, "d_out": 6, "n_latents": 20, "k": 3, "input_scale": 0.37, "output_scale": 2.9,
    }  # fmt: skip
    return PartSpec(**plain | changes)


def random_part(**changes) -> Part:
    part = Part(spec(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in part.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return part


@pytest.fixture
def saved(tmp_path):
    random_part(skip=True, heads=2).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_the_output_is_the_docstrings_formula(skip, heads):
    part = random_part(skip=skip, heads=heads)
    x = torch.randn(5, 7, 8)
    want = torch.zeros(5, 7, 6, dtype=torch.float64)
    w = {name: tensor.double() for name, tensor in part.state_dict().items()}
    for place in [(i, j) for i in range(5) for j in range(7)]:
        read = 0.37 * x[place].double()
        pre = torch.stack(
            [
                w["W_enc"][i] @ read.view(heads, -1)[i * heads // 20] + w["b_enc"][i]
                for i in range(20)
            ]
        )
        on = pre.argsort(descending=True)[:3]
        total = sum(pre[i].clamp_min(0) * w["W_dec"][i] for i in on) + w["b_dec"]
        if skip:
            total = total + w["W_skip"] @ read
        want[place] = total / 2.9
    torch.testing.assert_close(part(x).double(), want, rtol=1e-4, atol=1e-5)


def test_encode_gives_the_code_of_run_even_where_gradients_are_on():
    part = random_part()
    x = torch.randn(11, 8)
    _, code = part.run(x)
    encoded = part.encode(x)
    assert torch.equal(encoded.latent, code.latent)
    assert torch.equal(encoded.value, code.value)
    assert not encoded.value.requires_grad


def test_the_parts_gradient_is_its_slope():
    part = random_part(skip=True, heads=2).double()
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in part.named_parameters()]

    def output(x, *weights):
        return torch.func.functional_call(part, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x, *part.parameters()), eps=1e-7, atol=1e-5)


def test_unit_decoder_keeps_directions_and_leaves_zero_rows_alone():
    part = random_part()
    with torch.no_grad():
        part.W_dec[4] = 0
    before = part.W_dec.detach().clone()
    part.unit_decoder_()
    norms = part.W_dec.detach().norm(dim=1)
    assert norms[4] == 0
    keep = torch.arange(20) != 4
    torch.testing.assert_close(norms[keep], torch.ones(19))
    torch.testing.assert_close(part.W_dec * before.norm(dim=1, keepdim=True), before)


@pytest.mark.parametrize("skip", [False, True])
def test_a_saved_part_comes_back_byte_for_byte(tmp_path, skip):
    part = random_part(skip=skip)
    part.save(tmp_path / "a")
    again = Part.load(tmp_path / "a")
    assert again.spec == part.spec
    again.save(tmp_path / "b")
    for name in ("weights.safetensors", "spec.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    x = torch.randn(9, 8)
    assert torch.equal(again(x), part(x))
    assert torch.equal(again.start_output, part.start_output)


def edit_weights(folder, **changes):
    path = folder / "weights.safetensors"
    save_file({k: v for k, v in (load_file(path) | changes).items() if v is not None}, path)


def edit_spec(folder, **changes):
    path = folder / "spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W_dec": torch.zeros(20, 7)}, "W_dec"),
        ({"W_dec": torch.zeros(6, 20)}, "W_dec"),
        ({"b_enc": None}, "b_enc"),
        ({"W_skip": None}, "W_skip"),
        ({"surprise": torch.zeros(1)}, "surprise"),
        ({"b_dec": torch.full((6,), float("nan"))}, "b_dec"),
        ({"W_enc": torch.full((20, 4), float("inf"))}, "W_enc"),
        ({"W_enc": torch.zeros(20, 4, dtype=torch.float64)}, "W_enc"),
        ({"b_enc": torch.zeros(20, dtype=torch.float16)}, "b_enc"),
        ({"b_enc": torch.zeros(20, dtype=torch.int32)}, "b_enc"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, changes, words):
    edit_weights(saved, **changes)
    with pytest.raises(UserError) as refused:
        Part.load(saved)
    assert words in str(refused.value)
    assert str(saved / "weights.safetensors") in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flavour": "sweet"}, "flavour"),
        ({"kind": "gated"}, "kind"),
        ({"k": 21}, "k=21"),
        ({"k": "3"}, "k"),
        ({"k": 0}, "k"),
        ({"heads": 3}, "3 heads"),
        ({"d_in": -8}, "d_in"),
        ({"input_scale": 0.0}, "input_scale"),
        ({"output_scale": -1.0}, "output_scale"),
        ({"n_latents": 10**30, "heads": 1}, "weights.safetensors"),
    ],
)
def test_an_impossible_description_is_named(saved, changes, words):
    edit_spec(saved, **changes)
    with pytest.raises(UserError) as refused:
        Part.load(saved)
    assert words in str(refused.value)
    assert str(saved) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_description_that_is_no_json_is_named(saved):
    (saved / "spec.json").write_bytes(b"\x80\x04 hello")
    with pytest.raises(UserError, match=r"spec\.json"):
        Part.load(saved)


def test_a_description_of_other_sizes_does_not_take_their_memory(saved):
    edit_spec(saved, n_latents=2**40, heads=1)
    with pytest.raises(UserError, match="shape"):
        Part.load(saved)


@pytest.mark.parametrize("name", ["weights.safetensors", "spec.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(UserError, match=name):
        Part.load(saved)


class Bomb:
    """Does harm when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_a_pickle_offered_as_weights_is_never_opened(saved):
    path = saved / "weights.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="pickle"):
        Part.load(saved)
    torch.save({"W_enc": Bomb()}, path)
    with pytest.raises(UserError, match="pickle"):
        Part.load(saved)


def test_truncated_weights_are_named(saved):
    path = saved / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        Part.load(saved)


def test_a_spec_that_cannot_be_is_refused_at_once():
    for changes in ({"k": 21}, {"heads": 3}, {"d_in": 7, "heads": 2}, {"n_latents": 0}, {"x": 1}):
        with pytest.raises(ValidationError):
            spec(**changes)
    with pytest.raises(ValidationError):
        spec().k = 5
    assert spec(k=20).k == 20
