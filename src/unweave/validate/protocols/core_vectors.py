"""The core metrics that need vectors of the site alone, and those that need weights alone."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.artifact.scores import Number
from unweave.dictionaries.metrics import FidelitySums, fidelity_of, fidelity_sums
from unweave.validate.placed import Placed, reconstruct


class VectorSums:
    """Sums over vectors that come in groups of whole rows."""

    def __init__(self, one: Placed, row: int) -> None:
        """`row` is the number of vectors of a row of text."""
        self._one, self._row = one, row
        # Published dictionaries have decoder rows of norm one: latents are in units of the site.
        self._length = one.coder.directions().float().norm(dim=1)
        self.fidelity: FidelitySums | None = None
        self.l1 = self.norm_in = self.norm_out = 0.0
        self.target_sq: Tensor | None = None
        """Sum of the squares of each coordinate."""
        self.legacy = 0.0
        """Sum over vectors of their error over their squared distance from the batch's mean."""
        self.fired_rows = torch.zeros(one.coder.n_latents, dtype=torch.long)
        """In how many rows of text each latent fired at all."""

    @torch.no_grad()
    def add(self, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"]) -> None:
        """Count the vectors of some whole rows of text."""
        coder = self._one.coder
        code, out = coder.encode(x), reconstruct(coder, x)
        found = fidelity_sums(y, out, code)
        self.fidelity = found if self.fidelity is None else self.fidelity + found
        written = code.value * self._length[code.support.latent]
        self.l1 += written.double().sum().item()
        self.norm_in += y.norm(dim=1).double().sum().item()
        self.norm_out += out.norm(dim=1).double().sum().item()
        squares = y.double().square().sum(0)
        self.target_sq = squares if self.target_sq is None else self.target_sq + squares
        spread = (y - y.mean(0)).square().sum(1)
        self.legacy += (1 - (y - out).square().sum(1) / spread).double().sum().item()
        on = code.value != 0
        where = (code.support.row[on] // self._row) * coder.n_latents + code.support.latent[on]
        latent = where.unique() % coder.n_latents
        self.fired_rows += torch.bincount(latent, minlength=coder.n_latents).cpu()


def vector_numbers(sums: VectorSums, *, tokens_of_batch: int) -> dict[str, Number]:
    """The numbers under the names of SAEBench's output; those that are 0 / 0 are left out."""
    assert sums.fidelity is not None
    assert sums.target_sq is not None
    got, rows = sums.fidelity, sums.fidelity.rows
    plain = fidelity_of(got)
    width = len(sums.target_sq)
    # As in sae-bench 0.6.0: mean of squares over all coordinates, squared, for the squared mean.
    published = (sums.target_sq.sum() / rows - (sums.target_sq.sum() / rows / width) ** 2).item()
    density = got.fired.double() / rows
    shares = {
        "explained_variance": 1 - plain.fvu,
        "explained_variance_as_published": 1 - got.error_sq / rows / published,
        "explained_variance_legacy": sums.legacy / rows,
        "cossim": plain.cosine,
        "l2_ratio": plain.l2_ratio,
        "relative_reconstruction_bias": plain.gamma,
        "frac_alive": plain.alive,
        "freq_over_1_percent": (density > 0.01).double().mean().item(),
        "freq_over_10_percent": (density > 0.1).double().mean().item(),
        "normalized_freq_over_1_percent": _part(density, density > 0.01),
        "normalized_freq_over_10_percent": _part(density, density > 0.1),
    }
    others = {
        "l0": (got.fired.sum().item() / rows, "latents/token"),
        "l1": (sums.l1 / rows, "activation/token"),
        "l2_norm_in": (sums.norm_in / rows, "activation"),
        "l2_norm_out": (sums.norm_out / rows, "activation"),
        "mse": (plain.mse, "squared activation"),
        "mse_as_published": (got.error_sq / rows / tokens_of_batch, "squared activation"),
    }
    found = {name: (value, "share") for name, value in shares.items()} | others
    return {
        name: Number(value=value, unit=unit)
        for name, (value, unit) in found.items()
        if math.isfinite(value)
    }


def _part(density: Tensor, which: Tensor) -> float:
    return (density[which].sum() / density.sum().clamp_min(1e-300)).item()


@torch.no_grad()
def weight_numbers(one: Placed) -> dict[str, Number]:
    """Mean over latents of the largest cosine with another latent: decoder and encoder rows."""
    found = {"average_max_decoder_cosine_sim": nearest_cosines(one.coder.directions()).mean()}
    read = getattr(getattr(one.coder, "encoder", None), "W_enc", None)
    if isinstance(read, Tensor) and read.ndim == 2:
        found["average_max_encoder_cosine_sim"] = nearest_cosines(read.detach()).mean()
    return {name: Number(value=value.item(), unit="cosine") for name, value in found.items()}


def nearest_cosines(rows: Float[Tensor, "latents d"]) -> Float[Tensor, " latents"]:
    """Largest cosine of each row with any other."""
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    best = []
    for start in range(0, len(unit), 1024):
        cosines = unit[start : start + 1024] @ unit.T
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -2.0
        best.append(cosines.max(1).values)
    return torch.cat(best)
