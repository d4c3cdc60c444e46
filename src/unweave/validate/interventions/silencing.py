"""One latent of a decompiled network silenced: what reaches others, measured in two ways.

Silenced is what the latent writes, wherever it fires in a row but at position 0; its place among
the k stays empty. Its own part reads nothing that it writes, so that this is exact.

    direct   the target reads the stream without what the latent wrote, all else as it was: only
             the norm and the choice of the k are computed anew
    total    the whole network after it is
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import PartPlace, input_site, output_site, place_of
from unweave.errors import UserError
from unweave.subject import Subject


class Seen(NamedTuple):
    """What some latents of one part did on rows before and after another one was silenced."""

    exposure: Float[Tensor, "rows pos targets"]
    """What the virtual weight is multiplied by: the source's activation over the norm's scale, for
    attention summed along the pattern."""
    active: Bool[Tensor, "rows pos targets"]
    """Where each was active before."""
    moved: dict[tuple[str, str], Float[Tensor, "rows pos targets"]]
    """Change by (`direct` or `total`, `pre` for pre-activations or `activation`)."""


@torch.no_grad()
def silence(
    subject: Subject,
    network: DecompiledNetwork,
    part: Part,
    latent: int,
    readers: Sequence[tuple[Part, Int[Tensor, " targets"]]],
    rows: Int[Tensor, "rows pos"],
) -> list[Seen]:
    """Silence a latent of `part` and look at latents of later parts, each part once.

    `subject` is what the network was made from: it still has the weights that parts stand for.
    """
    run, spec = network.subject.run, part.spec
    wanted = [site for reader, _ in readers for site in _sites(subject, reader.spec.name)]
    own = [input_site(spec.name), output_site(spec.name), *_around(subject, spec.name)]
    before = run(rows, capture=list(dict.fromkeys(own + wanted)), logits=False).sites
    activation = _activations(part, before[own[0]], torch.tensor([latent]))
    activation[:, 0] = 0
    wrote = activation * part.W_dec[latent] / spec.output_scale
    after = run(
        rows, capture=[input_site(reader.spec.name) for reader, _ in readers],
        replace={own[1]: lambda tensor: tensor - wrote.to(tensor.dtype)}, logits=False,
    ).sites  # fmt: skip
    gain, share = _into_stream(subject, spec.name, before)
    carried = activation * share
    return [
        _seen(subject, reader, targets, before, after, carried, wrote * gain * share)
        for reader, targets in readers
    ]


def _sites(subject: Subject, name: str) -> list[str]:
    """The stream that a part's norm reads, what the norm gives, what the part reads; a pattern."""
    place = place_of(name)
    block = f"blocks.{place.layer}"
    mid = place.norm == "mlp" and not subject.geometry.parallel
    sites = [
        f"{block}.{'resid_mid' if mid else 'resid_pre'}",
        f"{block}.{place.norm}.in",
        input_site(name),
    ]
    return [*sites, f"{block}.attn.pattern"] if place.kind == "attn" else sites


def _around(subject: Subject, name: str) -> list[str]:
    """The stream before and after what a part writes, where a norm stands between."""
    place = place_of(name)
    if (subject.write_gain(place.layer, place.norm) == 1).all():
        return []
    pre, mid, post = (f"blocks.{place.layer}.resid_{at}" for at in ("pre", "mid", "post"))
    return [mid, post] if place.norm == "mlp" else [pre, mid]


def _into_stream(
    subject: Subject, name: str, sites: dict[str, Tensor]
) -> tuple[Tensor, Float[Tensor, "*rows 1"]]:
    """What lies between a part and the stream: a gain, and one over the scale of its norm."""
    place = place_of(name)
    gain = subject.write_gain(place.layer, place.norm).float()
    around = _around(subject, name)
    if not around:
        return gain, torch.ones(1)
    raw = sites[output_site(name)].float() * gain
    added = sites[around[1]].float() - sites[around[0]].float()
    share = (added * raw).sum(-1, keepdim=True) / raw.square().sum(-1, keepdim=True).clamp_min(
        1e-30
    )
    return gain, share


def _seen(
    subject: Subject,
    reader: Part,
    targets: Tensor,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    carried: Float[Tensor, "rows pos 1"],
    left: Float[Tensor, "rows pos d"],
) -> Seen:
    place = place_of(reader.spec.name)
    sites = _sites(subject, reader.spec.name)
    stream, normed, was = (before[site].float() for site in sites[:3])
    norm = subject.model.get_submodule(subject.place(sites[1]).module)

    def through(x: Tensor) -> Tensor:
        return cast(Tensor, norm.forward(x.to(subject.dtype))).float()

    reach = carried / _scale(subject, place, stream, normed - through(0 * stream))
    lost = through(stream - left) - through(stream)
    if place.kind != "attn":
        exposure, direct = reach.expand(-1, -1, len(targets)), was + lost
    else:
        pattern = before[sites[3]].float()
        W_V = subject.attention_weights(place.layer).W_V.float()
        values = torch.einsum("bkd,hde->bkhe", lost, W_V)
        direct = was + torch.einsum("bhqk,bkhe->bqhe", pattern, values).flatten(2)
        head = targets // (reader.spec.n_latents // reader.spec.heads)
        exposure = torch.einsum("bhqk,bk->bqh", pattern, reach[:, :, 0])[:, :, head]
    total = after[sites[2]].float()
    start = _read(reader, was, targets)
    moved = {
        (path, how): found - start[how]
        for path, x in (("direct", direct), ("total", total))
        for how, found in _read(reader, x, targets).items()
    }
    return Seen(exposure, start["activation"] > 0, moved)


def _scale(
    subject: Subject, place: PartPlace, stream: Tensor, scaled: Tensor
) -> Float[Tensor, "rows pos 1"]:
    """What the norm before a part divides by, read off what goes in and what comes out."""
    centred = stream - stream.mean(-1, keepdim=True) if subject.norms_centre else stream
    inside = centred * subject.norm_gain(place.layer, place.norm).float()
    return inside.square().sum(-1, keepdim=True) / (inside * scaled).sum(-1, keepdim=True)


def _read(part: Part, x: Tensor, latents: Tensor) -> dict[str, Tensor]:
    spec = part.spec
    if spec.gated:
        raise UserError(
            f"{spec.name} has gated latents, whose graph is held against what happens only where "
            "they read linearly: use parts without gates"
        )
    head = latents // (spec.n_latents // spec.heads)
    seen = (x.float() * spec.input_scale).unflatten(-1, (spec.heads, spec.d_read))
    pre = torch.einsum("bptd,td->bpt", seen[:, :, head], part.W_enc[latents])
    return {"pre": pre + part.b_enc[latents], "activation": _activations(part, x, latents)}


def _activations(
    part: Part, x: Float[Tensor, "rows pos d_in"], latents: Int[Tensor, " some"]
) -> Float[Tensor, "rows pos some"]:
    code = part.encode(x.float().flatten(0, 1))
    dense = code.value.new_zeros(len(code.value), part.spec.n_latents)
    dense.scatter_(1, code.latent, code.value)
    return dense[:, latents].unflatten(0, x.shape[:2])
