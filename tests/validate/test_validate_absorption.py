"""Absorption: planted dictionaries with a known share of absorbed words, and who is refused."""

import math

import pytest
import torch
from torch import Tensor

from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.code import SparseCode
from unweave.subject import load_subject
from unweave.validate.placed import Placed
from unweave.validate.protocols.absorption import (
    LETTERS,
    AbsorptionSettings,
    absorption,
    absorption_on,
)
from unweave.validate.protocols.absorption_measure import (
    MeasureSettings,
    Words,
    absorption_of,
    main_latents,
    probe_f1,
    truth_probes,
)
from unweave.validate.protocols.absorption_probes import (
    ProbeSettings,
    fit_sparse_probe,
    train_probes,
)
from unweave.validate.protocols.absorption_words import (
    WordSettings,
    alphabetic_tokens,
    prompted_words,
)
from unweave.validate.protocols.protocol import Bench, Refused

MEANINGS = 30
ABSORBED = 12
S = LETTERS.index("s")
SETTINGS = AbsorptionSettings(measure=MeasureSettings(truth=ProbeSettings(batch=512)))


def _words(copies: int, seed: int) -> Words:
    """4 along the word's letter, 3 along its meaning, each a coordinate of its own."""
    letter = torch.arange(26).repeat_interleave(MEANINGS).repeat(copies)
    meaning = torch.arange(MEANINGS).repeat(26 * copies)
    x = torch.zeros(len(letter), 26 + MEANINGS)
    x[torch.arange(len(x)), letter] = 4.0
    x[torch.arange(len(x)), 26 + meaning] = 3.0
    return Words(
        x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)), letter
    )


class Planted:
    """A latent for each letter and meaning, and others that take whole words over from letter s."""

    def __init__(self, absorbed: int, *, together: bool = False) -> None:
        d = 26 + MEANINGS
        pairs = torch.zeros(absorbed, d)
        pairs[:, S] = 0.8
        pairs[torch.arange(absorbed), 26 + torch.arange(absorbed)] = 0.6
        self.W_dec = torch.cat([torch.eye(d), pairs])
        self.absorbed, self.together = absorbed, together
        self.n_latents = len(self.W_dec)

    def encode(self, x: Tensor) -> SparseCode:
        letter, meaning = x[:, :26].argmax(1), x[:, 26:].argmax(1)
        taken = (letter == S) & (meaning < self.absorbed)
        acts = torch.zeros(len(x), self.n_latents)
        rows = torch.arange(len(x))
        acts[rows[~taken], letter[~taken]] = 4.0
        acts[rows[~taken], 26 + meaning[~taken]] = 3.0
        which = torch.zeros_like(meaning) if self.together else meaning
        acts[rows[taken], 26 + MEANINGS + which[taken]] = 5.0
        return SparseCode.from_dense(acts)

    def decode(self, code: SparseCode) -> Tensor:
        return code.dense() @ self.W_dec

    def directions(self) -> Tensor:
        return self.W_dec


@pytest.fixture(scope="module")
def planted():
    train, test = _words(2, 0), _words(1, 1)
    probes = truth_probes(train, 26, SETTINGS.measure, seed=0)
    assert min(probe_f1(probes, test)) == 1.0
    return train, test, probes


def _outcome(planted, coder, tmp_path):
    train, test, probes = planted
    bench = Bench(load_subject("wren"), Placed("planted", coder, ("site",), ("site",)), tmp_path)
    return absorption_on(bench, SETTINGS, 1.0, train, test, probes, set(range(26)))


def test_absorption_is_the_share_of_words_that_were_taken_over(planted, tmp_path):
    found = _outcome(planted, Planted(ABSORBED), tmp_path)
    of_s = next(one for one in found.details["letters"] if one["letter"] == "s")
    assert of_s["full"] == pytest.approx(ABSORBED / MEANINGS)
    assert of_s["fraction"] == pytest.approx(ABSORBED / MEANINGS)
    assert of_s["main"] == (S,)
    others = [one["full"] for one in found.details["letters"] if one["letter"] != "s"]
    assert max(others) == 0.0
    mean = found.numbers["mean_full_absorption"].value
    assert mean == pytest.approx(ABSORBED / MEANINGS / 26)


def test_a_clean_dictionary_absorbs_nothing_and_its_controls_do(planted, tmp_path):
    found = _outcome(planted, Planted(0), tmp_path)
    assert found.numbers["mean_full_absorption"].value == 0.0
    assert found.numbers["mean_absorption_fraction"].value == 0.0
    assert found.numbers["mean_num_split_features"].value == 1.0
    assert found.numbers["sparse_probe_f1"].value == 1.0
    assert found.controls["mean_full_absorption_other_letters"].value > 0.95
    assert found.controls["probe_f1_shuffled"].value < 0.2
    assert found.controls["sparse_probe_f1_random"].value < 0.7


def test_a_letter_split_in_two_is_not_absorbed(planted, tmp_path):
    found = _outcome(planted, Planted(ABSORBED, together=True), tmp_path)
    of_s = next(one for one in found.details["letters"] if one["letter"] == "s")
    assert set(of_s["main"]) == {S, 26 + MEANINGS}
    assert of_s["full"] == 0.0
    assert of_s["fraction"] == 0.0


def _by_hand(main: float, other: float, *, cosine: float = 1.0) -> tuple[float, bool]:
    """One word with probe projection 10, a main latent and one other of a cosine with the probe."""
    rows = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]])
    coder = Coefficients(lambda x: torch.tensor([[main, other]]).expand(len(x), 2), rows)
    found = absorption_of(
        coder, torch.tensor([[10.0, 0.0]]), torch.tensor([2.0, 0.0]), torch.tensor([0]),
        MeasureSettings(),
    )  # fmt: skip
    return float(found.fraction[0]), bool(found.full[0])


@pytest.mark.parametrize(
    ("main", "other", "cosine", "fraction", "full"),
    [
        (0.0, 8.0, 1.0, 1.0, True),
        (0.0, 3.9, 1.0, 0.0, False),  # less than 40% of the projection
        (5.0, 5.0, 1.0, 0.5, False),
        (8.0, 6.0, 1.0, 0.2, False),  # the main latent leaves but 2 of 10 to take
        (10.0, 9.0, 1.0, 0.0, False),
        (0.0, 100.0, 0.05, 0.0, True),  # aligned enough for full absorption alone
        (0.0, 300.0, 0.02, 0.0, False),
    ],
)
def test_absorption_by_hand(main, other, cosine, fraction, full):
    assert _by_hand(main, other, cosine=cosine) == (pytest.approx(fraction), full)


def test_projections_count_what_a_latent_writes_whatever_the_norm_of_its_row():
    coder = Planted(ABSORBED)
    long = Coefficients(lambda x: coder.encode(x).dense() / 4, coder.W_dec * 4)
    test = _words(1, 1)
    of_s = test.x[test.letter == S]
    direction, main = torch.eye(56)[S], torch.tensor([S])
    for each in (coder, long):
        found = absorption_of(each, of_s, direction, main, MeasureSettings())
        assert int(found.full.sum()) == ABSORBED


def test_main_latents_do_not_depend_on_what_a_dictionary_counts_in(planted):
    train, test, _ = planted
    coder = Planted(ABSORBED)
    small = Coefficients(lambda x: coder.encode(x).dense() / 50, coder.W_dec * 50)
    found = [main_latents(c, train, test, 26, SETTINGS.measure, seed=0) for c in (coder, small)]
    for one, other in zip(*found, strict=True):
        assert one.latents.tolist() == other.latents.tolist()
        assert one.f1 == pytest.approx(other.f1)


def test_a_sparse_probe_is_where_its_objective_is_least():
    random = torch.Generator().manual_seed(0)
    acts = torch.randn(200, 2, generator=random)
    yes = acts[:, 0] + 0.5 * torch.randn(200, generator=random) > 0.8
    probe = fit_sparse_probe(torch.tensor([3, 5]), acts, yes)
    linear_model = pytest.importorskip("sklearn.linear_model")
    theirs = linear_model.LogisticRegression(max_iter=500, class_weight="balanced", tol=1e-8)
    theirs.fit(acts.numpy(), yes.numpy())
    assert probe.weight.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=1e-3)
    assert probe.bias == pytest.approx(float(theirs.intercept_[0]), abs=1e-3)


def test_probes_read_codes_as_they_read_matrices():
    random = torch.Generator().manual_seed(0)
    dense = torch.relu(torch.randn(300, 12, generator=random) - 0.5)
    letter = dense[:, :3].argmax(1)
    settings = ProbeSettings(epochs=5)
    one = train_probes(dense, letter, 3, settings)
    other = train_probes(SparseCode.from_dense(dense), letter, 3, settings)
    torch.testing.assert_close(one.weight, other.weight, atol=1e-4, rtol=1e-4)


def test_words_are_tokens_that_stand_whole_in_their_prompt():
    wren = load_subject("wren")
    tokens = alphabetic_tokens(wren)
    assert all(text.strip().isalpha() and text.isascii() for text in tokens.values())
    words = prompted_words(wren, tokens, 20, WordSettings(examples=3), seed=0)
    for token, letter, row in zip(words.token, words.letter, words.rows, strict=True):
        assert row[words.at] == token
        assert tokens[int(token)].strip()[0].lower() == LETTERS[letter]
        text = wren.tokenizer.decode(row)
        assert text.count("has the first letter:") == 4
        assert tokens[int(token)] not in [t for t in text.split("\n")[1:-1]]


def test_a_subject_that_cannot_spell_is_refused_with_the_number(tmp_path):
    wren = load_subject("wren")
    site = "blocks.2.resid_post"
    rows = torch.eye(wren.d_model)
    bench = Bench(wren, Placed("id", Coefficients(lambda x: x, rows), (site,), (site,)), tmp_path)
    with pytest.raises(Refused, match=r"names the first letter of \d+% of \d+ words"):
        absorption(bench, SETTINGS.model_copy(update={"asked": 20}))
    transcoder = Bench(
        wren, Placed("t", Coefficients(lambda x: x, rows), (site,), ("blocks.2.mlp.out",)), tmp_path
    )
    with pytest.raises(Refused, match="autoencoders of one site"):
        absorption(transcoder)
