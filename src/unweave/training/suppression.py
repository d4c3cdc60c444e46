"""Feature suppression and the finetune that undoes it (Wright & Sharkey 2024).

An L1 penalty makes latents fire more weakly than what they stand for. With the encoder frozen, so
that the same latents fire, the rest is fitted to reconstruction alone:

    scale:   y = W_dec^T (s . f) + b_dec, over s
    decoder: the same over s, W_dec and b_dec (the latter not where the encoder reads x - b_dec)

`scale_oracle` is the closed form of the first, and measures suppression latent by latent.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveFloat
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.kernels.ragged import write
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.batches import VectorBatch, VectorSource
from unweave.training.objectives.local import watch
from unweave.training.objectives.loss import Watched
from unweave.training.schedule import Schedule


class FinetuneSettings(BaseModel):
    """The encoder-frozen finetune."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    variant: Literal["scale", "decoder"] = "decoder"
    """What is trained: a factor per latent, or that and the decoder with its offset."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    schedule: Schedule = Schedule(shape="cosine", warmup=0.02, decay_from=0.2)
    """How the rate moves."""


class Suppression(NamedTuple):
    """How much weaker than it should a dictionary writes."""

    l2_ratio: float
    """Mean of |output| / |target|."""
    gamma: float
    """E|output|^2 / E[output . target]; below one is shrinkage (Rajamanoharan et al. 2024)."""
    strength: Float[Tensor, " latents"]
    """Each latent's strength as a share of what it should be by the scale oracle, 1 / s; nan for
    latents that never fired."""
    typical: float
    """Median of `strength` over the latents that fired."""


@torch.no_grad()
def scale_oracle(
    dictionary: Dictionary, batch: VectorBatch, *, ridge: float = 1e-6, rows_at_once: int = 4096
) -> Float[Tensor, " latents"]:
    """The factors s that minimise E|y - b_dec - sum_i s_i f_i d_i|^2.

    Solves G s = r with G_ij = E[f_i f_j] d_i . d_j and r_i = E[f_i d_i . (y - b_dec)], in float64.
    `ridge`, relative to the mean of G's diagonal, pulls towards one: latents that never fire get
    exactly that.
    """
    _refuse_pursuit(dictionary)
    seen = _watched(dictionary, batch)
    D = dictionary.decoder().double()
    missing = (seen.y - _beside(dictionary, seen)).double()
    gram, right = D.new_zeros(len(D), len(D)), D.new_zeros(len(D))
    for start in range(0, len(missing), rows_at_once):
        mine = slice(start, start + rows_at_once)
        stop = min(start + rows_at_once, len(missing))
        code = seen.passed.sparse_code.between(start, stop).dense().double()
        gram += code.T @ code
        right += (code * (missing[mine] @ D.T)).sum(0)
    gram *= D @ D.T
    pull = ridge * float(gram.diagonal().mean()) or 1.0
    gram.diagonal().add_(pull)
    return torch.linalg.solve(gram, right + pull).to(dictionary.W_dec.dtype)


@torch.no_grad()
def suppression(dictionary: Dictionary, batch: VectorBatch) -> Suppression:
    """Measure a dictionary's suppression on vectors of its sites."""
    seen = _watched(dictionary, batch)
    found = fidelity_of(fidelity_sums(seen.y, seen.passed.y, seen.passed.sparse_code))
    strength = 1 / scale_oracle(dictionary, batch)
    fired = seen.passed.sparse_code.fired() > 0
    strength[~fired] = float("nan")
    return Suppression(found.l2_ratio, found.gamma, strength, float(strength.nanmedian()))


def rescaled(dictionary: Dictionary, scale: Float[Tensor, " latents"]) -> Dictionary:
    """A copy whose latents write `scale` times as strongly and fire as before.

    Its decoder is free: the factors are the lengths of its rows.

    Raises:
        UserError: a pursuit, whose latents depend on its decoder.
    """
    return _with_decoder(dictionary, scale[:, None] * dictionary.decoder(), dictionary.b_dec)


def finetune(
    dictionary: Dictionary,
    source: VectorSource,
    settings: FinetuneSettings | None = None,
    *,
    progress: Progress = QUIET,
) -> Dictionary:
    """Fit what comes after the latents to reconstruction and return it as a new dictionary.

    The same latents fire as before, as strongly; the decoder of what is returned is free and
    holds the factors as lengths of its rows.

    Raises:
        UserError: a pursuit, whose latents depend on its decoder.
    """
    settings = settings or FinetuneSettings()
    _refuse_pursuit(dictionary)
    scale = torch.ones_like(dictionary.W_dec[:, 0]).requires_grad_()
    W_dec = dictionary.decoder().detach().clone()
    b_dec = dictionary.b_dec.detach().clone()
    trained = [scale]
    if settings.variant == "decoder":
        trained.append(W_dec.requires_grad_())
        if not dictionary.spec.pre_bias:  # there, moving the offset would move what fires
            trained.append(b_dec.requires_grad_())
    optimizer = torch.optim.Adam(trained, lr=settings.lr)
    with progress.task("Finetuning", total=source.steps, unit="batches") as advance:
        for step in range(source.steps):
            seen = _watched(dictionary, source.at(step))
            code = seen.passed.sparse_code
            value = code.value * scale[code.support.latent]
            offset = _beside(dictionary, seen) - dictionary.b_dec.detach() + b_dec
            error = write(value, W_dec, code.support) + offset - seen.y
            optimizer.zero_grad()
            error.square().sum(1).mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * settings.schedule.at(step, source.steps)
            optimizer.step()
            advance(1)
    return _with_decoder(dictionary, (scale[:, None] * W_dec).detach(), b_dec.detach())


@torch.no_grad()
def _watched(dictionary: Dictionary, batch: VectorBatch) -> Watched:
    training = dictionary.training
    dictionary.eval()  # thresholds in the place of batches: which latents fire must not change
    try:
        return watch(dictionary, batch)
    finally:
        dictionary.train(training)


@torch.no_grad()
def _beside(dictionary: Dictionary, seen: Watched) -> Float[Tensor, "rows d_out"]:
    """What is written without any latent."""
    offset = dictionary.b_dec.expand_as(seen.y)
    return offset if dictionary.W_skip is None else offset + seen.x @ dictionary.W_skip.T


@torch.no_grad()
def _with_decoder(dictionary: Dictionary, W_dec: Tensor, b_dec: Tensor) -> Dictionary:
    _refuse_pursuit(dictionary)
    new = Dictionary(dictionary.spec.model_copy(update={"decoder": "free"}))
    new.load_state_dict(dictionary.state_dict())
    new = new.to(dictionary.W_dec)
    new.W_dec.copy_(W_dec)
    new.b_dec.copy_(b_dec)
    return new.train(dictionary.training)


def _refuse_pursuit(dictionary: Dictionary) -> None:
    if dictionary.spec.encoder.kind == "pursuit":
        raise UserError(
            f"{dictionary.spec.name} encodes by pursuit with its own decoder, which leaves no "
            "suppression to undo; finetune dictionaries with an encoder of their own"
        )
