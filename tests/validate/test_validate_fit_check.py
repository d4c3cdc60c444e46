"""Dictionaries made at a known place of wren, put there and elsewhere."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unweave import load_subject, token_rows
from unweave.artifact.tensors import load_tensors
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.formats import load_foreign
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.fit_check import FitSettings, fit_check
from unweave.validate.places import Place, neighbours

HOME = "blocks.2.resid_post"


@pytest.fixture(scope="module")
def wren() -> Subject:
    return load_subject("wren")


@pytest.fixture(scope="module")
def rows(wren: Subject) -> tuple[Tensor, Tensor]:
    text = token_rows(wren, "heldout", tokens=12_000, context=48)
    return text.train, text.heldout[:8]


def vectors(subject: Subject, tokens: Tensor, site: str) -> Tensor:
    with torch.inference_mode():
        found = subject.run(tokens, capture=[site], logits=False).sites[site]
    return found[:, 1:].flatten(0, 1).flatten(1).float().clone()


def principal(
    subject: Subject, tokens: Tensor, site: str, *, factor: float = 1.0, normed: bool = False
) -> Dictionary:
    """The k largest principal coordinates of a site's vectors, times a factor or layer-normed."""
    x = vectors(subject, tokens, site) * factor
    if normed:
        x = torch.nn.functional.layer_norm(x, (x.shape[1],))
    found, width = principal_directions(x), x.shape[1]
    spec = autoencoder(site, width, width, AbsTopK(k=24), name="pca", decoder="free", pre_bias=True)
    dictionary = Dictionary(spec).eval()
    dictionary.W_dec.data.copy_(found.directions)
    dictionary.W_enc.data.copy_(found.directions)
    dictionary.b_dec.data.copy_(found.mean)
    return dictionary


@pytest.fixture(scope="module")
def pca(wren: Subject, rows: tuple[Tensor, Tensor]) -> Dictionary:
    return principal(wren, rows[0], HOME)


def test_it_fits_where_it_was_made(
    wren: Subject, rows: tuple[Tensor, Tensor], pca: Dictionary
) -> None:
    report = fit_check(pca, wren, rows[1])
    assert report.fits_here
    assert report.verdict.startswith(f"pca fits {HOME} of wren: FVU 0.")
    assert report.named == report.fits[0]
    assert report.named.place == Place((HOME,), (HOME,))
    x = vectors(wren, rows[1], HOME)
    y = pca(x).detach()
    fvu = (x - y).square().sum() / (x - x.mean(0)).square().sum()
    assert report.named.fvu == pytest.approx(float(fvu), rel=1e-4)
    assert report.named.l0 == pytest.approx(24)
    # wren's first position is far larger than others, and said to be
    assert report.start_norm > 3
    assert "position 0 was left out" in report.verdict
    assert report.named.fvu_all != pytest.approx(report.named.fvu, rel=0.01)


@pytest.fixture(scope="module")
def learnt(wren: Subject, rows: tuple[Tensor, Tensor]) -> Dictionary:
    x = vectors(wren, rows[0], HOME)
    spec = autoencoder(HOME, 128, 256, TopK(k=12), name="learnt", decoder="free", pre_bias=True)
    dictionary = Dictionary(spec)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        start = x[torch.randint(len(x), (256,), generator=rng)] - x.mean(0)
        dictionary.W_dec.copy_(torch.nn.functional.normalize(start, dim=1))
        dictionary.W_enc.copy_(dictionary.W_dec)
        dictionary.b_dec.copy_(x.mean(0))
    optimiser = torch.optim.Adam(dictionary.parameters(), lr=3e-3)
    for _ in range(80):
        some = x[torch.randint(len(x), (256,), generator=rng)]
        optimiser.zero_grad()
        ((dictionary(some) - some).square().sum() / some.square().sum()).backward()
        optimiser.step()
    return dictionary.eval()


@pytest.mark.parametrize("wrong", ["blocks.1.resid_post", "blocks.3.resid_post"])
def test_the_wrong_layer_is_named_and_so_is_the_right_one(
    wren: Subject, rows: tuple[Tensor, Tensor], learnt: Dictionary, wrong: str
) -> None:
    report = fit_check(learnt, wren, rows[1], site=wrong)
    assert not report.fits_here
    assert f"does not belong at {wrong} of wren" in report.verdict
    assert f"it belongs at {HOME} on raw vectors" in report.verdict


def test_the_wrong_site_of_a_block(
    wren: Subject, rows: tuple[Tensor, Tensor], pca: Dictionary
) -> None:
    report = fit_check(pca, wren, rows[1], site="blocks.2.hook_mlp_out")
    assert not report.fits_here
    assert report.fits[0].place == Place((HOME,), (HOME,))
    assert "blocks.2.mlp.out of wren" in report.verdict


def test_a_missing_normalisation_is_named(wren: Subject, rows: tuple[Tensor, Tensor]) -> None:
    x = vectors(wren, rows[0], HOME)
    factor = float(128**0.5 / x.norm(dim=1).mean())
    scaled = principal(wren, rows[0], HOME, factor=factor)
    report = fit_check(scaled, wren, rows[1])
    assert not report.fits_here
    assert f"pca belongs at {HOME} of wren, but on vectors scaled to mean norm" in report.verdict
    # With the scale in its spec it belongs on raw vectors.
    scaled.rescale_([factor], [factor])
    assert fit_check(scaled, wren, rows[1]).fits_here


def test_a_missing_layer_norm_is_named(wren: Subject, rows: tuple[Tensor, Tensor]) -> None:
    site = "blocks.0.resid_mid"  # whose norms are far from 1 and unequal
    report = fit_check(principal(wren, rows[0], site, normed=True), wren, rows[1])
    assert not report.fits_here
    assert f"pca belongs at {site} of wren, but on vectors after a layer norm" in report.verdict


def test_a_dictionary_of_nothing_belongs_nowhere(
    wren: Subject, rows: tuple[Tensor, Tensor], pca: Dictionary
) -> None:
    noise = Dictionary(pca.spec).eval()
    rng = torch.Generator().manual_seed(9)
    noise.W_enc.data.copy_(torch.randn(128, 128, generator=rng) / 128**0.5)
    noise.W_dec.data.copy_(torch.randn(128, 128, generator=rng) / 128**0.5)
    report = fit_check(noise, wren, rows[1])
    assert not report.fits_here
    assert "explains nothing" in report.verdict
    lenient = fit_check(noise, wren, rows[1], settings=FitSettings(useful=1e6))
    assert "explains nothing" not in lenient.verdict


def test_a_transcoder_moves_with_both_its_sites(wren: Subject, rows: tuple[Tensor, Tensor]) -> None:
    reads, writes = "blocks.2.mlp.in", "blocks.2.mlp.out"
    x, y = (vectors(wren, rows[0], site) for site in (reads, writes))
    fitted = torch.linalg.lstsq(x, y - y.mean(0)).solution
    spec = DictionarySpec(
        name="linear",
        reads=(Port(site=reads, width=128),),
        writes=(Port(site=writes, width=128),),
        n_latents=4,
        activation=ReLU(),
        skip=True,
    )
    linear = Dictionary(spec).eval()
    linear.W_skip.data.copy_(fitted.T)
    linear.b_dec.data.copy_(y.mean(0))
    assert fit_check(linear, wren, rows[1]).fits_here
    moved = fit_check(linear, wren, rows[1], site="blocks.3.mlp.in")
    assert moved.named.place == Place(("blocks.3.mlp.in",), ("blocks.3.mlp.out",))
    assert "it belongs at blocks.2.mlp.in -> blocks.2.mlp.out" in moved.verdict


def test_what_cannot_be_checked(
    wren: Subject, rows: tuple[Tensor, Tensor], pca: Dictionary
) -> None:
    def said(dictionary: Dictionary, **where: str) -> str:
        with pytest.raises(UserError) as error:
            fit_check(dictionary, wren, rows[1], **where)
        return str(error.value)

    narrow = Dictionary(autoencoder(HOME, 64, 80, JumpReLU(), name="narrow"))
    assert said(narrow) == (
        f"narrow reads vectors of width 64, and {HOME} of wren has 128: it was made for another "
        "site or another model"
    )
    assert "of width 128, and blocks.2.mlp.mid of wren has 384" in said(
        pca, site="blocks.2.mlp.mid"
    )
    assert "its blocks are 0 to 4" in said(pca, site="blocks.7.resid_post")
    homeless = Dictionary(autoencoder("unknown", 128, 80, ReLU(), name="homeless"))
    assert "name the place with --site" in said(homeless)
    ports = [Port(site=f"blocks.{i}.mlp.out", width=128) for i in (2, 3)]
    layer = DictionarySpec(
        reads=(ports[0],), writes=tuple(ports), n_latents=9, activation=ReLU(), name="layer"
    )
    assert "together with dictionaries of other layers" in said(Dictionary(layer))
    with pytest.raises(UserError, match="nothing but position 0"):
        fit_check(pca, wren, rows[1][:, :1])


def test_neighbours_hold_every_vector_once(wren: Subject) -> None:
    at = [str(place) for place in neighbours(Place((HOME,), (HOME,)), wren)]
    assert at[0] == HOME
    assert len(at) == len(set(at)) == 15
    assert {"blocks.1.resid_post", "blocks.3.resid_mid", "blocks.2.attn.z"} <= {*at}
    first = Place(("blocks.0.resid_pre",), ("blocks.0.resid_pre",))
    near = [str(place) for place in neighbours(first, wren)]
    assert near[0] == "blocks.0.resid_pre"
    assert not any(name.startswith("blocks.-1") or name == "embed" for name in near)
    # blocks.3.resid_pre holds what blocks.2.resid_post does
    alias = Place(("blocks.3.resid_pre",), ("blocks.3.resid_pre",))
    assert HOME not in [str(place) for place in neighbours(alias, wren)]


def test_the_reference_transcoders_belong_to_their_layers(shared_data: Path) -> None:
    """Made elsewhere, with an FVU of .10 to .27 a layer by their maker."""
    subject = load_subject(str(shared_data / "stories260K" / "hf"))
    parts = load_foreign(shared_data / "circuit_tracer_reference" / "transcoders")
    latents = shared_data / "circuit_tracer_reference" / "delphi_latents" / "model.layers.2"
    tokens = load_tensors(latents / "0_127.safetensors")["tokens"][:12, :64].long()
    for layer in (1, 3):
        part = parts[f"L{layer}.mlp"]
        report = fit_check(part, subject, tokens)
        assert report.fits_here
        assert 0.05 < report.named.fvu < 0.35
    wrong = fit_check(parts["L1.mlp"], subject, tokens, site="blocks.2.mlp.in")
    assert "it belongs at blocks.1.mlp.in -> blocks.1.mlp.out" in wrong.verdict
