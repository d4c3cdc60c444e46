"""Pooling, probes and sparse probing: exact where the answer is known, chance where it must be."""

import numpy as np
import pytest
import torch
from word_world import SITE, bench_of, classes, reader, texts, word_latents

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.validate.placed import placed, reconstruct
from unweave.validate.protocols.pooling import pool, unit_directions
from unweave.validate.protocols.probes import (
    TrainedProbeSettings,
    exact_probe,
    nearest_columns,
    one_against_others,
    trained_probe,
)
from unweave.validate.protocols.protocol import Refused
from unweave.validate.protocols.sparse_probing import SparseProbingSettings, sparse_probing


def some_dictionary(**changes: object) -> Dictionary:
    dictionary = Dictionary(autoencoder(SITE, 32, 48, TopK(k=4), decoder="free", **changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    dictionary.rescale_([0.5], [0.5])
    return dictionary.requires_grad_(False).eval()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_taking_latents_out_of_means_is_taking_them_out_of_every_token(padded, layer_norm):
    """Against the published procedure by hand: vectors of zero to the context, one text a time."""
    subject, dictionary = reader(), some_dictionary(layer_norm=layer_norm)
    lines = [*texts([["w10"]], 5, 0), "w7 w8"]
    pooled = pool(subject, [placed("d", dictionary)], lines, context=12, padded=padded)[0]
    which = torch.tensor([3, 5, 8, 13, 21, 34])
    got = pooled.without(which, unit_directions(dictionary))
    for place, line in enumerate(lines):
        ids = torch.tensor([[1, *(int(w[1:]) for w in line.split())]])
        x = subject.run(ids, capture=[SITE], logits=False).sites[SITE][0, 1:]
        tokens = len(x)
        x = torch.cat([x, x.new_zeros(12 - tokens, 32)]) if padded else x

        def less(code, shape):
            kept = ~torch.isin(code.support.latent, which)
            return code._replace(value=code.value * kept)

        error = x - reconstruct(dictionary, x)
        changed = reconstruct(dictionary, x, less) + error
        torch.testing.assert_close(got[place], changed.sum(0) / tokens, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(got, pooled.site, atol=1e-2)


def test_pooled_latents_are_in_units_of_what_they_write_and_leave_out_the_start():
    subject, dictionary = reader(), some_dictionary()
    lines = ["w3 w4 w5 w6 w7", "w9"]
    pooled = pool(subject, [placed("d", dictionary)], lines, context=4)[0]
    x = subject.run(torch.tensor([[1, 3, 4, 5]]), capture=[SITE]).sites[SITE][0, 1:]
    length = dictionary.directions().norm(dim=1)
    torch.testing.assert_close(pooled.latents[0], (dictionary.encode(x).dense() * length).mean(0))
    torch.testing.assert_close(pooled.site[0], x.mean(0))


def test_the_exact_probe_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 4)).astype(np.float32) * [0.1, 1.0, 5.0, 30.0]
    yes = x @ [4.0, 1.0, -0.3, 0.01] + random.normal(size=300) > 0.5
    theirs = sklearn.LogisticRegression(max_iter=5000, tol=1e-9).fit(x, yes)
    mine = exact_probe(torch.tensor(x, dtype=torch.float32), torch.tensor(yes))
    np.testing.assert_allclose(mine.weight, theirs.coef_[0], atol=1e-3)
    np.testing.assert_allclose(mine.bias, theirs.intercept_[0], atol=1e-3)
    apart = exact_probe(torch.tensor([[0.0], [1000.0]]), torch.tensor([False, True]))
    assert torch.isfinite(apart.weight).all()


def test_a_trained_probe_learns_what_is_there_and_nothing_from_noise():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(1200, 8, generator=generator), torch.randn(1200, generator=generator) > 0
    settings = TrainedProbeSettings(epochs=40, lr=1e-2)
    for yes, low, high in ((x[:, 2] > 0, 0.93, 1.0), (noise, 0.4, 0.6)):
        sides = ((x[:200], yes[:200]), (x[200:400], yes[200:400]))
        learnt = trained_probe(*sides, settings, generator)
        assert low < learnt.accuracy(x[400:], yes[400:]) <= high


def test_a_class_meets_as_many_of_the_others_from_each_evenly():
    kinds = torch.tensor([0] * 10 + [1] * 30 + [2] * 30)
    task = one_against_others(kinds, 0, torch.Generator().manual_seed(0))
    assert task.yes.sum() == 10
    assert (kinds[task.which[task.yes]] == 0).all()
    assert torch.bincount(kinds[task.which[~task.yes]]).tolist() == [0, 5, 5]
    assert len(set(task.which.tolist())) == 20


def test_the_columns_are_those_whose_means_differ_most():
    x = torch.zeros(6, 4)
    yes = torch.tensor([True, True, True, False, False, False])
    x[yes, 2], x[~yes, 1] = 1.0, 3.0
    assert nearest_columns(x, yes, 2).tolist() == [1, 2]


def test_one_latent_that_is_the_class_is_found_and_a_blind_one_is_not(tmp_path):
    subject, data = reader(), classes(60)
    settings = SparseProbingSettings(train=80, test=80)
    good = sparse_probing(bench_of(subject, word_latents(subject), tmp_path / "a", data), settings)
    assert good.numbers["sae_top_1_test_accuracy"].value == 1.0
    assert next(iter(good.numbers)) == "sae_top_1_test_accuracy"
    assert good.controls["random_top_1_test_accuracy"].value < 1.0
    assert 0.3 < good.controls["shuffled_top_1_test_accuracy"].value < 0.7
    assert good.numbers["llm_test_accuracy"].value > 0.85
    blind = word_latents(subject, [[10, 11, 12]])
    bad = sparse_probing(bench_of(subject, blind, tmp_path / "b", data), settings)
    assert bad.numbers["sae_top_1_test_accuracy"].value < 0.65
    assert bad.numbers["sae_top_5_test_accuracy"].value < 0.75


def test_data_sets_are_kept_and_texts_without_labels_refused(tmp_path, monkeypatch):
    subject = reader()
    bench = bench_of(subject, word_latents(subject), tmp_path, classes(20))
    settings = SparseProbingSettings(train=16, test=16)
    first = sparse_probing(bench, settings)
    monkeypatch.setattr(subject, "run", None)
    assert sparse_probing(bench, settings) == first
    (tmp_path / "data" / "classes" / "train.tsv").write_text("text\tlabel\nw3 w4\tx\n")
    with pytest.raises(Refused, match="two labels"):
        sparse_probing(bench, settings)
