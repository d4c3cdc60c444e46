"""The objective of a cross-layer transcoder (Anthropic 2025): all members together write each site.

    loss = sum over sites of mean |y - y_hat|^2 + penalties,   y_hat = sum of all members' writes

in scaled units, summed over coordinates. Penalties see each latent's activation times the length
of its decoders to all sites, concatenated; Anthropic's own are tanh with c = 4 and, for JumpReLU,
the pre-activation penalty.

No member has a target of its own. What is watched of one is therefore what the others leave to it:
y less their writes. Its `fvu` in the log is a share of that; `<site>.fvu` is the set's.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unweave.dictionaries.cross_layer import Together, run_members
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.shares import batch_spread, shares
from unweave.training.batches import VectorBatch
from unweave.training.dead import AuxK, auxk_loss
from unweave.training.objectives.loss import Loss, State, Watched
from unweave.training.penalties.weighted import Steering


class CrossLayer(BaseModel):
    """Reconstruction of every site by the sum of what the dictionaries write there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["cross_layer"] = "cross_layer"
    across: bool = False
    """BatchTopK members share their latents out: the sum of their k per row goes to the strongest
    of all layers. Scores are comparable where decoder rows have unit norm."""

    def loss(
        self,
        dictionaries: Mapping[str, Dictionary],
        batch: VectorBatch,
        state: State,
        steering: Mapping[str, Steering],
        auxk: AuxK | None,
    ) -> Loss:
        """One pass of all members."""
        together = run_members(dictionaries, batch.vectors, across=self.across)
        left = {site: batch.vectors[site] - y for site, y in together.written.items()}
        scale = {p.site: p.scale for d in dictionaries.values() for p in d.spec.writes}
        fits, log = [], {}
        spread: dict[str, Tensor] = {}
        for site, gap in left.items():
            y = batch.vectors[site]
            fits.append((gap * scale[site]).square().sum(1).mean())
            spread[site] = batch_spread(y * scale[site])
            log[f"{site}.fvu"] = fits[-1].item() / max(spread[site].item(), 1e-12)
        total = torch.stack(fits).sum()
        log["fit"] = total.item()
        log["fvu"] = total.item() / max(sum(v.item() for v in spread.values()), 1e-12)
        watched = {}
        for name, dictionary in dictionaries.items():
            seen = _watch(name, dictionary, together, left)
            charged = steering[name].charge(dictionary, seen.passed, state.done)
            total = total + charged.total
            dead = state.dead[name]
            if auxk is not None and auxk.weight and shares().dead(dead).total:
                at = torch.stack([spread[port.site] for port in dictionary.spec.writes]).sum()
                total = total + auxk.weight * at * _revival(dictionary, seen, dead, auxk)
            watched[name] = seen
            log[f"{name}.penalty"] = charged.total.item()
            log[f"{name}.penalty_weight"] = charged.weight
        return Loss(total, watched, log)


def _watch(
    name: str, dictionary: Dictionary, together: Together, left: Mapping[str, Tensor]
) -> Watched:
    passed = together.passed[name]
    missing = torch.cat([left[port.site] for port in dictionary.spec.writes], dim=1).detach()
    y = passed.y.detach() + missing.to(passed.y.dtype) * dictionary.output_scale
    return Watched(together.x[name], y, passed)


def _revival(dictionary: Dictionary, seen: Watched, dead: Tensor, auxk: AuxK) -> Tensor:
    """AuxK on what the whole set left over; half a site's width of dead latents per row."""
    k = auxk.k or max(1, dictionary.spec.writes[0].width // 2)
    return auxk_loss(dictionary, seen.x, (seen.y - seen.passed.y).detach(), dead, k)
