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
    """Logits with every block's output replaced by what its stand-in makes of the clean input."""
    inputs = _captured(subject, {name: input_site(name) for name in placed}, rows)
    with torch.inference_mode():
        fixed = {name: Fixed(placed[name](inputs[name])) for name in placed}
    return propagated_logits(subject, fixed, rows)


def single_logits(
    subject: Subject, placed: Mapping[str, nn.Module], rows: Int[Tensor, "rows pos"]
) -> Iterator[tuple[str, Float[Tensor, "rows pos v"]]]:
    """For each stand-in in turn, logits with it alone in place.

    Blocks before it are held at their recorded outputs: what they compute cannot change, so it is
    not computed again.
    """
    names = sorted(placed, key=_order)
    outputs = _captured(subject, {name: output_site(name) for name in names}, rows)
    for index, name in enumerate(names):
        before = {earlier: Fixed(outputs[earlier]) for earlier in names[:index]}
        yield name, propagated_logits(subject, {**before, name: placed[name]}, rows)


def input_site(part: str) -> str:
    """The site that a part of this name reads."""
    layer, kind = part[1:].split(".")
    return f"blocks.{layer}.mlp.in" if kind == "mlp" else f"blocks.{layer}.attn.z"


def output_site(part: str) -> str:
    """The site that a part of this name writes."""
    layer, kind = part[1:].split(".")
    return f"blocks.{layer}.{kind}.out"


def _order(part: str) -> tuple[int, str]:
    layer, kind = part[1:].split(".")
    return int(layer), kind


def _captured(subject: Subject, sites: dict[str, str], rows: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        run = subject.run(rows, capture=list(sites.values()), logits=False)
    return {name: run.sites[site].clone() for name, site in sites.items()}
