"""All weights of a decompiled network between features, derived once.

    V[w, t] = enc_t . G write_w                    reader t of an MLP, of queries or of keys
    V[w, t] = enc_t . W_V^h G write_w              reader t of head h
    V[w, v] = U_v . write_w                        logit v
    M[w, u] = write_w . write_u / d_model          what the norms need

with G the gain of the norm before the reader and U the unembedding with the last norm's gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.decompile.edges import virtual_weights
from unweave.decompile.explicit.writers import Writers, in_order, number_writers, written
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.errors import UserError
from unweave.subject import Subject

LOGITS = "logit"
"""The readers behind everything."""


@dataclass(frozen=True)
class VirtualWeights:
    """What readers read of writers."""

    writers: Writers
    """The numbering of rows."""
    reads: Mapping[str, Float[Tensor, "_ _"]]
    """By part, and `logit`, as [writers, readers]: a row for each writer that comes before it."""
    offsets: Mapping[str, Float[Tensor, "_"]]
    """What is added to the sum of each reader."""
    gram: Float[Tensor, "writers writers"]
    """Products of what writers write, over d_model."""

    @property
    def entries(self) -> int:
        """How many virtual weights there are."""
        return sum(weight.numel() for weight in self.reads.values())


def derive(subject: Subject, parts: Mapping[str, Part]) -> VirtualWeights:
    """Derive all virtual weights; the memory is 4 bytes an entry, see `VirtualWeights.entries`.

    Raises:
        UserError: the subject's norms centre, its blocks' outputs pass another norm, or a part has
            a dense skip: what reads would then not be a weighted sum of what writes.
    """
    _refuse_unknown(subject, parts)
    writers = number_writers(subject, parts)
    vectors = written(subject, parts, writers)
    reads, offsets = {}, {}
    for name in in_order(parts):
        part = parts[name]
        every = torch.arange(part.spec.n_latents)
        earlier = vectors[: _seen(subject, writers, name)]
        reads[name] = virtual_weights(subject, part, earlier, every).T.contiguous()
        offsets[name] = part.b_enc.detach() + _value_bias(subject, part)
    reads[LOGITS] = vectors @ subject.unembed().float().T
    offsets[LOGITS] = torch.zeros(subject.vocab_size)
    return VirtualWeights(writers, reads, offsets, vectors @ vectors.T / subject.d_model)


def _seen(subject: Subject, writers: Writers, name: str) -> int:
    """How many writers a part can read."""
    layer, kind = place_of(name)
    sibling = kind == "mlp" and not subject.geometry.parallel
    return writers.before(f"L{layer}.mlp" if sibling else f"L{layer}.attn")


def _value_bias(subject: Subject, part: Part) -> Tensor:
    """What a bias of the values adds to a reader of heads, whose pattern sums to one."""
    spec = part.spec
    nothing = torch.zeros(spec.n_latents)
    layer, kind = place_of(spec.name)
    if kind != "attn":
        return nothing
    b_V = subject.attention_weights(layer).b_V
    if b_V is None:
        return nothing
    slices = b_V.float().reshape(spec.heads, spec.d_read)
    mine = slices.repeat_interleave(spec.n_latents // spec.heads, 0)
    return (part.W_enc.detach() * spec.input_scale * mine).sum(1)


def _refuse_unknown(subject: Subject, parts: Mapping[str, Part]) -> None:
    if subject.norms_centre:
        raise UserError(
            f"{subject.name} centres what its norms read and adds a bias to it, which explicit "
            "virtual weights do not know yet; run it in factored form (DecompiledNetwork)"
        )
    if not bool((subject.write_gain(0, "mlp") == 1).all()):
        raise UserError(
            f"what the blocks of {subject.name} write passes another norm, so it is no sum of "
            "features; run it in factored form (DecompiledNetwork)"
        )
    for name, part in parts.items():
        if part.spec.skip:
            raise UserError(
                f"{name} has a dense linear map beside its latents, so what it writes is no sum "
                "of features; decompile without --config skip, or run it in factored form"
            )
        if name.endswith(".attn") and part.spec.heads != subject.n_heads:
            raise UserError(
                f"{name} reads {part.spec.heads} slices where {subject.name} has "
                f"{subject.n_heads} heads, so no pattern moves what it reads"
            )
