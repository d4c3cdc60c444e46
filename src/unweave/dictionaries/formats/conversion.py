"""From one format to another, with the difference measured and not assumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import load_foreign, save_foreign

ROWS = 64
"""Random vectors that both dictionaries are given."""


class Conversion(NamedTuple):
    """One dictionary before and after, on the same random vectors."""

    name: str
    """What it is called in the folder."""
    about: str
    """Its kind, sizes and sites."""
    latents: float
    """Largest difference of a latent; a latent that fires in one alone counts in full."""
    output: float
    """Largest difference of an output."""
    size: float
    """Root mean square of the outputs, to compare with."""


def convert(source: Path, target: Path, format_name: str, *, seed: int = 0) -> list[Conversion]:
    """Read any known format at `source`, write another at `target`, read that and compare.

    The vectors are normal, with norms about sqrt(width) in each dictionary's own units.

    Raises:
        UserError: what `load_foreign` and `save_foreign` refuse.
    """
    parts = load_foreign(source)
    lone = len(parts) == 1 and format_name != "circuit_tracer"
    save_foreign(next(iter(parts.values())) if lone else parts, target, format_name)
    again = load_foreign(target)
    if lone:
        again = dict(zip(parts, again.values(), strict=True))
    return list(_compared(parts, again, seed))


def _compared(
    before: dict[str, Dictionary], after: dict[str, Dictionary], seed: int
) -> Iterator[Conversion]:
    # A set is named by its layers once it is written, whatever it was called before.
    order = list(after) if before.keys() != after.keys() else list(before)
    for name, other in zip(before, order, strict=True):
        old, new = before[name], after[other]
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(ROWS, old.spec.d_in, generator=rng) / old.input_scale
        latents = (old.encode(x).dense() - new.encode(x).dense()).abs().max()
        with torch.no_grad():
            y, again = old(x), new(x)
        size = y.square().mean().sqrt()
        yield Conversion(
            name, about(old), float(latents), float((y - again).abs().max()), float(size)
        )


def about(dictionary: Dictionary) -> str:
    """A dictionary in a few words: kind, sizes, sites."""
    spec = dictionary.spec
    reads = " + ".join(port.site for port in spec.reads)
    writes = " + ".join(port.site for port in spec.writes)
    k = spec.activation.model_dump().get("k")
    kind = spec.activation.kind + (f" k={k}" if k else "") + (", skip" if spec.skip else "")
    where = reads if reads == writes else f"{reads} -> {writes}"
    return f"{kind}, {spec.d_in} -> {spec.n_latents} -> {spec.d_out}, {where}"
