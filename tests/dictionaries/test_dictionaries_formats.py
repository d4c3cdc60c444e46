"""Foreign folders against what the libraries that wrote them made of the same inputs.

The fixtures come from `fixtures/make.py`, run inside each library's own environment.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unweave.artifact.tensors import load_tensors
from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.formats import FORMATS, load_foreign, save_foreign
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(
    path.with_suffix("").relative_to(FIXTURES).as_posix()
    for path in FIXTURES.rglob("*.safetensors")
    if path.with_suffix("").is_dir()
)


def function(parts: Mapping[str, Dictionary], x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense latents and outputs; for layers, what all of them together write at each."""
    if x.ndim == 2:
        (one,) = parts.values()
        return one.encode(x).dense(), one(x).detach()
    y, latents = torch.zeros_like(x), []
    for layer, part in enumerate(parts.values()):
        latents.append(part.encode(x[layer]).dense())
        written = part(x[layer]).detach().unflatten(1, (len(part.spec.writes), -1))
        for later in range(written.shape[1]):
            y[layer + later] += written[:, later]
    return torch.stack(latents), y


def assert_same(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for have, want in zip(got, wanted, strict=True):
        assert have.shape == want.shape
        assert (have - want).abs().max() <= 1e-5 * max(1.0, float(want.abs().max()))


def test_all_formats_have_fixtures() -> None:
    assert len(CASES) == 34
    assert {case.split("/")[0] for case in CASES} == {*FORMATS} - {"unweave"}


@pytest.mark.parametrize("case", CASES)
def test_it_does_what_the_other_library_did(case: str) -> None:
    wanted = load_tensors(FIXTURES / f"{case}.safetensors")
    parts = load_foreign(FIXTURES / case)
    assert_same(function(parts, wanted["x"]), (wanted["latents"], wanted["y"]))
    # The comparison can fail: a hundredth more in the encoder shows.
    next(iter(parts.values())).W_enc.data *= 1.01
    with pytest.raises(AssertionError):
        assert_same(function(parts, wanted["x"]), (wanted["latents"], wanted["y"]))


@pytest.mark.parametrize("case", CASES)
def test_it_survives_being_written_and_read_again(case: str, tmp_path: Path) -> None:
    x = load_tensors(FIXTURES / f"{case}.safetensors")["x"]
    parts = load_foreign(FIXTURES / case)
    save_foreign(parts, tmp_path / "set", case.split("/")[0])
    again = load_foreign(tmp_path / "set")
    assert again.keys() == parts.keys()
    assert_same(function(again, x), function(parts, x))
    if not case.startswith("gemma_scope"):  # whose files have no place for a site
        assert [p.spec for p in again.values()] == [p.spec for p in parts.values()]


def test_every_format_into_every_other_or_a_reason_why_not(tmp_path: Path) -> None:
    refused = []
    cases = ["circuit_tracer/clt", *CASES[5::7], "saelens/abstopk", "saelens/jumprelu"]
    for case in cases:
        x = load_tensors(FIXTURES / f"{case}.safetensors")["x"]
        parts = load_foreign(FIXTURES / case)
        wanted = function(parts, x)
        for name in FORMATS:
            place = tmp_path / case / name
            try:
                save_foreign(parts, place, name)
            except UserError:
                refused.append((case, name))
                assert not place.exists()
                continue
            got = load_foreign(place)
            assert_same(function({part: got[part] for part in parts}, x), wanted)
    assert ("saelens/abstopk", "sparsify") in refused
    assert ("circuit_tracer/clt", "saelens") in refused
    assert ("saelens/jumprelu", "gemma_scope") not in refused
    assert len(refused) < len(cases) * len(FORMATS) / 2


def made(activation, *, width_out: int = 12, **changes) -> Dictionary:
    """Scales, bias and free lengths all at values that matter."""
    site = "blocks.0.resid_mid", "blocks.0.mlp.out"
    reads = (Port(site=site[0], width=12, scale=0.5),)
    writes = (Port(site=site[1], width=width_out, scale=changes.pop("out_scale", 3.0)),)
    spec = DictionarySpec(
        reads=reads, writes=writes, n_latents=30, activation=activation, **changes
    )
    dictionary = Dictionary(spec).eval()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in dictionary.named_parameters():
            if "threshold" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=rng) * 0.4)
            else:
                tensor.add_(torch.rand(tensor.shape, generator=rng) * 5)
        for name, tensor in dictionary.named_buffers():
            if name == "activation.threshold":
                tensor.fill_(0.3)
    return dictionary


@pytest.mark.parametrize(
    ("dictionary", "names"),
    [
        (made(ReLU(), decoder="normalised"), ["saelens", "gemma_scope", "circuit_tracer"]),
        (made(ReLU(), pre_bias=True), ["saelens", "dictionary_learning", "gemma_scope"]),
        (made(ReLU(), pre_bias=True, out_scale=0.5), ["saelens", "dictionary_learning"]),
        (made(TopK(k=4), skip=True), ["sparsify", "circuit_tracer"]),
        (made(TopK(k=4), pre_bias=True), ["sparsify", "dictionary_learning", "circuit_tracer"]),
        (made(BatchTopK(k=4), nesting=(10, 30)), ["dictionary_learning", "gemma_scope"]),
        (made(JumpReLU(), width_out=9, skip=True), ["saelens", "gemma_scope", "circuit_tracer"]),
        (made(Gated(), pre_bias=True), ["dictionary_learning"]),
    ],
    ids=lambda value: value.spec.activation.kind if isinstance(value, Dictionary) else "",
)
def test_scales_and_biases_are_folded_in(
    dictionary: Dictionary, names: list[str], tmp_path: Path
) -> None:
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(1)) * 3
    wanted = dictionary(x).detach()
    for name in names:
        save_foreign({"part": dictionary}, tmp_path / name, name)
        (again,) = load_foreign(tmp_path / name).values()
        got = again(x).detach()
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max(), name


@pytest.mark.parametrize(
    ("dictionary", "name", "reason"),
    [
        (made(ProLU()), "saelens", "prolu"),
        (made(AbsTopK(k=3)), "gemma_scope", "jumprelu only"),
        (made(TopK(k=3), width_out=9), "sparsify", "widths 12 and 9"),
        (made(TopK(k=3)), "saelens", "no transcoder of kind topk"),
        (made(ReLU(), skip=True), "dictionary_learning", "without skip"),
        (made(ReLU(), layer_norm=True), "saelens", "unequal scales"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_format_cannot_hold_is_said_and_nothing_written(
    dictionary: Dictionary, name: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        save_foreign(dictionary, tmp_path / "new", name)
    assert not list(tmp_path.iterdir())


def test_several_dictionaries_and_places_that_are_taken(tmp_path: Path) -> None:
    parts = load_foreign(FIXTURES / "sparsify" / "run")
    assert list(parts) == ["layers.1", "layers.2"]
    assert parts["layers.2"].spec.writes[0].site == "blocks.2.resid_post"
    assert load_foreign(FIXTURES / "sparsify" / "run" / "layers.1" / "sae.safetensors")
    save_dictionary(parts["layers.1"], tmp_path / "ours")
    assert list(load_foreign(tmp_path / "ours")) == ["ours"]
    with pytest.raises(UserError, match="is there already"):
        save_foreign(parts, tmp_path / "ours", "sparsify")
    with pytest.raises(UserError, match="no format onnx: known are saelens"):
        save_foreign(parts, tmp_path / "new", "onnx")
    with pytest.raises(UserError, match="every layer from 0 on"):
        save_foreign(parts, tmp_path / "new", "circuit_tracer")


@pytest.mark.parametrize("heads", [1, 3])
def test_a_part_of_an_artifact_is_a_dictionary_too(heads: int, tmp_path: Path) -> None:
    spec = PartSpec(
        name="L0.mlp",
        input_site="blocks.0.mlp.in",
        output_site="blocks.0.mlp.out",
        d_in=12,
        d_out=12,
        n_latents=30,
        k=4,
        heads=heads,
        skip=True,
        input_scale=0.5,
        output_scale=3.0,
    )
    part = Part(spec)
    rng = torch.Generator().manual_seed(8)
    for tensor in part.parameters():
        tensor.data.copy_(torch.randn(tensor.shape, generator=rng) * 0.3)
    part.save(tmp_path / "artifact" / "dictionaries" / "L0.mlp")
    x = torch.randn(20, 12, generator=rng)
    found = load_foreign(tmp_path / "artifact")
    assert list(found) == ["dictionaries/L0.mlp"]
    save_foreign(found, tmp_path / "set", "circuit_tracer")
    # In float64, because a part multiplies float32 as bfloat16 where the processor can.
    wanted = part.double()(x.double()).float()
    for parts in (found, load_foreign(tmp_path / "set")):
        (dictionary,) = parts.values()
        assert torch.allclose(dictionary(x), wanted, atol=1e-5)
        assert dictionary.spec.reads[0].site == "blocks.0.mlp.in"


def test_offsets_of_a_cross_layer_transcoder_add_up(tmp_path: Path) -> None:
    source = FIXTURES / "circuit_tracer" / "clt"
    x = load_tensors(source.with_suffix(".safetensors"))["x"]
    parts = load_foreign(source)
    for part in parts.values():
        part.b_dec.data += 0.3
    save_foreign(parts, tmp_path / "set", "circuit_tracer")
    assert_same(function(load_foreign(tmp_path / "set"), x), function(parts, x))


def test_the_reference_set_of_circuit_tracer(shared_data: Path) -> None:
    folder = shared_data / "circuit_tracer_reference" / "transcoders"
    parts = load_foreign(folder)
    assert list(parts) == [f"L{i}.mlp" for i in range(5)]
    raw = {n: t.float() for n, t in load_tensors(folder / "layer_3.safetensors").items()}
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    top = (x @ raw["W_enc"].T + raw["b_enc"]).topk(16, dim=1)
    latents = torch.zeros(50, 512).scatter(1, top.indices, top.values.relu())
    wanted = latents @ raw["W_dec"] + raw["b_dec"]
    part = parts["L3.mlp"]
    assert part.spec.reads[0].site == "blocks.3.mlp.in"
    assert part.spec.writes[0].site == "blocks.3.mlp.out"
    assert_same((part.encode(x).dense(), part(x).detach()), (latents, wanted))
