"""Stand-ins whose latents can be turned down, row by row, at every position of a span.

A strength of 1 leaves a latent as it is, 0 takes away what it writes; nothing takes its place. With
`more`, latents just below the k largest are let in as well, each at its own strength.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.dictionaries.kernels.sparse import Code
from unweave.dictionaries.part import Part
from unweave.training.stand_in import AtStart

Strengths = Mapping[str, Float[Tensor, "rows spans _"]]
"""By part: how strong each latent is in each span of each row."""


class MaskedStandIn(nn.Module):
    """A part in the place of a block, its activations times strengths.

    Differentiable in the strengths and in the part's weights. With all strengths 1 and nothing let
    in it is the plain stand-in.
    """

    def __init__(
        self,
        part: Part,
        strength: Float[Tensor, "rows spans latents"],
        at_start: AtStart,
        *,
        let_in: Float[Tensor, "rows spans latents"] | None = None,
        more: int = 0,
    ) -> None:
        super().__init__()
        self.part = _wider(part, more) if more else part
        self.code: Code | None = None
        """The code of the last call, before strengths."""
        self._k, self._strength, self._let_in = part.spec.k, strength, let_in
        self._at_start = at_start

    def forward(self, x: Float[Tensor, "rows pos d_in"]) -> Float[Tensor, "rows pos d_out"]:
        """What the latents write at their strengths."""
        rows, pos = x.shape[:2]
        y, code = self.part.run(x.float())
        self.code = code
        # Less than everything is written as everything less the rest.
        gone = code.value * (1 - self._strengths(code, rows, pos))
        written = F.embedding_bag(
            code.latent, self.part.W_dec, mode="sum", per_sample_weights=gone.contiguous()
        )
        y = (y - written.view_as(y) / self.part.spec.output_scale).to(x.dtype)
        if not self._at_start.yes:
            return y
        first = self.part.start_output.to(x.dtype).expand(rows, 1, -1)
        return torch.cat([first, y[:, 1:]], dim=1)

    def _strengths(self, code: Code, rows: int, pos: int) -> Tensor:
        at = places(rows, pos, self._strength.shape[1], code.latent)
        own = self._strength[(*at, code.latent)]
        if self.part.spec.k == self._k:
            return own
        others = torch.zeros_like(own) if self._let_in is None else self._let_in[(*at, code.latent)]
        size = code.value.detach().abs()
        first = size.topk(self._k, dim=1).indices
        chosen = torch.zeros_like(size, dtype=torch.bool).scatter_(1, first, True)
        return torch.where(chosen, own, others)


def places(
    rows: int, pos: int, spans: int, latent: Int[Tensor, "places k"]
) -> tuple[Int[Tensor, "places 1"], Int[Tensor, "places 1"]]:
    """Row and span of every place, spans being equal shares of the positions."""
    place = torch.arange(len(latent), device=latent.device)[:, None]
    return place // pos, place % pos * spans // pos


def masked_stand_ins(
    parts: Mapping[str, Part],
    strengths: Strengths,
    at_start: AtStart,
    *,
    let_in: Strengths | None = None,
    more: int = 0,
) -> dict[str, MaskedStandIn]:
    """One for each part, by name."""
    return {
        name: MaskedStandIn(
            part,
            strengths[name],
            at_start,
            let_in=None if let_in is None else let_in[name],
            more=min(more, part.spec.n_latents - part.spec.k),
        )
        for name, part in parts.items()
    }


def full_strength(parts: Mapping[str, Part], rows: int, spans: int) -> dict[str, Tensor]:
    """Everything as it is."""
    return {
        name: torch.ones(rows, spans, part.spec.n_latents, device=part.W_dec.device)
        for name, part in parts.items()
    }


def split_like(
    parts: Mapping[str, Part], together: Shaped[Tensor, "rows spans all"]
) -> dict[str, Tensor]:
    """Latents of all parts side by side, part by part."""
    sizes: Sequence[int] = [part.spec.n_latents for part in parts.values()]
    return dict(zip(parts, together.split(list(sizes), dim=-1), strict=True))


def _wider(part: Part, more: int) -> Part:
    """The same weights with more latents active."""
    wider = copy.copy(part)
    wider.spec = part.spec.model_copy(update={"k": part.spec.k + more})
    return wider
