"""Only some latents kept: what is lost at one position of each input, and which are needed there.

Two ways to mask, which differ wherever latents compete to be active (TopK and its kin):

    after     the code is computed as ever and entries of other latents are dropped: nothing
              takes their place
    encode    other latents are never selected, so that allowed ones which lost against them may
              become active in their place

`strict` masks every position of the context, lenient masking the asked position alone.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.encoder.linear import LinearEncoder
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.training.joint import kl_per_token
from unweave.validate.interventions.latents import from_entries
from unweave.validate.placed import Edit, Placed, run_with

NEVER = -1e30
"""Pre-activation of a latent that is not allowed."""


class MaskingSettings(BaseModel):
    """How latents that are not kept are masked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    where: Literal["after", "encode"] = "after"
    """After the code is computed, or before latents are selected."""
    fill: Literal["zero", "mean"] = "zero"
    """What a masked latent is: nothing, or its mean over all places (`after` only)."""
    strict: bool = True
    """Whether every position of the context is masked; else only the one asked."""
    keep_error: bool = True
    """Whether what the coders do not reproduce stays, so that keeping all is the original."""
    bound: PositiveFloat = 0.1
    """KL, nats, that an input's own explanation may cost."""


class Inputs(NamedTuple):
    """Rows that all end at the position asked, and the original there."""

    rows: Int[Tensor, "inputs pos"]
    """Token ids."""
    logits: Float[Tensor, "inputs vocab"]
    """Of the original at the last position."""
    means: dict[str, Float[Tensor, " latents"]]
    """Mean activations, by part."""

    def one(self, which: int, times: int) -> "Inputs":
        """The same input several times."""
        at = torch.full((times,), which)
        return Inputs(self.rows[at], self.logits[at], self.means)


@torch.no_grad()
def kept_only(
    subject: Subject,
    standing: Sequence[Placed],
    inputs: Inputs,
    keep: Bool[Tensor, "inputs latents"],
    settings: MaskingSettings,
) -> Float[Tensor, " inputs"]:
    """KL from the original at the last position with only the kept latents of each input.

    Latents of several coders follow one another in `keep`.

    Raises:
        UserError: `encode` for a coder other than a dictionary with a linear encoder, for several
            coders, or with means.
    """
    if settings.where == "encode":
        return torch.cat(
            [
                _encoded(subject, standing, inputs.one(i, 1), keep[i], settings)
                for i in range(len(keep))
            ]
        )
    parts = keep.split([one.coder.n_latents for one in standing], dim=1)
    edits = {
        one.name: _dropping(part, inputs.means[one.name], settings)
        for one, part in zip(standing, parts, strict=True)
    }
    run = run_with(subject, inputs.rows, standing, edit=edits, keep_error=settings.keep_error)
    assert run.logits is not None
    return _kl(inputs, run.logits)


def _kl(inputs: Inputs, logits: Tensor) -> Tensor:
    return kl_per_token(inputs.logits[:, None], logits[:, -1:].float())[:, 0]


def _dropping(keep: Tensor, mean: Tensor, settings: MaskingSettings) -> Edit:
    def edit(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        row, latent = code.support.row, code.support.latent
        asked = row % shape[1] == shape[1] - 1
        stays = keep[row // shape[1], latent] | ~(asked | settings.strict)
        row, latent, value = row[stays], latent[stays], code.value[stays]
        if settings.fill == "mean":
            masked = ~keep[:, None].expand(-1, shape[1], -1)
            if not settings.strict:
                masked = masked & (torch.arange(shape[1]) == shape[1] - 1)[:, None]
            more, others = (masked.flatten(0, 1) & (mean != 0)).nonzero(as_tuple=True)
            row, latent = torch.cat([row, more]), torch.cat([latent, others])
            value = torch.cat([value, mean[others].to(value)])
        return from_entries(row, latent, value, code)

    return edit


def _encoded(
    subject: Subject,
    standing: Sequence[Placed],
    inputs: Inputs,
    keep: Tensor,
    settings: MaskingSettings,
) -> Tensor:
    coder = standing[0].coder
    linear = isinstance(coder, Dictionary) and isinstance(coder.encoder, LinearEncoder)
    if len(standing) != 1 or not linear or settings.fill != "zero":
        raise UserError(
            "Masking at encode time is for one dictionary with a linear encoder, without means:"
            " mask after it instead"
        )
    assert isinstance(coder, Dictionary)
    narrow = deepcopy(coder)
    assert isinstance(narrow.encoder, LinearEncoder)
    narrow.encoder.W_enc[~keep] = 0
    narrow.encoder.b_enc[~keep] = NEVER

    def edit(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
        again = narrow.encode(read[0])
        dropped = keep[again.support.latent] & (again.value != 0)
        row = again.support.row[dropped]
        latent, value = again.support.latent[dropped], again.value[dropped]
        if settings.strict:
            return from_entries(row, latent, value, code)
        at = row % shape[1] == shape[1] - 1
        old = code.support.row % shape[1] != shape[1] - 1
        return from_entries(
            torch.cat([row[at], code.support.row[old]]),
            torch.cat([latent[at], code.support.latent[old]]),
            torch.cat([value[at], code.value[old]]), code,
        )  # fmt: skip

    read: list[Tensor] = []
    watching = standing[0]._replace(coder=_Reading(coder, read))
    run = run_with(subject, inputs.rows, [watching], edit=edit, keep_error=settings.keep_error)
    assert run.logits is not None
    return _kl(inputs, run.logits)


class _Reading:
    """A coder that keeps what it reads, so that an edit can read it again."""

    def __init__(self, coder: Dictionary, read: list[Tensor]) -> None:
        self._coder, self._read = coder, read
        self.n_latents = coder.n_latents

    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """The coder's own code."""
        self._read.append(x)
        return self._coder.encode(x)

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """The coder's own output."""
        return self._coder.decode(code)

    def directions(self) -> Float[Tensor, "latents d_out"]:
        """The coder's own."""
        return self._coder.directions()
