"""Latents that have fallen silent: how long, and two ways to bring them back.

Both work with shares of the run, so that a short run on a small machine is protected too; public
trainers count in millions of tokens, which such a run never reaches.
"""

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.encoder.linear import linear_scorer
from unweave.dictionaries.kernels.fit import fit
from unweave.dictionaries.kernels.ragged import pick, write
from unweave.dictionaries.shares import batch_spread, shares


class AuxK(BaseModel):
    """Dead latents reconstruct what is left over (Gao et al. 2024)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weight: NonNegativeFloat = 1 / 32
    """Factor of their loss, itself relative to the variance of what is left over; the main loss
    is taken relative to the target's variance for this purpose."""
    k: PositiveInt | None = None
    """Dead latents per row; half the width of what is written when not given."""
    every: PositiveInt = 1
    """Steps from one use to the next; the factor is multiplied by it."""

    def at(self, step: int) -> "AuxK | None":
        """What of it there is in a step."""
        if step % self.every:
            return None
        return self.model_copy(update={"weight": self.weight * self.every})


class Resample(BaseModel):
    """Dead latents restart at badly served vectors (Bricken et al. 2023)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    at: tuple[float, ...] = (0.15, 0.3, 0.45)
    """Shares of the run at which it happens."""
    height: PositiveFloat = 0.5
    """Length of the new encoder row relative to the living ones' mean. The paper takes 0.2, with
    which a latent hardly ever comes among the k largest."""


class DeadLatents(BaseModel):
    """When a latent counts as dead and what is done about it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    silent_share: float = Field(default=0.05, gt=0, lt=1)
    """Dead is who was silent for this share of the run's vectors."""
    auxk: AuxK | None = AuxK()
    """The auxiliary loss, for dictionaries with linear encoders."""
    resample: Resample | None = None
    """Restarts."""


class Silence:
    """For how many vectors each latent has not fired."""

    def __init__(self, n_latents: int, device: torch.device | None = None) -> None:
        self.since: Int[Tensor, " latents"] = torch.zeros(
            n_latents, dtype=torch.long, device=device
        )

    def note(self, code: SparseCode) -> None:
        """Count one batch."""
        self.since += code.support.rows
        self.since[code.support.latent[code.value != 0]] = 0

    def dead(self, limit: float) -> Bool[Tensor, " latents"]:
        """Who has been silent for more than `limit` vectors."""
        return self.since > limit


def auxk_loss(
    dictionary: Dictionary,
    x: Float[Tensor, "rows d_in"],
    missing: Float[Tensor, "rows d_out"],
    dead: Bool[Tensor, " latents"],
    k: int | None,
) -> Float[Tensor, ""]:
    """Share of `missing` (what the living latents left over) that the best k dead ones leave too.

    Gradients go to the dead latents alone: their encoder rows read x, their decoder rows write.
    """
    which = dead.nonzero()[:, 0]
    read = (x - dictionary.b_dec.detach() if dictionary.spec.pre_bias else x).detach()
    missing = missing.detach()
    W_enc, W_dec = (_rows_of(matrix, which) for matrix in (dictionary.W_enc, dictionary.W_dec))
    b_enc = dictionary.b_enc[which]
    if dictionary.spec.decoder == "normalised":
        W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    k = min(k or max(1, dictionary.spec.d_out // 2), shares().dead(dead).total)
    dtype = dictionary.product_dtype(read)
    low, scorer = read.to(dtype), linear_scorer(W_enc, b_enc, dtype)
    support, score = shares().of_rows(scorer, low, len(which), k)
    value = torch.relu(pick(score, read, W_enc, b_enc, support, low))
    if dictionary.whole:
        error, _ = fit(
            value, W_dec, missing.new_zeros(missing.shape[1]), missing, support, dtype=dtype
        )
    else:
        written = shares().add_up(write(value, W_dec, support, dtype=dtype))
        error = (written - missing).square().sum(1).mean()
    return error / batch_spread(missing).clamp_min(1e-12)


def _rows_of(matrix: Tensor, which: Tensor) -> Tensor:
    """Some rows, whose gradient is added to theirs without a matrix of zeros around it."""
    return torch.nn.functional.embedding(which, matrix, sparse=True)


@torch.no_grad()
def resample_(
    dictionary: Dictionary,
    optimizer: torch.optim.Optimizer,
    x: Float[Tensor, "rows d_in"],
    missing: Float[Tensor, "rows d_out"],
    dead: Bool[Tensor, " latents"],
    *,
    height: float,
    generator: torch.Generator,
) -> int:
    """Restart dead latents at rows drawn with probability proportional to their squared loss.

    The encoder row points at what was read, the decoder row at what was missing (the same for an
    autoencoder up to the latents that did fire); moments of Adam are forgotten. Rows are written
    through one index, so that the weights really change. Returns how many were restarted.
    """
    which, numbered = dead.nonzero()[:, 0], shares().dead(dead)
    if not numbered.total:
        return 0
    x, missing = shares().rows(x), shares().rows(missing)
    read = x - dictionary.b_dec if dictionary.spec.pre_bias else x
    weight = missing.square().sum(1).square().clamp_min(1e-12)
    # Drawn on the processor, from which the generator is.
    drawn = torch.multinomial(weight.cpu(), numbered.total, True, generator=generator)
    drawn = drawn.to(x.device)[numbered.place]
    size = height * _mean_norm(dictionary.W_enc, ~dead)
    middle = read.mean(0)
    direction = _unit(read[drawn] - middle)
    length = _mean_norm(dictionary.W_dec, ~dead)
    dictionary.encoder.W_enc[which] = direction * size
    dictionary.encoder.b_enc[which] = -(direction * size) @ middle
    dictionary.W_dec[which] = _unit(missing[drawn]) * length
    for parameter in (dictionary.encoder.W_enc, dictionary.encoder.b_enc, dictionary.W_dec):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state.get(parameter, {}).get(name)
            if moment is not None:
                moment[which] = 0
    return numbered.total


def _mean_norm(rows: Tensor, which: Tensor) -> float:
    """Mean length of the chosen rows; one where there are none."""
    lengths = rows.norm(dim=1)[which]
    total, count = shares().total(torch.stack([lengths.sum(), which.sum().to(lengths.dtype)]))
    return float(total / count) if count else 1.0


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
