"""ISTA and FISTA: the sparse code that an L1 penalty asks for, found instead of guessed.

    F(c) = 1/2 |x - D c|^2 + lambda |c|_1,    c >= 0 or signed

Both repeat a gradient step of length 1/L, L = |D^T D|_2, followed by soft thresholding at
lambda / L. FISTA takes the gradient at a point beyond the last one,

    y = c_k + (t_k - 1) / t_{k+1} (c_k - c_{k-1}),    t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2,

which brings F(c_k) - F* from L |c*|^2 / 2k to 2 L |c*|^2 / (k + 1)^2 (Beck & Teboulle 2009). What
an autoencoder with an L1 penalty trains its encoder to guess is this minimum. `x` is what the
dictionary alone should add up to; atoms of different norms pay differently for the same output, so
scale them to unit norm if the penalty is meant to be on c_i |d_i|.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode, Support
from unweave.dictionaries.coders.refit import TILE_ROWS
from unweave.dictionaries.kernels.ragged import write
from unweave.errors import UserError


def fista(
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    penalty: float,
    *,
    signed: bool = False,
    steps: int = 1000,
    tolerance: float = 1e-5,
) -> SparseCode:
    """The minimum of F per row with momentum, after at most `steps` steps.

    A row stops when its step's generalised gradient, L |c_{k+1} - y|, is nowhere larger than
    `tolerance` times the largest correlation of an atom with the row. A penalty of zero, unless
    `signed`, is non-negative least squares.
    """
    return _descend(x, W_dec, penalty, signed, steps, tolerance, momentum=True)


def ista(
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    penalty: float,
    *,
    signed: bool = False,
    steps: int = 1000,
    tolerance: float = 1e-5,
) -> SparseCode:
    """The same without momentum (Daubechies et al. 2004): slower, and F falls at every step."""
    return _descend(x, W_dec, penalty, signed, steps, tolerance, momentum=False)


def objective(
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    code: SparseCode,
    penalty: float,
) -> Float[Tensor, " rows"]:
    """F of every row."""
    error = (x - write(code.value, W_dec, code.support)).square().sum(1)
    size = torch.zeros_like(error).index_add_(0, code.support.row, code.value.abs())
    return error / 2 + penalty * size


def lipschitz(W_dec: Float[Tensor, "latents d"]) -> float:
    """Largest eigenvalue of D^T D."""
    wide = W_dec.shape[0] < W_dec.shape[1]
    return torch.linalg.eigvalsh(W_dec @ W_dec.T if wide else W_dec.T @ W_dec)[-1].item()


@torch.no_grad()
def _descend(
    x: Tensor,
    W_dec: Tensor,
    penalty: float,
    signed: bool,
    steps: int,
    tolerance: float,
    *,
    momentum: bool,
) -> SparseCode:
    if penalty < 0 or steps < 1:
        raise UserError(
            f"FISTA needs a penalty of at least 0 and at least one step; got {penalty} and {steps}"
        )
    L = max(lipschitz(W_dec), torch.finfo(x.dtype).tiny)
    # Two products with D per step, or one with D^T D where that is the smaller matrix.
    gram = W_dec @ W_dec.T if len(W_dec) <= 2 * W_dec.shape[1] else None

    def gradient(c: Tensor, target: Tensor) -> Tensor:
        return (c @ gram if gram is not None else (c @ W_dec) @ W_dec.T) - target

    def shrink(c: Tensor) -> Tensor:
        return F.softshrink(c, penalty / L) if signed else (c - penalty / L).clamp_min_(0)

    tiles = [
        SparseCode.from_dense(
            _minimise(gradient, shrink, rows @ W_dec.T, L, steps, tolerance, momentum)
        )
        for rows in (x.split(TILE_ROWS) if len(x) else ())
    ]
    return _stack(tiles, x, len(W_dec))


def _minimise(
    gradient: Callable[[Tensor, Tensor], Tensor],
    shrink: Callable[[Tensor], Tensor],
    target: Tensor,
    L: float,
    steps: int,
    tolerance: float,
    momentum: bool,
) -> Tensor:
    """A row that has arrived leaves the tile, so that no row's code depends on its neighbours."""
    found, going = torch.zeros_like(target), torch.arange(len(target), device=target.device)
    # Below rounding a row would never arrive, and momentum would only carry the noise around.
    reachable = max(tolerance, 8 * torch.finfo(target.dtype).eps)
    stop = reachable * target.abs().amax(1)
    c = y = found
    t = 1.0
    for _ in range(steps):
        last, c = c, shrink(y - gradient(y, target) / L)
        on = L * (c - y).abs().amax(1) > stop
        if not on.all():
            found[going[~on]] = c[~on]
            going, stop, target, last, c = going[on], stop[on], target[on], last[on], c[on]
            if not len(going):
                break
        y = c
        if momentum:
            t, before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
            y = c + (before - 1) / t * (c - last)
    found[going] = c
    return found


def _stack(tiles: list[SparseCode], x: Tensor, n_latents: int) -> SparseCode:
    """One code of the rows of several."""
    counts = [tile.support.offsets.diff() for tile in tiles]
    empty = torch.zeros(1, dtype=torch.long, device=x.device)
    offsets = torch.cat([empty, torch.cat([empty[:0], *counts]).cumsum(0)])
    latent = torch.cat([empty[:0], *(tile.support.latent for tile in tiles)])
    value = torch.cat([x.new_zeros(0), *(tile.value for tile in tiles)])
    return SparseCode(Support(offsets, latent, n_latents), value)
