"""Sufficient that is also faithful: what an explanation calls unneeded may be anything.

    loss = KL(original || network whose unneeded latents are at strengths r)

An explanation of a row keeps the latents that its predictions need most, and one would like to
read it as: whatever the others do, the predictions stay. Latents that only balance each other out
do not allow that: half of them kept do harm. So r is chosen against the network (Bushnaq et al.
2026, after SPD's random masks): from random strengths in [0, 1], steps along the sign of the KL's
gradient.

What a row needs is read from activation x gradient, summed over a span of positions and taken by
size, the gradient being that of a random signed sum of all predictions (its square is on average
the sum of squares over predictions, so that what one of them needs and another resents does not
cancel); kept are the fewest latents that hold a share of it, drawn anew for each batch.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from unweave.dictionaries.part import Part
from unweave.subject import Subject
from unweave.training.joint import kl_per_token
from unweave.training.masked_stand_in import full_strength, masked_stand_ins, split_like
from unweave.training.stand_in import AtStart


class AdversarialSettings(BaseModel):
    """What is masked, and who chooses the masks."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    masks: Literal["adversarial", "random", "binary"] = "adversarial"
    """Strengths that raise the KL, uniform ones, or each latent on or off with equal chance."""
    weight: NonNegativeFloat = 0.5
    """Weight of the masked network's KL in the loss."""
    span: PositiveInt = 32
    """Positions that share what is needed and one strength a latent."""
    kept: tuple[float, float] = (0.7, 1.0)
    """Between which shares of the attribution the explanation's share is drawn."""
    steps: PositiveInt = 1
    """Steps of the adversary."""
    step: float = Field(default=0.7, gt=0)
    """Length of each, of the unit that strengths have."""
    more: NonNegativeInt = 0
    """Latents below the k largest that are let in too, at strengths of their own."""


Explain = Callable[..., Mapping[str, Bool[Tensor, "rows spans _"]]]
"""What is needed, by part, as `needed_latents` says it."""


class AdversarialLoss:
    """The loss, as `tune_jointly` takes it (`besides`)."""

    def __init__(
        self, settings: AdversarialSettings | None = None, *, explain: Explain | None = None
    ) -> None:
        self.settings, self._explain = settings or AdversarialSettings(), explain or needed_latents

    def __call__(
        self,
        subject: Subject,
        parts: Mapping[str, Part],
        rows: Int[Tensor, "rows pos"],
        logits: Float[Tensor, "rows pos vocab"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Of one micro-batch, with the original's logits."""
        settings = self.settings
        low, high = settings.kept
        share = low + (high - low) * torch.rand((), generator=generator).item()
        spans = max(1, rows.shape[1] // settings.span)
        needed = self._explain(subject, parts, rows, share=share, spans=spans, generator=generator)
        masks = Masks(needed, settings, generator)
        if settings.masks == "adversarial":
            for _ in range(settings.steps):
                masks.worsen(subject, parts, rows, logits)
        with torch.enable_grad():
            return settings.weight * masks.kl(subject, parts, rows, logits).mean()


class Masks:
    """Strengths of latents that are not needed, as they become worse."""

    def __init__(
        self,
        needed: Mapping[str, Bool[Tensor, "rows spans latents"]],
        settings: AdversarialSettings,
        generator: torch.Generator,
    ) -> None:
        self._needed, self._settings = needed, settings
        self.free: dict[str, Tensor] = {n: self._drawn(one, generator) for n, one in needed.items()}
        """What unneeded latents are multiplied by."""
        self.let_in: dict[str, Tensor] = {}
        """What latents below the k largest are multiplied by, needed or not."""
        if settings.more:
            self.let_in = {n: self._drawn(one, generator) for n, one in needed.items()}

    def _drawn(self, like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator)
        return ((drawn < 0.5).float() if self._settings.masks == "binary" else drawn).to(
            like.device
        )

    def kl(
        self,
        subject: Subject,
        parts: Mapping[str, Part],
        rows: Int[Tensor, "rows pos"],
        logits: Float[Tensor, "rows pos vocab"],
    ) -> Float[Tensor, "rows rest"]:
        """KL of every prediction but the first."""
        strengths = {n: torch.where(self._needed[n], 1.0, self.free[n]) for n in self.free}
        placed = masked_stand_ins(
            parts, strengths, AtStart(), let_in=self.let_in or None, more=self._settings.more
        )
        with subject.swapped(placed):
            masked = subject.run(rows).logits
        assert masked is not None
        return kl_per_token(logits[:, 1:], masked[:, 1:])

    def worsen(
        self,
        subject: Subject,
        parts: Mapping[str, Part],
        rows: Int[Tensor, "rows pos"],
        logits: Float[Tensor, "rows pos vocab"],
    ) -> None:
        """One step up the KL."""
        held = [*self.free.values(), *self.let_in.values()]
        with torch.enable_grad():
            for strength in held:
                strength.requires_grad_()
            total = self.kl(subject, parts, rows, logits).sum()
            gradients = torch.autograd.grad(total, held)
        for strength, gradient in zip(held, gradients, strict=True):
            strength.detach_().requires_grad_(False)
            strength.add_(self._settings.step * gradient.sign()).clamp_(0, 1)


def needed_latents(
    subject: Subject,
    parts: Mapping[str, Part],
    rows: Int[Tensor, "rows pos"],
    *,
    share: float,
    spans: int,
    generator: torch.Generator,
) -> dict[str, Bool[Tensor, "rows spans latents"]]:
    """The fewest latents that hold a share of each span's attribution, over all parts together."""
    found = attributions(subject, parts, rows, spans=spans, generator=generator)
    together = torch.cat(list(found.values()), -1)
    size, order = together.sort(-1, descending=True)
    before = size.cumsum(-1) - size
    kept = before < share * size.sum(-1, keepdim=True)
    return split_like(parts, torch.zeros_like(kept).scatter_(-1, order, kept))


def attributions(
    subject: Subject,
    parts: Mapping[str, Part],
    rows: Int[Tensor, "rows pos"],
    *,
    spans: int,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "rows spans latents"]]:
    """Size of activation x gradient in the network of parts, summed over each span.

    The gradient is that of the most likely token's log-probability at the last position, or, given
    a generator, of the sum over all positions with random signs.
    """
    strengths = full_strength(parts, len(rows), spans)
    with torch.enable_grad():
        for strength in strengths.values():
            strength.requires_grad_()
        with subject.swapped(masked_stand_ins(parts, strengths, AtStart())):
            logits = subject.run(rows).logits
        assert logits is not None
        top = logits.float().log_softmax(-1).amax(-1)
        if generator is None:
            total = top[:, -1].sum()
        else:
            sign = torch.randint(0, 2, top.shape, generator=generator).to(top) * 2 - 1
            total = (top * sign)[:, 1:].sum()
        gradients = torch.autograd.grad(total, list(strengths.values()))
    return {name: one.abs() for name, one in zip(strengths, gradients, strict=True)}
