"""Where else a dictionary might belong: its sites shifted by a layer or within their block."""

from collections.abc import Sequence
from typing import NamedTuple

from unweave.dictionaries.dictionary_spec import DictionarySpec
from unweave.dictionaries.formats.foreign_sites import UNKNOWN
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.sites import BLOCK_SITES, canonical

INNER = ("resid_mid", "resid_post", "mlp.in", "mlp.out", "attn.z")
"""Sites of a block that an autoencoder is moved to; `resid_pre` is the end of the block before."""
PAIRS = (("mlp.in", "mlp.out"), ("resid_mid", "mlp.out"), ("attn.in", "attn.out"))
"""Pairs of one block that a transcoder is moved to."""


class Place(NamedTuple):
    """Sites that a dictionary reads and writes, one for each of its ports."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def __str__(self) -> str:
        reads, writes = " + ".join(self.reads), " + ".join(self.writes)
        return reads if reads == writes else f"{reads} -> {writes}"

    @property
    def sites(self) -> set[str]:
        """All of them."""
        return {*self.reads, *self.writes}


def named_place(
    spec: DictionarySpec, subject: Subject, site: str | None, writes: str | None
) -> Place:
    """The place a person names, or the one that the dictionary names itself.

    Raises:
        UserError: neither names one, the subject has no such site, one site is named for a
            dictionary of several, or it is a layer of a cross-layer transcoder.
    """
    if len(spec.writes) > len(spec.reads):
        raise UserError(
            f"{spec.name} writes {len(spec.writes)} sites together with dictionaries of "
            "other layers: alone it has no place that it could fit"
        )
    own = Place(tuple(p.site for p in spec.reads), tuple(p.site for p in spec.writes))
    place = own
    if site is not None:
        if len(own.reads) > 1 or len(own.writes) > 1:
            raise UserError(
                f"{spec.name} reads and writes {len(own.sites)} sites, so that one cannot be named "
                "for it: leave --site out, and its own are taken"
            )
        site = canonical(site)
        place = Place((site,), (canonical(writes) if writes else _written(own, site),))
    elif UNKNOWN in own.sites:
        raise UserError(
            f"{spec.name} does not say where in a network it belongs: name the place with --site"
        )
    for one in place.sites:
        subject.place(one)
    return place


def _written(own: Place, site: str) -> str:
    """What a dictionary writes that is put at `site`: the same, or as far from it as its own is."""
    (reads,), (writes,) = own.reads, own.writes
    if reads == writes:
        return site
    layer, inner = _split(site)
    _, target = _split(writes)
    pairs = dict(PAIRS)
    if layer is None or (target is None and inner not in pairs):
        raise UserError(f"{site} is read; say with --writes what is written")
    return f"blocks.{layer}.{target or pairs[inner or '']}"


def neighbours(place: Place, subject: Subject) -> list[Place]:
    """The place itself first, then others near it, the layer before to the layer after.

    Of two names of the same vectors (the end of a block, the beginning of the next) one is there.
    """
    found: list[Place] = []
    for shift in (0, -1, 1):
        moved = Place(
            tuple(_shifted(s, shift) for s in place.reads),
            tuple(_shifted(s, shift) for s in place.writes),
        )
        found.append(moved)
        layer = _split(place.reads[0])[0]
        if len(place.reads) == len(place.writes) == 1 and layer is not None:
            found += _within(layer + shift, place.reads == place.writes)
    known, seen, kept = set(subject.sites()), set(), []
    for one in found:
        key = (_one_name(one.reads, subject), _one_name(one.writes, subject))
        if key not in seen and (one == place or one.sites <= known):
            seen.add(key)
            kept.append(one)
    return kept


def _within(layer: int, same: bool) -> list[Place]:
    first = ("resid_pre",) if layer == 0 else ()
    pairs = [(inner, inner) for inner in (*first, *INNER)] if same else PAIRS
    return [Place((f"blocks.{layer}.{a}",), (f"blocks.{layer}.{b}",)) for a, b in pairs]


def _split(site: str) -> tuple[int | None, str | None]:
    """The layer and the site within its block; nothing for places outside the blocks."""
    head, _, rest = site.partition(".")
    layer, _, inner = rest.partition(".")
    if head != "blocks" or not layer.isdigit() or inner not in BLOCK_SITES:
        return None, None
    return int(layer), inner


def _shifted(site: str, by: int) -> str:
    layer, inner = _split(site)
    return site if layer is None else f"blocks.{layer + by}.{inner}"


def _one_name(sites: Sequence[str], subject: Subject) -> tuple[str, ...]:
    """`resid_pre` of a block under the name that the block before it gives the same vectors."""

    def name(site: str) -> str:
        layer, inner = _split(site)
        if inner != "resid_pre" or layer is None:
            return site
        return "embed" if layer == 0 else f"blocks.{layer - 1}.resid_post"

    return tuple(map(name, sites))
