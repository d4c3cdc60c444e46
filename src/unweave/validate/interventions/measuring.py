"""Predict, intervene, compare: sampled latents of one dictionary on held-out rows, with controls.

Two controls are always beside a predictor. Both predict from the tested latent's own change, so
that when and how much it is changed is the same, and only what it is said to write is wrong:

    partner   the direction of the latent nearest in frequency and strength, at the same norm
    random    a random direction of the same norm
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.bootstrap import BootstrapSettings
from unweave.validate.interventions.agreement import Agreement, agreement
from unweave.validate.interventions.latents import (
    Intervention,
    Latents,
    latents_on,
    one_writer,
    partners,
    sample_by_mass,
    setting,
    targets,
)
from unweave.validate.interventions.predicting import (
    Known,
    Predictor,
    PredictSettings,
    known,
    next_logp,
    predict,
)
from unweave.validate.placed import Placed, run_with


class InterventionSettings(BaseModel):
    """Settings of the intervention test."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    acts: tuple[Intervention, ...] = (
        Intervention(kind="zero"),
        Intervention(kind="mean"),
        Intervention(kind="clamp"),
        Intervention(kind="patch"),
    )
    """What is done."""
    latents: PositiveInt = 64
    """Latents tested, drawn by firing mass."""
    rows: PositiveInt = 8
    """Rows of each latent, drawn from those where it is active."""
    predict: PredictSettings = PredictSettings()
    """The predictors."""
    bootstrap: BootstrapSettings = BootstrapSettings(resamples=200)
    """Intervals, over latents."""


class Effects(NamedTuple):
    """Pairs of one intervention: what was predicted in each way, and what happened."""

    latent: Int[np.ndarray, " pairs"]
    """The latent changed."""
    measured: Float[np.ndarray, " pairs"]
    """Change of the sum over the row of log p(next token), nats."""
    predicted: dict[tuple[Predictor, str], Float[np.ndarray, " pairs"]]
    """The same predicted, by predictor and by whose direction it was made with."""

    def agreements(self, settings: BootstrapSettings) -> dict[tuple[Predictor, str], Agreement]:
        """How well each prediction did."""
        return {
            key: agreement(each, self.measured, self.latent, settings)
            for key, each in self.predicted.items()
        }


@torch.no_grad()
def intervene(
    subject: Subject,
    one: Placed,
    rows: Int[Tensor, "rows pos"],
    settings: InterventionSettings,
    *,
    seed: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Effects]:
    """Effects by the name of the intervention. All rows are held out; each starts alike.

    Rows where an intervention would change nothing are left out.

    Raises:
        UserError: a dictionary that writes several sites, or that never fires.
    """
    site = one_writer(one)
    latents, before = latents_on(subject, one, rows), known(subject, site, rows)
    chosen = sample_by_mass(latents, settings.latents, seed=seed)
    others = partners(latents, chosen)
    found: dict[str, Effects] = {}
    for act in settings.acts:
        parts = []
        with progress.task(
            f"interventions: {act.name}", total=len(chosen), unit="latents"
        ) as advance:
            for latent, other in zip(chosen.tolist(), others.tolist(), strict=True):
                which = _rows_of(latents, latent, settings.rows, seed=seed + latent)
                says = _directions(latents, latent, other, seed=seed + latent)
                value = targets(latents, latent, which, act, seed=seed + latent)
                # A change after the last place that is scored does nothing that can be measured.
                moves = (value != latents.values[which][:, :, latent])[:, :-1].any(1)
                which, value = which[moves], value[moves]
                if len(which):
                    parts.append(
                        _effects(subject, one, before.of(which), latents, latent, value, which,
                                 says, settings.predict)
                    )  # fmt: skip
                advance(1)
        if parts:
            found[act.name] = _joined(parts)
    return found


def _rows_of(latents: Latents, latent: int, count: int, *, seed: int) -> Int[Tensor, " some"]:
    active = (latents.values[:, :, latent] != 0).any(1).nonzero()[:, 0]
    random = torch.Generator().manual_seed(seed)
    return active[torch.randperm(len(active), generator=random)[:count]]


def _directions(latents: Latents, latent: int, other: int, *, seed: int) -> dict[str, Tensor]:
    own = latents.directions[latent]
    random = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed))
    wrong = {"partner": latents.directions[other], "random": random}
    return {"own": own} | {
        name: each / each.norm().clamp_min(1e-12) * own.norm() for name, each in wrong.items()
    }


def _effects(
    subject: Subject,
    one: Placed,
    before: Known,
    latents: Latents,
    latent: int,
    value: Tensor,
    which: Tensor,
    says: dict[str, Tensor],
    settings: PredictSettings,
) -> Effects:
    change = value - latents.values[which][:, :, latent]
    run = run_with(subject, before.rows, [one], edit=setting(latent, value), keep_error=True)
    assert run.logits is not None
    after = next_logp(run.logits[:, :-1].float().log_softmax(-1), before.rows)
    measured = (after - before.true).sum(1)
    predicted = {
        (how, whose): predict(subject, before, change, direction, how, settings).cpu().numpy()
        for how in settings.predictors
        if how == "gradient" or before.unembed is not None
        for whose, direction in says.items()
    }
    return Effects(np.full(len(which), latent), measured.cpu().numpy(), predicted)


def _joined(parts: Sequence[Effects]) -> Effects:
    return Effects(
        np.concatenate([one.latent for one in parts]),
        np.concatenate([one.measured for one in parts]),
        {key: np.concatenate([one.predicted[key] for one in parts]) for key in parts[0].predicted},
    )
