"""What a latent does to all logits where it fires, predicted from weights alone and then measured.

At one place of a row a latent's activation v is set to m v (m = 0 ablates it). With d what one unit
of it writes and s the scale of the final norm there, held at what it was, the direct prediction is

    change of the logits = (m - 1) v / s * (unembedding . d)

which is exact but for s where no layer lies between; logits that are capped are not foreseen. The
mean over the vocabulary is taken out of both sides: a softmax takes no notice of it. `measuring`
asks the same of the next token alone, with gradients and other interventions besides.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.attribution_maps.ranks import spearman
from unweave.validate.bootstrap import BootstrapSettings, Interval, mean_interval, ratio_interval
from unweave.validate.interventions.latents import (
    Latents,
    latents_on,
    one_writer,
    partners,
    sample_by_mass,
    setting,
)
from unweave.validate.placed import Placed, run_with


class LogitEffectSettings(BaseModel):
    """Settings of the test over the vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    latents: PositiveInt = 32
    """Latents tested, drawn by firing mass."""
    places: PositiveInt = 8
    """Rows of each latent, changed at one place where it is active."""
    multiple: float = 0.0
    """What its activation is multiplied by: 0 ablates it."""
    strongest: int = Field(default=20, ge=3)
    """Tokens with the largest predicted change, for the sign and the second rank."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals, over latents."""


class LogitAgreement(NamedTuple):
    """Predicted beside measured; a correlation that does not exist counts as 0."""

    sign: Interval
    """Share of the strongest predicted tokens that move the predicted way."""
    rank: Interval
    """Spearman's correlation over the vocabulary, mean over places and latents."""
    rank_strongest: Interval
    """The same over the strongest predicted tokens."""
    slope: Interval
    """Of the least squares line of measured on predicted, all latents together."""
    r2: Interval
    """Squared correlation over places and tokens, mean over latents."""


class LogitEffects(NamedTuple):
    """How well a dictionary's effects are predicted, and how well wrong predictions do."""

    own: LogitAgreement
    """Each latent by its own direction."""
    partner: LogitAgreement
    """By that of the latent nearest in frequency and strength, at the own one's norm."""
    random: LogitAgreement
    """By a random direction of the same norm."""
    latents: tuple[int, ...]
    """Those tested."""
    places: int
    """Places changed in all."""


@torch.no_grad()
def logit_effects_of(
    subject: Subject,
    one: Placed,
    rows: Int[Tensor, "rows pos"],
    settings: LogitEffectSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = QUIET,
) -> LogitEffects:
    """Predict, change one latent at one place of each row, compare; controls always beside it.

    Raises:
        UserError: a dictionary that never fires, or that does not write one site of the residual
            stream's width; a multiple that changes nothing.
    """
    settings = settings or LogitEffectSettings()
    if settings.multiple == 1:
        raise UserError("A multiple of 1 changes no latent: choose 0 to ablate, or 2 to double")
    site, latents = one_writer(one), latents_on(subject, one, rows)
    if latents.directions.shape[1] != subject.d_model:
        raise UserError(
            f"{one.name} writes {site}, which is not of the residual stream's width: its direct "
            "effect on the logits is not defined"
        )
    chosen = sample_by_mass(latents, settings.latents, seed=seed)
    others = partners(latents, chosen)
    scores: dict[str, list[_Scores]] = {"own": [], "partner": [], "random": []}
    places = 0
    with progress.task("effects on logits", total=len(chosen), unit="latents") as advance:
        for latent, other in zip(chosen.tolist(), others.tolist(), strict=True):
            random = torch.Generator().manual_seed(seed + latent)
            seen = _seen(subject, one, rows, latents, latent, settings, random)
            own = latents.directions[latent]
            wrong = torch.randn(own.shape, generator=random)
            says = {"own": own, "partner": latents.directions[other], "random": wrong}
            for whose, direction in says.items():
                unit = direction / direction.norm().clamp_min(1e-12)
                predicted = _direct(subject, seen, unit * own.norm())
                scores[whose].append(_score(predicted, seen.measured, settings.strongest))
            places += len(seen.measured)
            advance(1)
    found = {whose: _agreement(each, settings.bootstrap) for whose, each in scores.items()}
    return LogitEffects(
        found["own"], found["partner"], found["random"], tuple(chosen.tolist()), places
    )


class _Seen(NamedTuple):
    change: Float[Tensor, " places"]
    scale: Float[Tensor, " places"]
    measured: Float[np.ndarray, "places vocab"]


class _Scores(NamedTuple):
    sign: float
    rank: float
    rank_strongest: float
    xy: float
    xx: float
    r2: float


def _seen(
    subject: Subject,
    one: Placed,
    rows: Tensor,
    latents: Latents,
    latent: int,
    settings: LogitEffectSettings,
    random: torch.Generator,
) -> _Seen:
    values = latents.values[:, :, latent]
    active = (values != 0).any(1).nonzero()[:, 0]
    which = active[torch.randperm(len(active), generator=random)[: settings.places]]
    here, each = values[which], torch.arange(len(which))
    place = torch.multinomial((here != 0).float(), 1, generator=random)[:, 0]
    value = here.clone()
    value[each, place] *= settings.multiple
    end = f"blocks.{subject.n_layers - 1}.resid_post"
    was = subject.run(rows[which], capture=[end])
    now = run_with(subject, rows[which], [one], edit=setting(latent, value), keep_error=True)
    assert was.logits is not None
    assert now.logits is not None
    at = each, place + 1  # codes begin after position 0
    moved = _centred(now.logits[at].double() - was.logits[at].double())
    stream = was.sites[end][at].float()
    stream = _centred(stream) if subject.norms_centre else stream
    change = (value - here)[each, place]
    return _Seen(change, stream.square().mean(1).sqrt().cpu(), moved.cpu().numpy())


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _direct(subject: Subject, seen: _Seen, direction: Tensor) -> Float[np.ndarray, "places vocab"]:
    read = _centred(direction) if subject.norms_centre else direction
    unembed = subject.unembed()
    logits = _centred(unembed.float() @ read.to(unembed.device)).cpu()
    return ((seen.change / seen.scale)[:, None] * logits).double().numpy()


def _score(
    predicted: Float[np.ndarray, "places vocab"],
    measured: Float[np.ndarray, "places vocab"],
    strongest: int,
) -> _Scores:
    top = np.argsort(-np.abs(predicted), axis=1, kind="stable")[:, :strongest]
    p, m = (np.take_along_axis(each, top, 1) for each in (predicted, measured))
    xy, xx, yy = (
        float((a * b).sum())
        for a, b in ((predicted, measured), (predicted, predicted), (measured, measured))
    )
    return _Scores(
        float((np.sign(p) == np.sign(m)).mean()),
        _mean_rank(predicted, measured),
        _mean_rank(p, m),
        xy,
        xx,
        xy**2 / (xx * yy) if xx * yy > 0 else 0.0,
    )


def _mean_rank(x: np.ndarray, y: np.ndarray) -> float:
    return spearman(torch.from_numpy(x), torch.from_numpy(y)).nan_to_num().mean().item()


def _agreement(scores: list[_Scores], settings: BootstrapSettings) -> LogitAgreement:
    sign, rank, strongest, xy, xx, r2 = np.array(scores, dtype=np.float64).T
    return LogitAgreement(
        mean_interval(sign, settings),
        mean_interval(rank, settings),
        mean_interval(strongest, settings),
        ratio_interval(xy, xx, settings),
        mean_interval(r2, settings),
    )
