"""Latents of what is to be forgotten: how they are chosen, and how they are clamped.

Chosen: of those that fire on less than a share of the tokens to retain, the ones that fire most
often on the tokens to forget. Clamped: where such a latent fires, it is set to a negative value;
what the dictionary does not reproduce stays (Farrell, Lau, Conmy 2024, 2410.19278).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.placed import Edit, Placed


class Activity(NamedTuple):
    """How latents fire on a text."""

    frequency: Float[Tensor, " latents"]
    """Share of the tokens at which each fires, position 0 left out."""
    strength: Float[Tensor, " latents"]
    """Mean activation of its firings; 0 where it never fires."""


@torch.no_grad()
def activity(
    subject: Subject,
    one: Placed,
    rows: Int[Tensor, "rows pos"],
    *,
    rows_at_once: int = 8,
    progress: Progress = QUIET,
) -> Activity:
    """How often and how strongly each latent fires."""
    fired = torch.zeros(one.coder.n_latents, dtype=torch.float64)
    total = torch.zeros_like(fired)
    with progress.task("unlearning: firings", total=rows.numel(), unit="tokens") as advance:
        for group in rows.split(rows_at_once):
            sites = subject.run(group, capture=list(one.reads), logits=False).sites
            x = torch.cat([sites[s][:, 1:].flatten(2).flatten(0, 1) for s in one.reads], dim=1)
            code = one.coder.encode(x.float())
            on = code.value > 0
            latent = code.support.latent[on].cpu()
            fired += torch.bincount(latent, minlength=len(fired))
            total += torch.bincount(
                latent, weights=code.value[on].double().cpu(), minlength=len(fired)
            )
            advance(group.numel())
    return Activity((fired / rows[:, 1:].numel()).float(), (total / fired.clamp_min(1)).float())


def forgettable(
    forget: Activity, retain: Activity, threshold: float, n: int
) -> Int[Tensor, " chosen"]:
    """The latents most frequent on the one text of those rarer than `threshold` on the other."""
    score = torch.where(retain.frequency < threshold, forget.frequency, 0.0)
    order = score.argsort(descending=True, stable=True)
    return order[: min(n, int((score > 0).sum()))]


def matched(
    latents: Int[Tensor, " chosen"], forget: Activity, *, seed: int
) -> Int[Tensor, " matched"]:
    """As many other latents that fire about as often: one of the ten nearest for each."""
    random = torch.Generator().manual_seed(seed)
    free = forget.frequency > 0
    free[latents] = False
    drawn: list[int] = []
    for latent in latents.tolist():
        left = free.nonzero().flatten()
        if not len(left):
            break
        far = (forget.frequency[left].log() - forget.frequency[latent].log()).abs()
        near = left[far.argsort(stable=True)[:10]]
        chosen = int(near[torch.randint(len(near), (1,), generator=random)])
        free[chosen] = False
        drawn.append(chosen)
    return torch.tensor(drawn, dtype=torch.long)


def clamped(latents: Sequence[int], to: Float[Tensor, " latents"]) -> Edit:
    """An edit that sets these latents to minus their value in `to` wherever they fire."""
    listed = torch.zeros(len(to), dtype=torch.bool)
    listed[list(latents)] = True

    def edit(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        latent = code.support.latent
        here = listed.to(latent.device)[latent] & (code.value > 0)
        low = -to.to(code.value)[latent]
        return SparseCode(code.support, torch.where(here, low, code.value))

    return edit
