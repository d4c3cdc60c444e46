"""Coders in the running network: nothing changes that must not, and edits do what they say."""

import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.training.objectives.splice import Splice
from unweave.validate.placed import placed, run_with

D, SITE = 32, "blocks.1.resid_pre"
ROWS = tiny_rows(6, 12)


def some(**changes: object) -> Dictionary:
    spec = autoencoder(SITE, D, 48, TopK(k=4)).model_copy(update=changes)
    return bump(Dictionary(spec)).requires_grad_(False).eval()


def transcoder() -> Dictionary:
    spec = DictionarySpec(
        name="t", reads=(Port(site="blocks.0.mlp.in", width=D),),
        writes=(Port(site="blocks.0.mlp.out", width=D),), n_latents=48,
        activation=ReLU(), skip=True,
    )  # fmt: skip
    return bump(Dictionary(spec)).requires_grad_(False).eval()


@pytest.mark.parametrize("made", [some, transcoder, lambda: some(layer_norm=True)])
def test_a_dictionary_stands_in_the_network_as_it_does_in_training(made):
    subject, dictionary = tiny_llama(), made()
    ours = run_with(subject, ROWS, [placed("d", dictionary)]).logits
    theirs = Splice({"d": dictionary}).run(subject, ROWS).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(ours, subject.run(ROWS).logits, atol=1e-2)


@pytest.mark.parametrize("made", [some, transcoder, lambda: some(layer_norm=True)])
def test_with_its_error_kept_only_the_edit_is_left(made):
    subject, dictionary = tiny_llama(), made()
    one, original = placed("d", dictionary), subject.run(ROWS).logits
    same = run_with(subject, ROWS, [one], edit=lambda code, shape: code, keep_error=True).logits
    torch.testing.assert_close(same, original, atol=2e-5, rtol=1e-4)
    changed = run_with(subject, ROWS, [one], edit=silenced, keep_error=True).logits
    assert not torch.allclose(changed, original, atol=1e-2)


def silenced(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
    assert code.support.rows == shape[0] * shape[1]
    return code._replace(value=torch.zeros_like(code.value))


@pytest.mark.parametrize("norm", [False, True])
def test_an_edit_moves_the_stream_by_what_the_latents_write(norm):
    subject, dictionary = tiny_llama(), some(layer_norm=norm)
    one = placed("d", dictionary)
    was = subject.run(ROWS, capture=[SITE], logits=False).sites[SITE]
    now = run_with(
        subject, ROWS, [one], edit=silenced, keep_error=True, capture=[SITE], logits=False
    ).sites[SITE]
    inside = was[:, 1:].flatten(0, 1)
    size = (inside - inside.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt() + 1e-5
    written = dictionary.encode(inside).dense() @ dictionary.directions() * (size if norm else 1)
    torch.testing.assert_close((was - now)[:, 1:].flatten(0, 1), written, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(was[:, 0], now[:, 0])


def test_a_dictionary_fresh_from_training_is_judged_as_afterwards():
    subject, dictionary = tiny_llama(), bump(Dictionary(autoencoder(SITE, D, 48, BatchTopK(k=4))))
    dictionary.requires_grad_(False).activation.threshold.fill_(0.6)
    assert dictionary.training
    fresh = run_with(subject, ROWS, [placed("d", dictionary)]).logits
    assert dictionary.training
    with torch.no_grad():
        afterwards = Splice({"d": dictionary.eval()}).run(subject, ROWS).logits
        batches = Splice({"d": dictionary.train()}).run(subject, ROWS).logits
    torch.testing.assert_close(fresh, afterwards, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(fresh, batches, atol=1e-2)
