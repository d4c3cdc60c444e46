"""Where dictionaries start."""

import pytest
import torch

from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.encoder.switch import Switch
from unweave.dictionaries.initial import Start, geometric_median, initialise_

D, LATENTS = 8, 64


def vectors(rows: int = 2000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D, generator=generator) + torch.linspace(-1, 1, D)


def started(start: Start, *, spec: DictionarySpec | None = None, seed: int = 3) -> Dictionary:
    dictionary = Dictionary(spec or autoencoder("s", D, LATENTS, ReLU(), decoder="free"))
    y = vectors() if spec is None or spec.d_out == D else vectors()[:, :4]
    initialise_(dictionary, vectors(), y, start, seed=seed)
    return dictionary


def test_the_geometric_median_has_the_smallest_sum_of_distances():
    points = torch.cat([vectors(60), vectors(9) + 30])  # outliers that move the mean
    found = geometric_median(points)

    def total(at: torch.Tensor) -> float:
        return (points - at).norm(dim=1).sum().item()

    generator = torch.Generator().manual_seed(1)
    guess = points.median(0).values
    for step in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003):  # brute force: keep whatever is better
        for _ in range(300):
            moved = guess + step * torch.randn(D, generator=generator)
            guess = moved if total(moved) < total(guess) else guess
    assert total(found) <= total(guess) + 1e-3
    assert total(points.mean(0)) > 1.2 * total(found), "the mean is no median here"


def test_the_geometric_median_of_a_line_is_its_median():
    points = torch.tensor([[0.0], [1.0], [2.0], [50.0], [1000.0]])
    assert geometric_median(points, steps=2000, tolerance=1e-9).item() == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(threshold=0.1)])
@pytest.mark.parametrize("pre_bias", [False, True])
def test_every_latent_fires_as_often_as_asked(share, activation, pre_bias):
    spec = autoencoder("s", D, LATENTS, activation, pre_bias=pre_bias, decoder="free")
    dictionary = started(Start(fires=share), spec=spec)
    fired = dictionary.encode(vectors()).fired() / 2000
    assert fired.min() > 0.9 * share - 0.001
    assert fired.max() < 1.1 * share + 0.001
    control = started(Start(), spec=spec).encode(vectors()).fired() / 2000
    assert (control - share).abs().max() > 0.1


def test_a_wide_dictionary_can_be_told_how_often_to_fire():
    """More pre-activations than torch.quantile takes at once."""
    dictionary = Dictionary(autoencoder("s", D, 4200, ReLU()))
    x = vectors(4096)
    initialise_(dictionary, x, x, Start(fires=0.05), seed=0)
    assert dictionary.encode(x).l0() == pytest.approx(0.05 * 4200, rel=0.02)


def test_an_autoencoder_reads_what_it_writes():
    dictionary = started(Start(decoder_norm=0.1, encoder=2.0, offset="zero"))
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.full((LATENTS,), 0.1))
    torch.testing.assert_close(dictionary.W_enc, 2 * dictionary.W_dec)
    assert dictionary.b_dec.eq(0).all()
    assert dictionary.b_enc.eq(0).all()


def test_uniform_rows_lie_within_one_over_the_root_of_the_width():
    """Anthropic, January 2025: U(-1, 1) / sqrt(n), n the width of the vectors."""
    dictionary = started(Start(decoder="uniform"))
    bound = D**-0.5
    assert 0.95 * bound < dictionary.W_dec.abs().max() <= bound
    assert dictionary.W_dec.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=0.05)


def test_starting_at_data_points_at_data():
    dictionary = started(Start(decoder="data"))
    centred = vectors() - vectors().mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True)
    assert (dictionary.W_dec @ unit.T).amax(1).min() > 0.99999
    torch.testing.assert_close(dictionary.b_dec, vectors().mean(0))
    assert (started(Start()).W_dec @ unit.T).amax(1).min() < 0.99


def test_a_transcoder_that_starts_at_data_pairs_what_was_read_with_what_was_written():
    spec = DictionarySpec(
        reads=(Port(site="in", width=D),),
        writes=(Port(site="out", width=4),),
        n_latents=LATENTS,
        activation=TopK(k=4),
        skip=True,
    )
    dictionary = started(Start(decoder="data", encoder=0.5), spec=spec)
    x = vectors() - vectors().mean(0)
    which = (dictionary.W_enc @ (x / x.norm(dim=1, keepdim=True)).T).argmax(1)
    torch.testing.assert_close(dictionary.W_enc.norm(dim=1), torch.full((LATENTS,), 0.5))
    written = torch.nn.functional.normalize(x[which, :4], dim=1)
    torch.testing.assert_close(dictionary.W_dec, written)
    assert dictionary.W_skip.eq(0).all()


def test_a_router_starts_in_the_middle_and_seeds_differ():
    spec = autoencoder("s", D, LATENTS, TopK(k=4), encoder=Switch(experts=4))
    dictionary = started(Start(), spec=spec)
    torch.testing.assert_close(dictionary.encoder.b_router, vectors().mean(0))
    assert dictionary.encoder.W_router.ne(0).any()
    same, other = started(Start(), spec=spec), started(Start(), spec=spec, seed=4)
    assert torch.equal(dictionary.W_dec, same.W_dec)
    assert not torch.equal(dictionary.W_dec, other.W_dec)


def narrow(rows: int = 3000, d: int = 32, rank: int = 4, seed: int = 1) -> torch.Tensor:
    """Vectors that fill 4 of 32 dimensions around a mean, as attention outputs fill a part."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, rank, generator=g)).Q.T
    return torch.randn(rows, rank, generator=g) @ basis + torch.linspace(-1, 1, d)


def test_fewer_latents_are_born_dead_in_the_subspace_of_the_data():
    x = narrow()
    dead = {}
    for decoder in ("random", "subspace"):
        dictionary = Dictionary(autoencoder("s", 32, 256, TopK(k=4), pre_bias=True))
        initialise_(dictionary, x, x, Start(decoder=decoder), seed=5)
        dead[decoder] = (dictionary.encode(x).fired() == 0).float().mean().item()
    assert dead["random"] > 0.3, "the control"
    assert dead["subspace"] < 0.02


def test_clusters_start_at_planted_clusters_and_atoms_at_rare_directions():
    g = torch.Generator().manual_seed(2)
    centres = 6 * torch.eye(16)[:12]
    x = centres.repeat(60, 1) + 0.3 * torch.randn(720, 16, generator=g)
    common = torch.randn(2000, 1, generator=g) @ torch.randn(1, 16, generator=g)
    common[torch.arange(8) * 250] = centres[:8]  # one vector in 250 lies elsewhere
    for decoder, vectors_, planted in (
        ("clusters", x, centres), ("atoms", common, centres[:8])
    ):  # fmt: skip
        best = {}
        wanted = torch.nn.functional.normalize(planted - vectors_.mean(0))
        for kind in (decoder, "data"):
            dictionary = Dictionary(autoencoder("s", 16, 20, ReLU(), decoder="free"))
            start = Start(decoder=kind, decoder_norm=0.5)
            initialise_(dictionary, vectors_, vectors_, start, seed=3)
            torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.full((20,), 0.5))
            torch.testing.assert_close(dictionary.W_enc, dictionary.W_dec)
            best[kind] = (2 * wanted @ dictionary.W_dec.T).amax(1).min().item()
        assert best[decoder] > 0.9, best
        assert best["data"] < 0.9, best


@pytest.mark.parametrize("decoder", ["subspace", "clusters", "atoms"])
def test_a_transcoder_reads_what_goes_with_a_direction_found_in_the_data(decoder):
    """y = A x with orthogonal A, so that a direction d is written where A^T d is read."""
    spec = DictionarySpec(
        reads=(Port(site="in", width=16),), writes=(Port(site="out", width=16),),
        n_latents=20, activation=TopK(k=2),
    )  # fmt: skip
    g = torch.Generator().manual_seed(4)
    A = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q
    x = torch.randn(4000, 16, generator=g)
    agree = {}
    for kind in (decoder, "random"):
        dictionary = Dictionary(spec)
        initialise_(dictionary, x, x @ A.T, Start(decoder=kind, encoder=0.7), seed=3)
        torch.testing.assert_close(dictionary.W_enc.norm(dim=1), torch.full((20,), 0.7))
        agree[kind] = ((dictionary.W_dec @ A) * dictionary.W_enc).sum(1).min().item() / 0.7
    assert agree[decoder] > 0.95
    assert agree["random"] < 0.5
