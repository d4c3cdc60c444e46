"""All weights of a decompiled network between features, derived once.

    V[w, t] = enc_t . G write_w                    reader t of an MLP, of queries or of keys
    V[w, t] = enc_t . W_V^h G write_w              reader t of head h
    V[w, v] = U_v . write_w                        logit v
    M[w, u] = write_w . write_u / d_model          what the norms need

with G the gain of the norm before the reader and U the unembedding with the last norm's gain. Where
norms centre, write_w is without its mean, and M holds variances. A gated latent is two readers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.decompile.edges import virtual_weights
from unweave.decompile.explicit.writers import (
    Writers,
    in_order,
    number_writers,
    outputs,
    written,
)
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.errors import UserError
from unweave.subject import Subject

LOGITS = "logit"
"""The readers behind everything."""
MOST_BYTES = 8 << 30
"""Virtual weights that are derived at most."""


@dataclass(frozen=True)
class VirtualWeights:
    """What readers read of writers."""

    writers: Writers
    """The numbering of rows."""
    reads: Mapping[str, Float[Tensor, "_ _"]]
    """By part, and `logit`, as [writers, readers]: a row for each writer that comes before it."""
    offsets: Mapping[str, Float[Tensor, " _"]]
    """What is added to the sum of each reader."""
    gates: Mapping[str, tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]]
    """Reads and offsets of the gates of parts whose latents are gated."""
    gram: Float[Tensor, "writers writers"]
    """Products of what writers write, over d_model."""
    posts: Mapping[str, Float[Tensor, "_ _"]]
    """By part, such products before the norm that its output passes, where it passes one."""

    @property
    def entries(self) -> int:
        """How many virtual weights there are."""
        gates = (weight for weight, _ in self.gates.values())
        return sum(weight.numel() for weight in (*self.reads.values(), *gates))


def derive(subject: Subject, parts: Mapping[str, Part]) -> VirtualWeights:
    """Derive all virtual weights; the memory is 4 bytes an entry, see `VirtualWeights.entries`.

    Raises:
        UserError: a part has a dense skip, so that what it writes is no sum over what is on, or
            there are more virtual weights than `MOST_BYTES` hold.
    """
    _refuse_unknown(subject, parts)
    writers = number_writers(subject, parts)
    _refuse_large(subject, parts, writers)
    vectors = written(subject, parts, writers)
    reads, offsets, gates, posts = {}, {}, {}, {}
    for name in in_order(parts):
        part = parts[name]
        earlier = vectors[: _seen(subject, writers, name)]
        reads[name], offsets[name] = _reader(subject, part, earlier, gate=False)
        if part.spec.gated:
            gates[name] = _reader(subject, part, earlier, gate=True)
        if subject.norms_writes and place_of(name).writes_stream:
            own = outputs(part)
            posts[name] = own @ own.T / subject.d_model
    reads[LOGITS] = vectors @ subject.unembed().float().T
    offsets[LOGITS] = subject.unembed_bias()
    gram = vectors @ vectors.T / subject.d_model
    return VirtualWeights(writers, reads, offsets, gates, gram, posts)


def _reader(
    subject: Subject, part: Part, earlier: Float[Tensor, "writers d_model"], *, gate: bool
) -> tuple[Float[Tensor, "writers latents"], Float[Tensor, " latents"]]:
    """What the latents of a part read of writers, and what is added to it."""
    every = torch.arange(part.spec.n_latents)
    weights = virtual_weights(subject, part, earlier, every, gate=gate).T.contiguous()
    bias, matrix = (part.b_gate, part.W_gate) if gate else (part.b_enc, part.W_enc)
    assert bias is not None
    assert matrix is not None
    return weights, bias.detach() + _shift(subject, part, matrix.detach() * part.spec.input_scale)


def _shift(
    subject: Subject, part: Part, encoder: Float[Tensor, "latents d_read"]
) -> Float[Tensor, " latents"]:
    """What biases of the norm and of the values add to readers.

    For readers of heads too it is one number each, as patterns sum to one.
    """
    layer, kind = place_of(part.spec.name)
    bias = subject.norm_bias(layer, place_of(part.spec.name).norm)
    if kind != "attn":
        return torch.zeros(len(encoder)) if bias is None else encoder @ bias.float()
    weights = subject.attention_weights(layer)
    slices = torch.zeros(part.spec.heads, part.spec.d_read)
    if weights.b_V is not None:
        slices = slices + weights.b_V.float()
    if bias is not None:
        slices = slices + torch.einsum("m,hmd->hd", bias.float(), weights.W_V.float())
    return (encoder * slices.repeat_interleave(len(encoder) // part.spec.heads, 0)).sum(1)


def _seen(subject: Subject, writers: Writers, name: str) -> int:
    """How many writers a part can read."""
    layer, kind = place_of(name)
    sibling = kind == "mlp" and not subject.geometry.parallel
    return writers.before(f"L{layer}.mlp" if sibling else f"L{layer}.attn")


def _refuse_unknown(subject: Subject, parts: Mapping[str, Part]) -> None:
    for name, part in parts.items():
        if part.spec.skip:
            raise UserError(
                f"{name} has a dense linear map beside its latents, so what it writes is no sum "
                "over what is on: it would take as many latents that never rest as the stream is "
                "wide; decompile without --config skip, or run it in factored form"
            )
        if name.endswith(".attn") and part.spec.heads != subject.n_heads:
            raise UserError(
                f"{name} reads {part.spec.heads} slices where {subject.name} has "
                f"{subject.n_heads} heads, so no pattern moves what it reads"
            )


def _refuse_large(subject: Subject, parts: Mapping[str, Part], writers: Writers) -> None:
    readers = sum(part.spec.n_latents * (1 + part.spec.gated) for part in parts.values())
    # Half of the writers come before the reader, on the mean over readers.
    entries = writers.count * (writers.count + readers / 2 + subject.vocab_size)
    if 4 * entries > MOST_BYTES:
        raise UserError(
            f"{subject.name} has {writers.count:,} tokens and features that write, and their "
            f"virtual weights would take {4 * entries / 1e9:,.0f} GB; run it in factored form "
            "(DecompiledNetwork)"
        )
