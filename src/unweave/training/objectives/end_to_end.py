"""End-to-end objectives (Braun, Taylor, Goldowsky-Dill, Sharkey 2024, 2405.12241).

    loss = kl KL(original || spliced) + penalties
           + downstream / (number of later sites) sum over later sites of the spliced stream's error

The dictionaries stand in the running network and are judged by what it then predicts. With several
sites a step may leave a random part of them as the network has it (`mixed`), because what is
trained in one splice mode fails in the others. Whole sites are drawn: dictionaries whose writes add
up (cross-layer transcoders) lack none of their number, which may hold the offset of them all.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.shares import batch_spread, shares
from unweave.errors import UserError
from unweave.training.batches import TokenBatch
from unweave.training.dead import AuxK, auxk_loss
from unweave.training.objectives.divergence import mean_kl
from unweave.training.objectives.loss import Loss, State, Watched
from unweave.training.objectives.splice import Splice
from unweave.training.penalties.weighted import Steering


class EndToEnd(BaseModel):
    """The network's output, and optionally what later sites hold, with dictionaries in place."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["end_to_end"] = "end_to_end"
    kl: NonNegativeFloat = 1.0
    """Weight of KL(original || spliced), nats per token."""
    downstream: NonNegativeFloat = 0.0
    """Weight shared out over the sites in `downstream_sites`."""
    downstream_sites: tuple[str, ...] = ()
    """Sites after the dictionaries whose vectors should stay as they were."""
    relative: bool = True
    """Measure a site's error relative to each vector's squared norm; else per coordinate, as the
    paper's code does."""
    local: NonNegativeFloat = 0.0
    """Weight of each dictionary's own relative reconstruction error."""
    mixed: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which each site is written with probability one half; a dictionary that
    writes none of those drawn is left out of the step."""

    def loss(
        self,
        dictionaries: Mapping[str, Dictionary],
        batch: TokenBatch,
        state: State,
        steering: Mapping[str, Steering],
        auxk: AuxK | None,
    ) -> Loss:
        """One pass of the network with the dictionaries in place.

        Raises:
            UserError: the batch was taken without one of the `downstream_sites`.
        """
        self._check(batch)
        sites = self._drawn(dictionaries, state.step)
        splice = Splice(_needed(dictionaries, sites), sites)
        spliced = splice.run(batch.subject, batch.rows, capture=self.downstream_sites)
        assert spliced.logits is not None
        assert batch.original.logits is not None
        kl = mean_kl(
            batch.original.logits[:, 1:].flatten(0, 1), spliced.logits[:, 1:].flatten(0, 1)
        )
        gaps = [
            self._gap(batch.original.sites[site], spliced.sites[site])
            for site in self.downstream_sites
        ]
        down = torch.stack(gaps).mean() if gaps else kl.new_zeros(())
        total = self.kl * kl + self.downstream * down
        log = {"kl": kl.item(), "downstream": down.item()}
        watched = {k: seen for k, seen in splice.seen.items() if _writes(dictionaries[k]) & sites}
        for name, seen in watched.items():
            charged = steering[name].charge(dictionaries[name], seen.passed, state.done)
            error = (seen.passed.y - seen.y).square().sum(1)
            spread = batch_spread(seen.y).clamp_min(1e-12)
            total = total + charged.total / seen.y.shape[1] + self.local * error.mean() / spread
            total = total + self._revival(dictionaries[name], seen, state.dead[name], auxk)
            log[f"{name}.penalty"] = charged.total.item()
            log[f"{name}.penalty_weight"] = charged.weight
        return Loss(total, watched, log)

    def _check(self, batch: TokenBatch) -> None:
        lacking = [site for site in self.downstream_sites if site not in batch.original.sites]
        if lacking:
            raise UserError(
                f"the original's {', '.join(lacking)} are missing from the batch: name every "
                "downstream site in the token source's `capture`"
            )

    def _drawn(self, dictionaries: Mapping[str, Dictionary], step: int) -> set[str]:
        """The sites that are written in a step."""
        sites = list(dict.fromkeys(p.site for d in dictionaries.values() for p in d.spec.writes))
        generator = torch.Generator().manual_seed(step)
        if torch.rand((), generator=generator) >= self.mixed:
            return set(sites)
        keep = torch.rand(len(sites), generator=generator) < 0.5
        return {site for site, on in zip(sites, keep, strict=True) if on} or set(sites)

    def _gap(self, original: Tensor, spliced: Tensor) -> Tensor:
        # A bfloat16 subject's squares and sums would keep three digits.
        kept, now = _wide(original[:, 1:]), _wide(spliced[:, 1:])
        gap = (now - kept).square()
        if not self.relative:
            return gap.mean()
        return (gap.sum(-1) / kept.square().sum(-1).clamp_min(1e-12)).mean()

    def _revival(
        self, dictionary: Dictionary, seen: Watched, dead: Tensor, auxk: AuxK | None
    ) -> Tensor:
        if auxk is None or not auxk.weight or not shares().dead(dead).total:
            return seen.y.new_zeros(())
        missing = (seen.y - seen.passed.y).detach()
        return auxk.weight * auxk_loss(dictionary, seen.x, missing, dead, auxk.k)


def _writes(dictionary: Dictionary) -> set[str]:
    return {port.site for port in dictionary.spec.writes}


def _needed(dictionaries: Mapping[str, Dictionary], sites: set[str]) -> dict[str, Dictionary]:
    """Those that write one of the sites, and whoever else writes where they do."""
    found = {k for k, d in dictionaries.items() if _writes(d) & sites}
    beside = {site for k in found for site in _writes(dictionaries[k])}
    return {k: d for k, d in dictionaries.items() if _writes(d) & beside}


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
