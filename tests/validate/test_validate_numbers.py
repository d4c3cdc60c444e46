"""The four numbers where they are known, and where they must come out bad."""

import numpy as np
import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.describe.evidence import Firings
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.validate.numbers.ground import Ground, MeasureSettings
from unweave.validate.numbers.levels import fit_levels
from unweave.validate.numbers.measure import measure
from unweave.validate.numbers.method import Method
from unweave.validate.placed import Placed, placed

D, VOCAB = 32, 64
SUBJECT = tiny_llama()


class Words:
    """A latent a token, exact at the embedding: what a perfect description is possible for."""

    n_latents = VOCAB

    def __init__(self, order: torch.Tensor | None = None) -> None:
        self._rows = SUBJECT.embed().float()
        self._order = torch.arange(VOCAB) if order is None else order

    def encode(self, x: torch.Tensor) -> SparseCode:
        nearest = torch.cdist(x, self._rows).argmin(1)[:, None]
        return SparseCode.from_topk(nearest, torch.ones_like(nearest).float(), VOCAB)

    def decode(self, code: SparseCode) -> torch.Tensor:
        return code.dense() @ self._rows[self._order]

    def directions(self) -> torch.Tensor:
        return self._rows[self._order]


def ground(**changes: object) -> Ground:
    settings = MeasureSettings(amortised_over=10_000, choosing_rows=8, **changes)
    return Ground(SUBJECT, tiny_rows(120, 16), tiny_rows(32, 16, seed=1), settings)


def at(site: str, coder: object, name: str = "it") -> Method:
    return Method(name, "dictionary", (Placed(name, coder, (site,), (site,)),))


def test_a_latent_a_token_is_exact_short_and_said_in_full():
    found = measure(ground(), at("embed", Words()))
    assert abs(found.math_loss.value) < 1e-5
    assert found.more["value_bits"].value == 0
    assert found.more["l0"].value == 1
    # 61 tokens drawn evenly; a latent's silence and firing are coded one by one.
    share = 1 / 61
    entropy = -61 * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert found.more["code_length"].value == pytest.approx(entropy, rel=0.03)
    assert found.semantic_share.value > 0.95
    # The rule code's rates stop at 2^6 : 1, so a sure thing is said to be nearly sure.
    assert found.semantic_loss.value < 0.05
    assert found.controls["semantic_share_shuffled"].value < 0
    assert found.controls["semantic_loss_shuffled"].value > 20 * found.semantic_loss.value
    assert found.controls["loss_mean_ablation"].value > 20 * found.semantic_loss.value


def test_words_that_write_other_words_are_as_short_and_cost_as_much_as_nothing():
    order = torch.cat([torch.arange(3), 3 + torch.arange(61).roll(1)])
    found = measure(ground(), at("embed", Words(order)))
    assert found.semantic_share.value > 0.95
    assert found.math_loss.value > 0.8 * found.controls["loss_mean_ablation"].value


def test_signed_coordinates_are_measured_as_two_sides_and_take_bits():
    site = "blocks.1.resid_pre"
    found = measure(ground(unnoticed_nats=1e-4), at(site, coordinates(D)))
    assert found.more["latents"].value == 2 * D
    assert found.more["l0"].value == D
    assert found.more["value_bits"].value >= 3
    assert abs(found.more["ce_increase"].value) < 2e-3
    few = measure(ground(), at(site, coordinates(D, k=4)))
    assert few.math_loss.value > 10 * max(found.math_loss.value, 1e-4)
    assert few.math_length.value < found.math_length.value / 3


def test_strengths_are_as_coarse_as_the_network_does_not_notice():
    site = "blocks.1.resid_pre"
    bits = [
        measure(ground(unnoticed_nats=nats), at(site, coordinates(D, k=6))).more["value_bits"].value
        for nats in (1e-5, 1e-2, 10.0)
    ]
    assert bits[0] > bits[2] == 0
    assert bits[0] >= bits[1] >= bits[2]


def test_parts_together_are_as_long_as_both_and_no_more_true():
    sites = ["blocks.0.resid_post", "blocks.1.resid_pre", "blocks.1.resid_mid"]
    one, two = (
        Method("m", "dictionary", tuple(Placed(s, coordinates(D, k=8), (s,), (s,)) for s in some))
        for some in (sites[:1], sites[::2])
    )
    alone, both = measure(ground(), one), measure(ground(), two)
    assert both.more["l0"].value == 2 * alone.more["l0"].value == 16
    assert both.math_length.value > 1.5 * alone.math_length.value
    assert both.math_loss.value > alone.math_loss.value


def test_edges_and_dictionary_are_amortised():
    plain = at("embed", Words())
    found, more = measure(ground(), plain), measure(ground(), plain._replace(edges=100))
    assert more.math_length.value - found.math_length.value == pytest.approx(
        100 * (2 * np.log2(VOCAB) + 7) / 10_000
    )
    dictionary = VOCAB * (2 * D + 2) * 7 / 10_000
    assert found.math_length.value - found.more["code_length"].value == pytest.approx(dictionary)


def test_what_never_fires_is_refused():
    dictionary = Dictionary(autoencoder("embed", D, 8, ReLU())).requires_grad_(False)
    dictionary.encoder.b_enc.fill_(-1e6)
    with pytest.raises(UserError, match="ever fires"):
        measure(ground(), Method("dead", "dictionary", (placed("dead", dictionary),)))


def test_two_even_levels_take_a_bit_each_firing():
    places = 4000
    place = np.arange(0, places, 2)
    value = np.where(np.arange(len(place)) % 2 == 0, 1.0, 2.0)
    zeros = np.zeros(len(place), dtype=np.int64)
    firings = Firings(zeros, place, zeros, value)
    levels = fit_levels(firings, places, 1, bits=1)
    bits = levels.row_bits(firings, 1, places)[0]
    assert bits == pytest.approx(places * 1.0 + len(place) * 1.0, rel=1e-3)
    np.testing.assert_allclose(levels.centre, [[1.0, 2.0]])
    coarse = fit_levels(firings, places, 1, bits=0)
    assert coarse.row_bits(firings, 1, places)[0] == pytest.approx(places, rel=1e-3)
    np.testing.assert_allclose(coarse.centre, [[1.5]])


def test_the_code_of_one_text_is_long_for_another():
    places = 1000
    few = Firings(
        *(np.zeros(10, dtype=np.int64),), np.arange(10), np.zeros(10, dtype=np.int64), np.ones(10)
    )
    levels = fit_levels(few, places, 1, bits=0)
    n = 500
    many = Firings(
        np.zeros(n, dtype=np.int64), np.arange(n), np.zeros(n, dtype=np.int64), np.ones(n)
    )
    assert levels.row_bits(few, 1, places)[0] < 90
    assert levels.row_bits(many, 1, places)[0] > 3 * places
