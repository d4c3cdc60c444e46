"""The sparse kernels against the same sums written out densely in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unweave.dictionaries.kernels.sparse import (
    TILE_ROWS,
    Code,
    SparsePart,
    decode,
    input_gradient,
    select_topk,
    value_gradient,
    weight_gradients,
)

HEADS = pytest.mark.parametrize("heads", [1, 4])


def weights(n=24, d_in=12, d_out=7, *, heads=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw(n, d_in // heads), 0.1 * draw(n), draw(n, d_out)


def inputs(rows=9, d_in=12, *, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, d_in, generator=generator, dtype=torch.float64).to(dtype)


def dense_activations(x, W_enc, b_enc, k, heads):
    """[rows, latents]: relu, and zero outside the k largest, with whole encoder rows."""
    n, d_read = W_enc.shape
    blocks = [
        torch.nn.functional.pad(row, (h * d_read, (heads - 1 - h) * d_read))
        for row, h in ((W_enc[i], i * heads // n) for i in range(n))
    ]
    pre = x @ torch.stack(blocks).T + b_enc
    keep = torch.zeros_like(pre).scatter(1, pre.topk(k, dim=1).indices, 1.0)
    return pre.relu() * keep


def scattered(code: Code, n: int):
    return torch.zeros(len(code.latent), n, dtype=code.value.dtype).scatter(
        1, code.latent, code.value
    )


@HEADS
@pytest.mark.parametrize("k", [1, 5, 24])
@pytest.mark.parametrize("rows", [3, 2 * TILE_ROWS + 7])
def test_select_topk_is_the_dense_selection(heads, k, rows):
    W_enc, b_enc, _ = weights(heads=heads)
    x = inputs(rows)
    code = select_topk(x, W_enc, b_enc, k, heads=heads)
    assert code.latent.shape == code.value.shape == (rows, k)
    torch.testing.assert_close(
        scattered(code, 24), dense_activations(x, W_enc, b_enc, k, heads), rtol=1e-12, atol=1e-12
    )


@HEADS
def test_rows_with_fewer_than_k_positives_are_filled_up_with_zeros(heads):
    W_enc, b_enc, _ = weights(heads=heads)
    x = inputs(200)
    b_enc = b_enc - 4.0
    code = select_topk(x, W_enc, b_enc, 6, heads=heads)
    want = dense_activations(x, W_enc, b_enc, 6, heads)
    positives = (want > 0).sum(1)
    assert {0, 2} < set(positives.tolist())
    assert torch.equal((code.value > 0).sum(1), positives)
    assert (code.value >= 0).all()
    torch.testing.assert_close(scattered(code, 24), want)
    assert all(len(set(row)) == 6 for row in code.latent.tolist())


@HEADS
def test_everything_is_kept_when_k_is_the_number_of_latents(heads):
    W_enc, b_enc, W_dec = weights(heads=heads)
    x = inputs()
    code = select_topk(x, W_enc, b_enc, 24, heads=heads)
    want = dense_activations(x, W_enc, b_enc, 24, heads) @ W_dec
    torch.testing.assert_close(decode(code, W_dec), want)


@HEADS
@pytest.mark.parametrize("k", [4, 24])
def test_all_gradients_are_those_of_dense_autograd(heads, k):
    """Both paths into the loss: through the output and through the activations themselves."""
    x = inputs().requires_grad_()
    tensors = [x, *(w.requires_grad_() for w in weights(heads=heads))]
    pull_y = inputs(9, 7, seed=2)
    pull_f = inputs(9, 24, seed=3)

    total, latent, value = SparsePart.apply(*tensors, k, heads)
    loss = (total * pull_y).sum() + (scattered(Code(latent, value), 24) * pull_f).sum()
    found = torch.autograd.grad(loss, tensors)

    activations = dense_activations(*tensors[:3], k, heads)
    loss = (activations @ tensors[3] * pull_y).sum() + (activations * pull_f).sum()
    wanted = torch.autograd.grad(loss, tensors)
    for name, got, want in zip(("x", "W_enc", "b_enc", "W_dec"), found, wanted, strict=True):
        torch.testing.assert_close(got, want, msg=lambda m, n=name: f"{n}: {m}")
        assert want.abs().max() > 0.1


@HEADS
def test_gradients_are_finite_differences(heads):
    x = inputs(4).requires_grad_()
    tensors = [x, *(w.requires_grad_() for w in weights(heads=heads))]

    def outputs(*given):
        total, latent, value = SparsePart.apply(*given, 3, heads)
        return total, scattered(Code(latent, value), 24)

    assert torch.autograd.gradcheck(outputs, tensors, eps=1e-7, atol=1e-5)


@HEADS
def test_each_gradient_kernel_alone(heads):
    W_enc, b_enc, W_dec = weights(heads=heads)
    x, g = inputs(50), inputs(50, 7, seed=4)
    code = select_topk(x, W_enc, b_enc - 1.0, 6, heads=heads)
    assert (code.value == 0).any()
    open_ = (scattered(code, 24) > 0).double()
    dense = (g @ W_dec.T) * open_

    values = value_gradient(code, g, W_dec)
    torch.testing.assert_close(values, dense.gather(1, code.latent))

    grads = weight_gradients(code, values, x, g, 24, heads=heads)
    torch.testing.assert_close(grads.W_dec, scattered(code, 24).T @ g)
    torch.testing.assert_close(grads.b_enc, dense.sum(0))
    whole = dense.T @ x
    read = [slice(i * heads // 24 * (12 // heads), None) for i in range(24)]
    want = torch.stack([whole[i, r][: 12 // heads] for i, r in enumerate(read)])
    torch.testing.assert_close(grads.W_enc, want)

    dx = input_gradient(code, values, W_enc, heads=heads)
    want = torch.zeros_like(x)
    for i, r in enumerate(read):
        want[:, r.start : r.start + 12 // heads] += dense[:, i : i + 1] * W_enc[i]
    torch.testing.assert_close(dx, want)


def test_a_latent_that_no_row_selects_gets_no_gradient():
    W_enc, b_enc, W_dec = weights()
    b_enc[[0, 11, 23]] = -100.0
    x, g = inputs(50), inputs(50, 7, seed=4)
    code = select_topk(x, W_enc, b_enc, 4)
    grads = weight_gradients(code, value_gradient(code, g, W_dec), x, g, 24)
    for gradient in grads:
        assert (gradient[[0, 11, 23]] == 0).all()
    assert (grads.W_dec[1:11].abs().sum(1) > 0).all()


class Largest(TorchDispatchMode):
    """Notes the largest strided tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.numel = max(self.numel, tensor.numel())
        return out


@HEADS
def test_no_tensor_of_rows_times_latents_is_ever_made(heads):
    rows, n = 3 * TILE_ROWS, 640
    W = [w.requires_grad_() for w in weights(n, 16, 8, heads=heads, dtype=torch.float32)]
    x = inputs(rows, 16, dtype=torch.float32).requires_grad_()
    saved = []
    with (
        Largest() as made,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        total, _, _ = SparsePart.apply(x, *W, 8, heads)
        total.square().sum().backward()
    assert made.numel == TILE_ROWS * n  # the tile of pre-activations, and the mode saw it
    assert max(tensor.numel() for tensor in saved) < rows * 32
    assert x.grad is not None
    assert all(w.grad is not None for w in W)


@HEADS
def test_float32_agrees_with_float64(heads):
    W64 = weights(640, 32, 16, heads=heads)
    x64 = inputs(300, 32)
    code = select_topk(x64.float(), *(w.float() for w in W64[:2]), 16, heads=heads)
    want = dense_activations(x64, *W64[:2], 16, heads) @ W64[2]
    error = (decode(code, W64[2].float()).double() - want).norm() / want.norm()
    assert error < 1e-5
