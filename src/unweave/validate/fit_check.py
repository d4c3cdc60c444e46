"""Does a dictionary belong here? Its error at the place named, beside that of places nearby.

A dictionary put at the wrong site, layer or scale gives latents that look like latents. What gives
it away is the error, which is far lower where it belongs; so it is measured at the sites around and
under the normalisations that libraries train on, on the same tokens.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.places import Place, named_place, neighbours

Normalisation = Literal["none", "mean norm", "layer norm"]
NORMALISATIONS: tuple[Normalisation, ...] = ("none", "mean norm", "layer norm")
"""Raw vectors; all multiplied by one number, so that their mean norm is sqrt(width); each row
centred and scaled to norm sqrt(width)."""


BATCH = 2048
"""Vectors given to a dictionary at once."""
STRANGE = 3.0
"""A norm at position 0, in usual ones, from which it is mentioned."""


class FitSettings(BaseModel):
    """When a dictionary is said to belong elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    better: float = Field(default=0.95, gt=0, lt=1)
    """Another place must have less than this share of the error at the place named. With it, all
    of 20 dictionaries made at the residual stream of wren were found to belong where they do."""
    useful: float = Field(default=0.9, gt=0)
    """From this FVU on a dictionary explains nothing, and belongs nowhere near."""
    slice_tokens: PositiveInt = 512
    """Tokens run through the subject at once."""


class Fit(NamedTuple):
    """A dictionary at one place under one normalisation."""

    place: Place
    normalisation: Normalisation
    fvu: float
    """Share of the variance of what it should write that it misses, position 0 left out."""
    l0: float
    """Active latents a token, position 0 left out."""
    fvu_all: float
    """The same error with position 0 of every row among the vectors."""


class FitReport(NamedTuple):
    """What a fit check found."""

    named: Fit
    """At the place asked about, on raw vectors."""
    fits: tuple[Fit, ...]
    """Every place and normalisation, least error first."""
    start_norm: float
    """Norm of what is read at position 0, in median norms of the other positions."""
    fits_here: bool
    """Whether the place asked about is where it belongs."""
    verdict: str
    """All that in a sentence."""


@torch.no_grad()
def fit_check(
    dictionary: Dictionary,
    subject: Subject,
    tokens: Int[Tensor, "rows pos"],
    *,
    site: str | None = None,
    writes: str | None = None,
    settings: FitSettings | None = None,
) -> FitReport:
    """Measure a dictionary at a place and around it, on rows of tokens it was not trained on.

    `site` (and `writes`, for one that reads and writes different sites) is where it is thought to
    belong; left out, what its own spec says.

    Raises:
        UserError: no such site, a width that is not the dictionary's, rows of one token.
    """
    chosen = settings or FitSettings()
    place = named_place(dictionary.spec, subject, site, writes)
    if tokens.shape[1] < 2:
        raise UserError("rows of one token have nothing but position 0; give longer ones")
    places = neighbours(place, subject)
    vectors = _vectors(subject, tokens, {one for p in places for one in p.sites}, chosen)
    _check_width(dictionary, subject, place, vectors)
    fits = [
        _fit(dictionary, one, how, vectors)
        for one in places
        if _widths(one, vectors) == _widths(place, vectors)
        for how in _ways(dictionary)
    ]
    named = fits[0]
    ordered = tuple(sorted(fits, key=lambda fit: fit.fvu))
    read = torch.cat([vectors[site] for site in place.reads], dim=-1)
    start = float(read[:, 0].norm(dim=-1).mean() / read[:, 1:].norm(dim=-1).median())
    here, said = _verdict(dictionary.spec.name, subject.name, named, ordered[0], chosen)
    return FitReport(named, ordered, start, here, said + _about_start(named, start))


def _ways(dictionary: Dictionary) -> list[Normalisation]:
    spec = dictionary.spec
    one_each = len(spec.reads) == len(spec.writes) == 1 and not spec.layer_norm
    return [how for how in NORMALISATIONS if one_each or how != "layer norm"]


def _vectors(
    subject: Subject, tokens: Tensor, sites: set[str], settings: FitSettings
) -> dict[str, Float[Tensor, "rows pos width"]]:
    """What flows at every site; heads laid side by side."""
    rows = max(1, settings.slice_tokens // tokens.shape[1])
    wanted = sorted(sites)
    slices = [subject.run(part, capture=wanted, logits=False).sites for part in tokens.split(rows)]
    return {
        site: torch.cat([found[site].flatten(2).float().cpu() for found in slices])
        for site in wanted
    }


def _widths(place: Place, vectors: dict[str, Tensor]) -> tuple[list[int], list[int]]:
    return (
        [vectors[site].shape[-1] for site in place.reads],
        [vectors[site].shape[-1] for site in place.writes],
    )


def _check_width(
    dictionary: Dictionary, subject: Subject, place: Place, vectors: dict[str, Tensor]
) -> None:
    spec = dictionary.spec
    for verb, ports, sites in (
        ("reads", spec.reads, place.reads),
        ("writes", spec.writes, place.writes),
    ):
        for port, site in zip(ports, sites, strict=True):
            width = vectors[site].shape[-1]
            if width != port.width:
                raise UserError(
                    f"{spec.name} {verb} vectors of width {port.width}, and {site} of "
                    f"{subject.name} has {width}: it was made for another site or another model"
                )


def _fit(
    dictionary: Dictionary, place: Place, how: Normalisation, vectors: dict[str, Tensor]
) -> Fit:
    x = torch.cat([_scaled(vectors[site], how) for site in place.reads], dim=-1)
    y = torch.cat([_scaled(vectors[site], how) for site in place.writes], dim=-1)
    rows, pos, _ = x.shape
    error, active = torch.empty(rows, pos), torch.empty(rows, pos)
    for part in torch.arange(rows).split(max(1, BATCH // pos)):
        flat, target = x[part].flatten(0, 1), y[part].flatten(0, 1)
        mean, size = flat.new_zeros(()), flat.new_ones(())
        if how == "layer norm":
            mean = flat.mean(1, keepdim=True)
            size = (flat - mean).square().mean(1, keepdim=True).sqrt().clamp_min(1e-8)
        read = (flat - mean) / size
        y_hat = dictionary(read)
        if how == "layer norm" and place.reads == place.writes:
            y_hat = y_hat * size + mean
        error[part] = (target - y_hat).square().sum(1).view(-1, pos)
        code = dictionary.encode(read)
        fired = torch.zeros(len(flat)).index_add(0, code.support.row, (code.value != 0).float())
        active[part] = fired.view(-1, pos)
    later = slice(1, None)
    return Fit(
        place,
        how,
        float(error[:, later].double().sum() / _variance(y[:, later])),
        float(active[:, later].mean()),
        float(error.double().sum() / _variance(y)),
    )


def _scaled(vectors: Tensor, how: Normalisation) -> Tensor:
    if how != "mean norm":
        return vectors
    return vectors * (vectors.shape[-1] ** 0.5 / vectors[:, 1:].norm(dim=-1).mean())


def _variance(y: Float[Tensor, "rows pos width"]) -> float:
    flat = y.flatten(0, 1).double()
    return max(float((flat - flat.mean(0)).square().sum()), 1e-30)


_HOW = {
    "none": "on raw vectors",
    "mean norm": "on vectors scaled to mean norm sqrt(width)",
    "layer norm": "on vectors after a layer norm",
}


def _verdict(
    name: str, subject: str, named: Fit, best: Fit, settings: FitSettings
) -> tuple[bool, str]:
    """Whether it fits where it was put, and what to say."""
    here = f"{named.place} of {subject}"
    if best.fvu >= settings.useful:
        return False, (
            f"{name} explains nothing at {here} (FVU {named.fvu:.2f}; the mean has 1) or nearby "
            f"({best.fvu:.2f} at best, at {best.place}): it was made for another model or place"
        )
    if best.fvu >= settings.better * named.fvu:
        return True, f"{name} fits {here}: FVU {named.fvu:.2f} with {named.l0:.1f} active latents"
    if best.place == named.place:
        return False, (
            f"{name} belongs at {here}, but {_HOW[best.normalisation]}: FVU {best.fvu:.2f} there, "
            f"{named.fvu:.2f} on raw ones"
        )
    return False, (
        f"{name} does not belong at {here} (FVU {named.fvu:.2f}): it belongs at {best.place} "
        f"{_HOW[best.normalisation]} (FVU {best.fvu:.2f})"
    )


def _about_start(named: Fit, norm: float) -> str:
    with_it = f"with it the FVU is {named.fvu_all:.2f}"
    if norm >= STRANGE:
        return (
            f"; position 0 was left out, where vectors have {norm:.1f} times the usual norm: "
            + with_it
        )
    odd = abs(named.fvu_all - named.fvu) > 0.3 * named.fvu + 0.01
    return f"; position 0 was left out: {with_it}" if odd else ""
