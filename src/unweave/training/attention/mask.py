"""Which pairs of features a block's attention needs: a mask over the job tensor.

    minimise  mean KL(P || P^(m)) + lambda sum_(a, b, h) sqrt(m_abh + eps),    0 <= m <= 1

over (query feature, key feature, head), all let through at the start (Wynroe & Sharkey 2024). With
rotary positions an entry of the tensor is a curve over distance; the mask takes all of it or none.
P is the subject's own pattern, so that what the features get wrong is not made up for by pairs.

A path of masks for a rising lambda shows how much sparsity costs how much of the pattern.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.dictionaries.attention.feature_basis import QKBasis, QKCodes, scores_in_features
from unweave.progress import QUIET, Progress
from unweave.training.attention.pattern_kl import TruePattern, pattern_kl
from unweave.training.checkpoint import Checkpoints, Metrics

_NAME = "mask"
_LET_THROUGH = 1e-3
"""Entries below count as left out."""


class MaskSettings(BaseModel):
    """How a mask is learned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    penalties: tuple[NonNegativeFloat, ...] = (1e-6, 4e-6, 16e-6)
    """Lambdas, one after the other, each from where the last one ended."""
    steps: PositiveInt = 100
    """Steps of Adam for each lambda."""
    rows: PositiveInt = 4
    """Rows of text a step."""
    lr: PositiveFloat = 0.03
    """Learning rate: the most that an entry moves in one step."""
    eps: PositiveFloat = 1e-6
    """Under the root, so that its slope is bounded."""


class MaskText(NamedTuple):
    """Rows to learn from, or to be judged on."""

    codes: QKCodes
    """In the basis whose pairs are masked."""
    true: Float[Tensor, "rows heads pos pos"]
    """The subject's own pattern."""

    def chosen(self, rows: Int[Tensor, " chosen"]) -> "MaskText":
        """Some of the rows."""
        codes = QKCodes(self.codes.queries[rows], self.codes.keys[rows])
        return MaskText(codes, self.true[rows])


class Learned(NamedTuple):
    """A mask of the path."""

    penalty: float
    """Its lambda."""
    mask: Float[Tensor, "queries keys heads"]
    """Entries between 0 and 1, those that hardly let anything through set to 0."""

    @property
    def size(self) -> int:
        """Entries let through."""
        return int((self.mask > 0).sum())


def learn_masks(
    text: MaskText,
    basis: QKBasis,
    *,
    seed: int,
    settings: MaskSettings | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> list[Learned]:
    """The path of masks, one for each lambda; a cut run resumes to the same bits."""
    settings, checkpoints = settings or MaskSettings(), checkpoints or Checkpoints(None)
    state, done = _start(basis, settings, checkpoints)
    metrics: Metrics = []
    total = settings.steps * len(settings.penalties)
    with progress.task("Masking pairs of features", total=total, unit="steps") as advance:
        advance(done)
        for step in range(done, total):
            penalty = settings.penalties[step // settings.steps]
            _step(
                state,
                text,
                basis,
                settings,
                penalty,
                _drawn(len(text.true), step, seed, settings),
            )
            if (step + 1) % settings.steps == 0:
                state.path[step // settings.steps] = state.mask.detach()
            advance(1)
            checkpoints.offer(step + 1, metrics, lambda: {_NAME: state.tensors()})
    return [
        Learned(penalty, torch.where(mask > _LET_THROUGH, mask, 0))
        for penalty, mask in zip(settings.penalties, state.path, strict=True)
    ]


@torch.no_grad()
def mask_kl(
    text: MaskText, basis: QKBasis, mask: Float[Tensor, "queries keys heads"], rows: int = 8
) -> Float[Tensor, " rows"]:
    """Mean KL from the subject's pattern by row of text, nats; the first query is left out."""
    found = []
    for first in range(0, len(text.true), rows):
        part = text.chosen(torch.arange(first, min(first + rows, len(text.true))))
        found.append(_kl(part, basis, mask).mean((1, 2)))
    return torch.cat(found)


def _kl(text: MaskText, basis: QKBasis, mask: Tensor) -> Float[Tensor, "rows heads queries"]:
    scores = scores_in_features(text.codes, basis, mask)
    certainty = torch.xlogy(text.true, text.true).sum(-1)
    return pattern_kl(TruePattern(text.true, certainty), scores)[..., 1:]


class _State(NamedTuple):
    mask: Tensor
    adam: torch.optim.Adam
    path: Float[Tensor, "penalties queries keys heads"]

    def tensors(self) -> dict[str, Tensor]:
        moments = {f"adam.{name}": value for name, value in self.adam.state[self.mask].items()}
        return {"mask": self.mask.detach(), "path": self.path, **moments}


def _start(basis: QKBasis, settings: MaskSettings, checkpoints: Checkpoints) -> tuple[_State, int]:
    mask = torch.ones(basis.shape, requires_grad=True)
    adam = torch.optim.Adam([mask], lr=settings.lr, betas=(0.9, 0.99), eps=1e-7, fused=True)
    state = _State(mask, adam, torch.ones(len(settings.penalties), *basis.shape))
    if (progressed := checkpoints.latest()) is None:
        return state, 0
    kept = progressed.tensors[_NAME]
    with torch.no_grad():
        mask.copy_(kept["mask"])
        state.path.copy_(kept["path"])
    adam.state[mask] = {
        name.removeprefix("adam."): value
        for name, value in kept.items()
        if name.startswith("adam.")
    }
    return state, progressed.done


def _step(
    state: _State,
    text: MaskText,
    basis: QKBasis,
    settings: MaskSettings,
    penalty: float,
    rows: Tensor,
) -> None:
    mask = state.mask
    loss = _kl(text.chosen(rows), basis, mask).mean()
    (slope,) = torch.autograd.grad(loss, mask)
    with torch.no_grad():
        mask.grad = slope + penalty * 0.5 * (mask + settings.eps).rsqrt()
        state.adam.step()
        mask.clamp_(0, 1)


def _drawn(count: int, step: int, seed: int, settings: MaskSettings) -> Int[Tensor, " rows"]:
    generator = torch.Generator().manual_seed((seed << 20) + step)
    return torch.randperm(count, generator=generator)[: settings.rows]
