"""Reports on spliced dictionaries: what must be nought, what one, and what must come out bad."""

import numpy as np
import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows
from torch.nn import functional as F

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.validate.splice_dictionary import site_means, splice_reports

D, SITE, LATER = 32, "blocks.1.resid_pre", "blocks.1.resid_post"
ROWS = tiny_rows(10, 12)


def exact(site: str = SITE) -> Dictionary:
    dictionary = Dictionary(autoencoder(site, D, 2 * D, ReLU()))
    with torch.no_grad():
        both = torch.cat([torch.eye(D), -torch.eye(D)])
        dictionary.W_enc.copy_(both)
        dictionary.W_dec.copy_(both)
    return dictionary


def constant(value: torch.Tensor, site: str = SITE) -> Dictionary:
    """Writes one vector, whatever it reads."""
    dictionary = Dictionary(autoencoder(site, D, 8, ReLU()))
    with torch.no_grad():
        dictionary.b_dec.copy_(value)
    return dictionary


def test_exact_zero_and_mean_dictionaries_are_the_ends_of_the_scales():
    subject = tiny_llama()
    means = site_means(subject, [SITE], ROWS)
    sets = {
        "exact": {"d": exact()},
        "zero": {"d": constant(torch.zeros(D))},
        "mean": {"d": constant(means[SITE])},
    }
    found = splice_reports(subject, sets, ROWS, downstream_sites=[LATER], rows_at_once=3)
    best, zero, mean = found["exact"], found["zero"], found["mean"]
    assert abs(best.ce_increase.value) < 1e-5
    assert best.kl.value < 1e-6
    assert best.top1_agreement.value == 1
    assert best.recovered_zero.value == pytest.approx(1, abs=1e-5)
    assert best.downstream[LATER] < 1e-9
    inside = best.inside["d"]
    assert inside.fidelity.fvu < 1e-9
    assert inside.fvu_normalised < 1e-9
    assert inside.fidelity.l0 == pytest.approx(D, abs=0.1)
    assert zero.ce_increase.value == pytest.approx(zero.ce_increase_zero.value, abs=1e-6)
    assert zero.recovered_zero.value == pytest.approx(0, abs=1e-5)
    assert mean.ce_increase.value == pytest.approx(mean.ce_increase_mean.value, abs=1e-6)
    assert mean.recovered_mean.value == pytest.approx(0, abs=1e-5)
    assert mean.inside["d"].fidelity.fvu == pytest.approx(1, abs=1e-5)
    assert mean.inside["d"].fidelity.alive == 0
    assert mean.kl.value > 0.05
    assert mean.downstream[LATER] > 0.01


def test_numbers_are_those_of_the_network_run_by_hand():
    subject = tiny_llama()
    half = exact()
    with torch.no_grad():
        half.W_dec.mul_(0.4)
    found = splice_reports(subject, {"half": {"d": half}}, ROWS)["half"]

    def shrink(x):
        return torch.cat([x[:, :1], 0.4 * x[:, 1:]], dim=1)

    with torch.no_grad():
        p = subject.run(ROWS).logits[:, 1:-1].flatten(0, 1)
        q = subject.run(ROWS, replace={SITE: shrink}).logits[:, 1:-1].flatten(0, 1)
    wanted = ROWS[:, 2:].flatten()
    increase = F.cross_entropy(q, wanted) - F.cross_entropy(p, wanted)
    assert found.ce_increase.value == pytest.approx(increase.item(), abs=1e-5)
    assert found.ce_original.value == pytest.approx(F.cross_entropy(p, wanted).item(), abs=1e-5)
    kl = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)
    assert found.kl.value == pytest.approx(kl.item(), rel=1e-4)
    assert found.ce_increase.low <= found.ce_increase.value <= found.ce_increase.high
    # A shrunken stream is a bad copy to the eye and a perfect one after a norm.
    assert found.inside["d"].fidelity.l2_ratio == pytest.approx(0.4, abs=1e-5)
    assert found.inside["d"].fidelity.gamma == pytest.approx(0.4, abs=1e-5)
    assert found.inside["d"].fidelity.fvu > 0.3
    assert found.inside["d"].fvu_normalised < 1e-9


def test_several_dictionaries_stand_in_at_once():
    subject = tiny_llama()
    sites = ["blocks.0.mlp.out", "blocks.1.mlp.out"]
    apart = {site: {site: constant(torch.zeros(D), site)} for site in sites}
    both = {site: apart[site][site] for site in sites}
    found = splice_reports(subject, apart | {"both": both, "exact": {"d": exact(sites[0])}}, ROWS)
    assert set(found["both"].inside) == set(sites)

    def zero(x):
        return torch.cat([x[:, :1], 0 * x[:, 1:]], dim=1)

    with torch.no_grad():
        p = subject.run(ROWS).logits[:, 1:-1].flatten(0, 1).log_softmax(-1)
        q = subject.run(ROWS, replace=dict.fromkeys(sites, zero)).logits[:, 1:-1].flatten(0, 1)
    kl = F.kl_div(q.log_softmax(-1), p, reduction="batchmean", log_target=True)
    assert found["both"].kl.value == pytest.approx(kl.item(), rel=1e-4)
    assert found["both"].ce_increase_zero.value == pytest.approx(found["both"].ce_increase.value)
    assert found[sites[0]].ce_increase_zero.value == pytest.approx(
        found["exact"].ce_increase_zero.value
    )


def test_a_transcoder_is_held_against_what_the_block_writes():
    subject = tiny_llama()
    ports = [Port(site=f"blocks.1.mlp.{end}", width=D) for end in ("in", "out")]
    spec = DictionarySpec(reads=ports[:1], writes=ports[1:], n_latents=8, activation=ReLU())
    transcoder = Dictionary(spec)
    means = site_means(subject, [ports[1].site], ROWS)
    with torch.no_grad():
        transcoder.b_dec.copy_(means[ports[1].site])
    found = splice_reports(subject, {"t": {"t": transcoder}}, ROWS, means=means)["t"]
    assert found.inside["t"].fidelity.fvu == pytest.approx(1, abs=1e-5)
    assert found.recovered_mean.value == pytest.approx(0, abs=1e-5)


def test_modes_are_put_back_and_thresholds_are_used():
    subject = tiny_llama()
    dictionary = Dictionary(autoencoder(SITE, D, 2 * D, BatchTopK(k=3)))
    torch.nn.init.normal_(dictionary.W_enc)
    dictionary.train()
    whole = splice_reports(subject, {"d": {"d": dictionary}}, ROWS, rows_at_once=10)["d"]
    pieces = splice_reports(subject, {"d": {"d": dictionary}}, ROWS, rows_at_once=2)["d"]
    assert dictionary.training
    assert np.allclose(whole.kl.value, pieces.kl.value)
