"""Swapping latents at an entity, and the mask that learns which (MDBM; SAEBench, RAVEL).

With z of the code of a base prompt's entity and z' of a source prompt's, the site becomes

    x + (m * (z' - z)) D        m = sigmoid(logit / T) while learning, [logit > 0] afterwards

so that what the dictionary does not reproduce stays the base's (`keep_error`; without it, as
published, x is first replaced by what z stands for). The logits start at zero and are trained by
Adam on the cross-entropy with the wanted answer while T falls from 1 to 1e-4.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.subject.prompts import by_length, padded
from unweave.validate.protocols.ravel_data import Prompt


class MaskSettings(BaseModel):
    """Settings of the learned mask; defaults as published, but that the error is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: PositiveInt = 2
    """Passes over the pairs."""
    rate: PositiveFloat = 1e-3
    """Adam's learning rate."""
    batch: PositiveInt = 16
    """Pairs of a step."""
    first_temperature: PositiveFloat = 1.0
    """T of the first step."""
    last_temperature: PositiveFloat = 1e-4
    """T of the last one."""
    keep_error: bool = True
    """Whether what the dictionary does not reproduce stays; the published one drops it."""


class Pair(NamedTuple):
    """A base prompt, into which the entity of a source prompt is put."""

    base: int
    """Index into the prompts."""
    source: int
    """Index into the prompts."""
    cause: bool
    """Whether the answer should become the source's; else it should stay the base's."""


class AtEntities(NamedTuple):
    """The site at the entities of all prompts through a coder; latents that never fire left out."""

    code: Float[Tensor, "prompts active"]
    """Activations of the latents that fire at any of them."""
    rows: Float[Tensor, "active d"]
    """What one unit of each of them writes."""
    lost: Float[Tensor, "prompts d"]
    """What decoding adds to each vector: minus the error."""


@torch.no_grad()
def entity_vectors(
    subject: Subject, site: str, prompts: Sequence[Prompt], *, batch: int = 32
) -> Float[Tensor, "prompts d"]:
    """The site at each prompt's entity."""
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for which in by_length([p.row for p in prompts], batch):
        chosen = [prompts[at] for at in which.tolist()]
        group = padded([p.row for p in chosen])
        out = subject.run(group.tokens, capture=[site], logits=False).sites[site]
        place = torch.tensor([p.position for p in chosen], device=out.device)
        vectors = out[torch.arange(len(chosen), device=out.device), place].flatten(1)
        for at, vector in zip(which.tolist(), vectors.float().cpu(), strict=True):
            found[at] = vector
    return torch.stack(found)


@torch.no_grad()
def at_entities(coder: Coder, x: Float[Tensor, "prompts d"]) -> AtEntities:
    """What a coder makes of the vectors."""
    code = coder.encode(x)
    seen = code.support.latent[code.value != 0].unique()
    dense = _columns(code, seen)
    return AtEntities(dense, coder.directions()[seen].float(), coder.decode(code).float() - x)


def _columns(code: SparseCode, latents: Tensor) -> Tensor:
    place = torch.full((code.n_latents,), -1)
    place[latents] = torch.arange(len(latents))
    column = place[code.support.latent]
    on = column >= 0
    out = torch.zeros(code.support.rows, len(latents))
    out[code.support.row[on], column[on]] = code.value[on].float()
    return out


class Swapping:
    """A subject with the entities of base prompts changed on the way."""

    def __init__(
        self,
        subject: Subject,
        site: str,
        prompts: Sequence[Prompt],
        seen: AtEntities,
        *,
        keep_error: bool,
    ) -> None:
        self.subject, self.site, self.prompts = subject, site, prompts
        self.seen, self.keep_error = seen, keep_error

    def logits(
        self, pairs: Sequence[Pair], mask: Float[Tensor, " active"]
    ) -> Float[Tensor, "pairs vocab"]:
        """After each base prompt, with the masked latents of its source."""
        base = torch.tensor([pair.base for pair in pairs])
        source = torch.tensor([pair.source for pair in pairs])
        moved = (mask * (self.seen.code[source] - self.seen.code[base])) @ self.seen.rows
        if not self.keep_error:
            moved = moved + self.seen.lost[base]
        group = padded([self.prompts[at].row for at in base.tolist()])
        place = torch.tensor([self.prompts[at].position for at in base.tolist()])
        rows = torch.arange(len(pairs))

        def visit(tensor: Tensor) -> Tensor:
            added = torch.zeros_like(tensor)
            shift = moved.to(tensor.dtype).to(tensor.device).view(len(pairs), *tensor.shape[2:])
            added = added.index_put((rows.to(tensor.device), place.to(tensor.device)), shift)
            return tensor + added

        run = self.subject.run(group.tokens, replace={self.site: visit})
        assert run.logits is not None
        return run.logits[rows, group.last].float()

    def wanted(self, pairs: Sequence[Pair]) -> Int[Tensor, " pairs"]:
        """The answer that each pair should give."""
        return torch.tensor([self.prompts[p.source if p.cause else p.base].answer for p in pairs])


def learned_mask(
    swap: Swapping,
    pairs: Sequence[Pair],
    settings: MaskSettings,
    *,
    seed: int = 0,
    progress: Progress = QUIET,
) -> Bool[Tensor, " active"]:
    """Which latents to swap, learned on some pairs."""
    logit = torch.zeros(len(swap.seen.rows), requires_grad=True)
    adam = torch.optim.Adam([logit], lr=settings.rate)
    batches = list(_batches(pairs, settings, seed))
    fall = settings.last_temperature / settings.first_temperature
    with progress.task("ravel: mask", total=len(batches), unit="steps") as advance:
        for step, some in enumerate(batches):
            t = settings.first_temperature * fall ** (step / max(1, len(batches) - 1))
            with torch.enable_grad():
                logits = swap.logits(some, torch.sigmoid(logit / t))
                loss = F.cross_entropy(logits, swap.wanted(some).to(logits.device))
                adam.zero_grad()
                loss.backward()
            adam.step()
            advance(1)
    return logit.detach() > 0


def _batches(pairs: Sequence[Pair], settings: MaskSettings, seed: int) -> Iterator[list[Pair]]:
    random = torch.Generator().manual_seed(seed)
    for _ in range(settings.epochs):
        for some in torch.randperm(len(pairs), generator=random).split(settings.batch):
            yield [pairs[at] for at in some.tolist()]


class Disentangled(NamedTuple):
    """What a swap does."""

    cause: Float[Tensor, " cause_pairs"]
    """1 where the answer became the source's."""
    isolation: Float[Tensor, " isolation_pairs"]
    """1 where the answer of another attribute stayed the base's."""

    @property
    def score(self) -> float:
        """Mean of both shares."""
        return float(self.cause.mean() + self.isolation.mean()) / 2


@torch.no_grad()
def swap_scores(
    swap: Swapping, pairs: Sequence[Pair], mask: Float[Tensor, " active"], *, batch: int = 32
) -> Disentangled:
    """How often the swap of the masked latents gives what each pair should give."""
    right = torch.zeros(len(pairs))
    for which in torch.arange(len(pairs)).split(batch):
        some = [pairs[at] for at in which.tolist()]
        logits = swap.logits(some, mask)
        right[which] = (logits.argmax(1).cpu() == swap.wanted(some)).float()
    cause = torch.tensor([pair.cause for pair in pairs])
    return Disentangled(right[cause], right[~cause])
