"""How vectors are held: number formats, widths that are no multiple of eight bytes, one copy."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.buffers import Buffers
from unweave.activations.scale import unit_scale
from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers

SITE = "blocks.1.mlp.out"
ROWS = tiny_rows(6, 16)


def vectors(subject, store, *, shuffled=True):
    settings = HarvestSettings(window_tokens=1000, slice_tokens=32, store=store)
    with Workers(1) as crew:
        h = Harvester(
            subject, ROWS, [SITE], workers=crew, seed=0, settings=settings, shuffled=shuffled
        )
        return h.window(0).vectors[SITE]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_bfloat16_subject_loses_nothing_in_half_the_memory(shuffled):
    subject = tiny_llama()
    subject.model.bfloat16()
    full = vectors(subject, "float32", shuffled=shuffled)
    half = vectors(subject, "subject", shuffled=shuffled)
    assert full.dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), full)
    assert 2 * half.untyped_storage().nbytes() == full.untyped_storage().nbytes()


def test_bfloat16_rounds_what_a_float32_subject_computes():
    subject = tiny_llama()
    full, half = vectors(subject, "float32"), vectors(subject, "bfloat16")
    assert torch.equal(vectors(subject, "subject"), full)
    assert torch.equal(full.bfloat16(), half)
    assert not torch.equal(half.float(), full)


def test_held_vectors_can_be_trained_on():
    """Copied inside inference mode, yet ordinary tensors."""
    x = vectors(tiny_llama(), "float32")
    weight = torch.ones(x.shape[1], requires_grad=True)
    (x * weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0))


@pytest.mark.parametrize("width", [1, 3, 4, 6, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_width_is_scattered_right(width, dtype):
    source = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    buffers = Buffers(7, dtype=dtype)
    places = [torch.tensor([6, 0, 3, 1]), torch.tensor([5, 2])]
    buffers.put("site", source, [5, 3], places)
    want = torch.empty(7, width)
    want[places[0]], want[places[1]] = source[0, 1:], source[1, 1:3]
    kept = [0, 1, 2, 3, 5, 6]  # nobody has written the row of index 4
    assert torch.equal(buffers["site"][kept], want[kept].to(dtype))


def test_padding_is_never_stored():
    source = torch.full((2, 4, 8), float("nan"))
    source[0, 1:], source[1, 1:2] = 1.0, 2.0
    buffers = Buffers(4, dtype=None)
    buffers.put("site", source, [4, 2], [slice(0, 3), slice(3, 4)])
    assert buffers["site"][:, 0].tolist() == [1, 1, 1, 2]


def test_the_scale_of_a_site_does_not_depend_on_how_it_is_held():
    subject = tiny_llama()
    subject.model.bfloat16()
    assert unit_scale(vectors(subject, "subject")) == unit_scale(vectors(subject, "float32"))
