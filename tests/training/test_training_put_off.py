"""Gradients worked out in blocks against gradients that lie in memory as a whole."""

import pytest
import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.kernels import deferred
from unweave.dictionaries.kernels.native import building
from unweave.training import blocks, trainee
from unweave.training.batches import ArraySource
from unweave.training.dead import AuxK, DeadLatents
from unweave.training.penalties.l0 import L0
from unweave.training.penalties.pointwise import Tanh
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train

pytestmark = pytest.mark.skipif(building.library() is None, reason="no C compiler here")
LATENTS = 90
KINDS = {
    "topk": (TopK(k=4), {}, ()),
    "batchtopk": (BatchTopK(k=4), {"pre_bias": True}, ()),
    "nested": (TopK(k=4), {"nesting": (30, 90)}, ()),
    "jumprelu": (
        JumpReLU(threshold=1.5, bandwidth=0.5),
        {"decoder": "free"},
        tuple(Penalty(form=form, weight=0.05, warmup=0) for form in (Tanh(), L0())),
    ),
}


def trained(kind: str, *, at_least: int, monkeypatch, steps: int = 30):
    activation, changes, penalties = KINDS[kind]
    monkeypatch.setattr(trainee, "_PUT_OFF_BYTES", at_least)
    for module in (deferred, blocks):
        monkeypatch.setattr(module, "BLOCK", 32)
    x = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    dictionary = Dictionary(autoencoder("s", 20, LATENTS, activation, **changes))
    dead = DeadLatents(silent_share=0.1, auxk=AuxK(weight=0.5, k=3))
    settings = TraineeSettings(lr=1e-2, clip=0.05, penalties=penalties, dead=dead)
    source = ArraySource({"s": x}, batch=64, steps=steps, seed=1)
    one = Trainee({"d": dictionary}, settings, steps=steps, batch=64, seed=2)
    seen = []
    update = trainee.update_

    def watched(modules, optimizer, *, put_off, **more):
        whole = [n for n, p in modules.named_parameters() if p.dim() == 2 and p.grad is not None]
        seen.append((put_off is not None and put_off.of(dictionary.W_dec), whole))
        update(modules, optimizer, put_off=put_off, **more)

    monkeypatch.setattr(trainee, "update_", watched)
    train([one], source)
    monkeypatch.undo()
    return one, seen


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_train_as_the_whole_gradient_does(kind, monkeypatch):
    whole, seen_whole = trained(kind, at_least=1 << 40, monkeypatch=monkeypatch)
    split, seen_split = trained(kind, at_least=0, monkeypatch=monkeypatch)
    assert not any(entries for entries, _ in seen_whole)
    assert any(entries for entries, _ in seen_split)
    wanted, found = whole.state(), split.state()
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-4, msg=name)


def test_nothing_lies_in_memory_whole_but_what_the_dead_are_given(monkeypatch):
    _, seen = trained("topk", at_least=0, monkeypatch=monkeypatch, steps=2)
    entries, whole = seen[0]
    assert entries, "put off"
    assert not whole, "and nobody is dead yet"


def test_a_block_left_out_would_be_noticed(monkeypatch):
    whole, _ = trained("topk", at_least=1 << 40, monkeypatch=monkeypatch, steps=3)
    real = blocks.block_of
    monkeypatch.setattr(blocks, "block_of", lambda *a: real(*a) * (a[2] != 32))
    split, _ = trained("topk", at_least=0, monkeypatch=monkeypatch, steps=3)
    apart = (whole.state()["part.d.W_dec"] - split.state()["part.d.W_dec"]).abs()
    assert apart[32:64].max() > 0.01
