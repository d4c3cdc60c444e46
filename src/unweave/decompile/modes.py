"""Splice modes: which input a part gets while it stands in for its block.

`clean`: every part reads what the original network computed there, and the rest of the network
runs on all their outputs. `propagated`: every part reads the decompiled network's own stream, so
errors compound; the honest one. `single`: one part stands in, everything else is original. A
number without its mode means nothing.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.dictionaries.part_names import input_site, output_site, place_of
from unweave.subject import Subject


class Fixed(nn.Module):
    """Returns one tensor whatever it is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """The stored output, in the input's dtype."""
        return self.output.to(x.dtype)


def original_logits(subject: Subject, rows: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos v"]:
    """The subject's own logits."""
    with torch.inference_mode():
        logits = subject.run(rows).logits
    assert logits is not None
    return logits


def propagated_logits(
    subject: Subject, placed: Mapping[str, nn.Module], rows: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows pos v"]:
    """Logits with every stand-in in place, each reading the spliced stream."""
    with subject.swapped(placed):
        return original_logits(subject, rows)


def clean_logits(
    subject: Subject, placed: Mapping[str, nn.Module], rows: Int[Tensor, "rows pos"]
) -> Float[Tensor, "rows pos v"]:
    """Logits with every block's output replaced by what its stand-ins make of the clean input.

    Attention is one block however many stand-ins it has: with queries or keys replaced, `attn`
    reads the z that those make of the clean `attn.in`.
    """
    inputs = _captured(subject, {name: input_site(name) for name in placed}, rows)
    with torch.inference_mode():
        patterns = {n: Fixed(placed[n](inputs[n])) for n in placed if place_of(n).kind in "qk"}
        inputs |= _moved(subject, patterns, [n for n in placed if place_of(n).kind == "attn"], rows)
        rest = {n: Fixed(placed[n](inputs[n])) for n in placed if n not in patterns}
    return propagated_logits(subject, {**patterns, **rest}, rows)


def _moved(
    subject: Subject, patterns: Mapping[str, Fixed], attentions: list[str], rows: Tensor
) -> dict[str, Tensor]:
    """What each attention part reads when these queries and keys attend in the clean stream."""
    if not patterns or not attentions:
        return {}
    whole = [f"L{layer}.attn" for layer in {place_of(name).layer for name in patterns}]
    outputs = _captured(subject, {name: output_site(name) for name in whole}, rows)
    held = {name: Fixed(output) for name, output in outputs.items()}
    with subject.swapped({**patterns, **held}):
        return _captured(subject, {name: input_site(name) for name in attentions}, rows)


def single_logits(
    subject: Subject, placed: Mapping[str, nn.Module], rows: Int[Tensor, "rows pos"]
) -> Iterator[tuple[str, Float[Tensor, "rows pos v"]]]:
    """For each stand-in in turn, logits with it alone in place.

    Blocks before it are held at their recorded outputs: what they compute cannot change, so it is
    not computed again.
    """
    names = sorted(placed, key=lambda name: place_of(name).order)
    outputs = _captured(subject, {name: output_site(name) for name in names}, rows)
    for index, name in enumerate(names):
        before = {earlier: Fixed(outputs[earlier]) for earlier in names[:index]}
        yield name, propagated_logits(subject, {**before, name: placed[name]}, rows)


def _captured(subject: Subject, sites: dict[str, str], rows: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        run = subject.run(rows, capture=list(sites.values()), logits=False)
    flat = {name: run.sites[site] for name, site in sites.items()}
    # Heads side by side, as stand-ins write them.
    return {n: (t.flatten(-2) if t.ndim == 4 else t).clone() for n, t in flat.items()}
