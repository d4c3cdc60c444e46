"""Mean squared distance between what a code decodes to and its target, with its gradients.

    loss = mean over rows of |y - target|^2,   y = sum of v_e W_dec[latent_e] + b_dec

While a row of the output lies in the cache it is compared with its target and the error taken
back to the values, so that output and error are not read from memory again.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.deferred import putting_off_for
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.listed import lists_rows
from unweave.dictionaries.kernels.native import calls as native
from unweave.dictionaries.kernels.ragged import gradient_of_rows, write
from unweave.dictionaries.kernels.rounding import rounded


def fit(
    value: Float[Tensor, " active"],
    W_dec: Float[Tensor, "latents d_out"],
    b_dec: Float[Tensor, " d_out"],
    target: Float[Tensor, "rows d_out"],
    support: Support,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows d_out"]]:
    """The loss, differentiable in values, `W_dec` and `b_dec`; and the output, which is not.

    With `dtype` bfloat16 products are taken of rounded rows and errors, where that is faster.
    """
    on_gpu = gpu.able(value, W_dec, b_dec, target) and gpu.fits(target.shape[1])
    if on_gpu or native.able(value, W_dec, b_dec, target):
        return _Fit.apply(value, W_dec, b_dec, target, support, dtype)
    y = write(value, W_dec, support, dtype=dtype) + b_dec
    return (y - target).square().sum(1).mean(), y.detach()


class _Fit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, W_dec, b_dec, target, support, dtype):  # type: ignore[no-untyped-def]
        matrix = rounded(W_dec, dtype)
        code = (support.latent, value, support.offsets)
        rows = max(1, len(target))
        found = (gpu if gpu.able(target) else native).fit(matrix, *code, b_dec, target, 2 / rows)
        ctx.save_for_backward(value, found.error, found.to_value, found.to_bias.sum(0))
        ctx.support, ctx.listed, ctx.put_off = support, lists_rows(W_dec), putting_off_for(W_dec)
        ctx.mark_non_differentiable(found.y)
        return (found.square.sum() / rows).float(), found.y

    @staticmethod
    def backward(ctx, g, _):  # type: ignore[no-untyped-def]
        value, error, to_value, to_b_dec = ctx.saved_tensors
        if gpu.elsewhere(g) or g != 1:  # elsewhere looking would take longer than multiplying
            value, to_value, to_b_dec = value * g, to_value * g, to_b_dec * g
        to_W_dec = None
        if ctx.needs_input_grad[1]:
            how = {"listed": ctx.listed, "put_off": ctx.put_off}
            to_W_dec = gradient_of_rows(value, error, ctx.support, **how)
        return to_value, to_W_dec, to_b_dec, None, None, None
