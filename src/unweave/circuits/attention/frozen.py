"""Blocks with their patterns and norm scales frozen: then all that attention does is linear.

A norm is y = gain * (x - mean(x)) * inverse + bias with its inverse scale taken from the pass, and
a head is z_t = sum_s A_ts (y_s W_V + b_V) with its pattern taken from the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.subject import Subject


@dataclass(frozen=True)
class FrozenBlock:
    """One block in one row's pass."""

    pattern: Float[Tensor, "heads query key"]
    """Where each head looked."""
    z: Float[Tensor, "pos heads d_head"]
    """What each head brought."""
    mlp_out: Float[Tensor, "pos d"]
    """What the MLP wrote."""
    W_V: Float[Tensor, "heads d d_head"]
    """Values, repeated where heads share them."""
    W_O: Float[Tensor, "heads d_head d"]
    """What heads write."""
    b_V: Float[Tensor, "heads d_head"]
    """Biases of the values."""
    b_O: Float[Tensor, " d"]
    """Bias of the output."""
    read_gain: Float[Tensor, "pos d"]
    """Gain over scale of the norm before attention, at each position."""
    read_bias: Float[Tensor, " d"]
    """Bias of that norm."""
    centred: bool
    """Whether it takes out the mean."""
    attn_gain: Float[Tensor, "pos d"]
    """Factor between `attn.out` and the stream: ones but where a family norms what is written."""
    mlp_gain: Float[Tensor, "pos d"]
    """The same for `mlp.out`."""

    def to_heads(
        self, slope: Float[Tensor, "places pos d"]
    ) -> Float[Tensor, "places pos heads d_head"]:
        """From a slope on what attention writes to one on what each head brings."""
        return torch.einsum("psd,hed->pshe", slope, self.W_O)

    def to_stream(
        self, slope: Float[Tensor, "places pos heads d_head"]
    ) -> tuple[Float[Tensor, "places pos d"], Float[Tensor, " places"]]:
        """From a slope on the heads' outputs to one on the stream before the block.

        Also what the biases on the way bring.
        """
        values = torch.einsum("pthe,hts->pshe", slope, self.pattern)
        constant = (values * self.b_V).sum((1, 2, 3))
        normed = torch.einsum("pshe,hde->psd", values, self.W_V)
        constant = constant + (normed @ self.read_bias).sum(1)
        stream = normed * self.read_gain
        if self.centred:
            stream = stream - stream.mean(2, keepdim=True)
        return stream, constant


def frozen_blocks(
    subject: Subject, tokens: Int[Tensor, "one pos"], count: int, sites: Sequence[str]
) -> tuple[list[FrozenBlock], dict[str, Tensor]]:
    """The first `count` blocks in the pass over one row, and some other sites of it."""
    inner = ["resid_pre", "attn.in", "attn.pattern", "attn.z", "attn.out", "mlp.out", "resid_post"]
    if not subject.geometry.parallel:
        inner.append("resid_mid")
    names = [f"blocks.{i}.{what}" for i in range(count) for what in inner]
    found = subject.run(tokens, capture=list(dict.fromkeys((*names, *sites))), logits=False).sites
    return [_frozen(subject, i, found) for i in range(count)], {s: found[s] for s in sites}


def _frozen(subject: Subject, layer: int, found: dict[str, Tensor]) -> FrozenBlock:
    here = {
        name.split(".", 2)[2]: tensor[0]
        for name, tensor in found.items()
        if name.startswith(f"blocks.{layer}.")
    }
    weights = subject.attention_weights(layer)
    gain, bias = subject.norm_gain(layer, "attn"), _norm_bias(subject, layer)
    x = here["resid_pre"]
    spread = (x - x.mean(1, keepdim=True) if subject.norms_centre else x) * gain
    b_V, b_O = weights.b_V, weights.b_O
    middle = here.get("resid_mid")
    return FrozenBlock(
        pattern=here["attn.pattern"],
        z=here["attn.z"].unflatten(1, (subject.n_heads, -1)),
        mlp_out=here["mlp.out"],
        W_V=weights.W_V,
        W_O=weights.W_O,
        b_V=torch.zeros_like(weights.W_V[:, 0]) if b_V is None else b_V,
        b_O=torch.zeros_like(x[0]) if b_O is None else b_O,
        read_gain=gain * _factor(here["attn.in"] - bias, spread),
        read_bias=bias,
        centred=subject.norms_centre,
        attn_gain=_written(subject, layer, "attn", here["attn.out"], x, middle),
        mlp_gain=_written(subject, layer, "mlp", here["mlp.out"], middle, here["resid_post"]),
    )


def _written(
    subject: Subject,
    layer: int,
    which: str,
    out: Float[Tensor, "pos d"],
    before: Float[Tensor, "pos d"] | None,
    after: Float[Tensor, "pos d"] | None,
) -> Float[Tensor, "pos d"]:
    gain = subject.write_gain(layer, "attn" if which == "attn" else "mlp").to(out)
    if before is None or after is None or not (gain != 1).any():
        return gain.expand_as(out)
    return gain * _factor(after - before, out * gain)


def _factor(whole: Float[Tensor, "pos d"], of: Float[Tensor, "pos d"]) -> Float[Tensor, "pos 1"]:
    """By how much one vector is longer than another of the same direction, at each position."""
    return (whole * of).sum(1, keepdim=True) / of.square().sum(1, keepdim=True).clamp_min(1e-30)


def _norm_bias(subject: Subject, layer: int) -> Float[Tensor, " d"]:
    """What the norm before attention makes of nothing: its bias."""
    module = subject.model.get_submodule(subject.place(f"blocks.{layer}.attn.in").module)
    nothing = torch.zeros(subject.d_model, device=subject.device, dtype=subject.dtype)
    return cast(Tensor, module(nothing[None]))[0]
