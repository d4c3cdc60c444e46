"""Where a network of layers starts: from autoencoders of the stream and parts of the blocks.

A part reads the stream and writes to it; features of a layer write the stream, those of the next
read it. What a part reads of a feature, and what a feature of the next layer reads of a part, are
therefore products of weights, and parts with an autoencoder after every block *are* a network of
layers: nothing has to be learnt for that, and where the autoencoders lose nothing, nothing is lost.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.decompile.edges import virtual_weights, written_by
from unweave.decompile.layers.block import FeatureBlock, MatrixBlock
from unweave.decompile.layers.codes import written
from unweave.decompile.layers.network import LayerNetwork
from unweave.decompile.layers.patterns import FeaturePatterns
from unweave.decompile.layers.spec import BlockSpec, LayersSpec, PatternSpec
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.subject import Subject


class Stream(NamedTuple):
    """Features of a layer as the stream has them."""

    writes: Float[Tensor, "features d_model"]
    """What one unit of each puts on the stream."""
    reads: Float[Tensor, "d_model latents"]
    """What each latent's pre-activation takes from the stream; for tokens, nothing."""
    bias: Float[Tensor, " latents"]
    """What is added to it."""


@torch.no_grad()
def start_network(
    subject: Subject,
    dictionaries: Sequence[Dictionary],
    parts: Mapping[str, Part],
    *,
    form: str = "features",
    skip: bool = True,
) -> LayerNetwork:
    """A network of layers that does what these parts do, as far as the dictionaries keep it.

    Args:
        subject: the network.
        dictionaries: TopK autoencoders, one after every block, in order.
        parts: `attn` and `mlp` of every block for form `features`; `q` and `k` of every block, or
            of none, in which case patterns will have to be given.
        form: `matrix` for plain matrices: attention starts at the subject's own weights, the MLP
            at nothing.
        skip: whether a matrix carries features over past the norm. Without one, form `features`
            gets an interaction feature more for each feature of the next layer, to carry it.

    Raises:
        UserError: a subject whose norms are no common factor, or parts that do not fit.
    """
    _refuse_unknown(subject, dictionaries, parts)
    streams = [Stream(subject.embed().float(), torch.zeros(0, 0), torch.zeros(0))]
    streams += [_stream(subject, layer, each) for layer, each in enumerate(dictionaries)]
    network = LayerNetwork(_spec(subject, dictionaries, parts, form=form, skip=skip), subject)
    for layer, (before, after) in enumerate(pairwise(streams)):
        block = network.block(layer)
        gram = before.writes @ before.writes.T / subject.d_model
        block.gram.copy_(gram.diagonal() if block.spec.tokens else gram)
        block.b_out.copy_(after.bias)
        if block.W_skip is not None:
            block.W_skip.copy_(before.writes @ after.reads)
        if isinstance(block, MatrixBlock):
            _start_matrix(block, subject, layer, before, after)
        else:
            _start_features(block, subject, layer, before, after, parts)
        if network.spec.patterns:
            names = (f"L{layer}.q", f"L{layer}.k")
            _start_look(network.look(layer), subject, before, *(parts[n] for n in names))
    last = streams[-1].writes
    network.gram.copy_(last @ last.T / subject.d_model)
    network.W_logits.copy_(last @ subject.unembed().float().T)
    return network


def start_stream(subject: Subject, layer: int) -> Float[Tensor, " d_model"]:
    """What stands after a block at the start token, whatever comes behind it."""
    first = torch.tensor([[subject.start_token]])
    site = f"blocks.{layer}.resid_post"
    return subject.run(first, capture=[site], logits=False).sites[site][0, 0].float()


def _stream(subject: Subject, layer: int, dictionary: Dictionary) -> Stream:
    reads = (dictionary.W_enc.detach() * dictionary.input_scale).T
    writes = written(dictionary, start_stream(subject, layer))
    return Stream(writes, reads, dictionary.b_enc.detach())


def _spec(
    subject: Subject,
    dictionaries: Sequence[Dictionary],
    parts: Mapping[str, Part],
    *,
    form: str,
    skip: bool,
) -> LayersSpec:
    blocks, looks = [], []
    for layer, after in enumerate(dictionaries):
        n_in = subject.vocab_size if layer == 0 else dictionaries[layer - 1].n_latents
        sizes: dict[str, int] = {}
        if form == "features":
            value, mlp = parts[f"L{layer}.attn"].spec, parts[f"L{layer}.mlp"].spec
            carried = (0, 0) if skip else (after.n_latents, after.activation.k)
            sizes = {
                "values": value.n_latents,
                "k_value": value.k,
                "interactions": mlp.n_latents + carried[0],
                "k_interaction": mlp.k + carried[1],
            }
        blocks.append(
            BlockSpec.model_validate(
                {"form": form, "tokens": layer == 0, "n_in": n_in, "n_out": after.n_latents,
                 "k_out": after.activation.k, "heads": subject.n_heads, "skip": skip, **sizes}
            )
        )  # fmt: skip
        if f"L{layer}.q" in parts:
            q, k = parts[f"L{layer}.q"].spec, parts[f"L{layer}.k"].spec
            looks.append(PatternSpec(queries=q.n_latents, k_query=q.k, keys=k.n_latents, k_key=k.k))
    assert subject.start_token is not None
    return LayersSpec(
        subject=subject.name,
        fingerprint=subject.fingerprint,
        blocks=tuple(blocks),
        patterns=tuple(looks),
        kv_heads=subject.n_kv_heads,
        d_head=subject.d_head,
        vocab=subject.vocab_size,
        start_token=subject.start_token,
        eps=subject.norm_eps,
    )


def _start_matrix(
    block: MatrixBlock, subject: Subject, layer: int, before: Stream, after: Stream
) -> None:
    """Attention's own weights between the two layers' features; in place, nothing."""
    weights = subject.attention_weights(layer)
    through = before.writes * subject.norm_gain(layer, "attn").float()
    for head, (W_V, W_O) in enumerate(zip(weights.W_V, weights.W_O, strict=True)):
        block.W_move[head] = through @ W_V.float() @ (W_O.float() @ after.reads)
    if block.W_skip is None:
        block.W_in_place.copy_(before.writes @ after.reads * _typical_scale(before, subject))


def _start_features(
    block: FeatureBlock,
    subject: Subject,
    layer: int,
    before: Stream,
    after: Stream,
    parts: Mapping[str, Part],
) -> None:
    value, mlp = parts[f"L{layer}.attn"], parts[f"L{layer}.mlp"]
    moved, added = _writes(subject, value), _writes(subject, mlp)
    block.gram_values.copy_(moved @ moved.T / subject.d_model)
    block.gram_between.copy_(before.writes @ moved.T / subject.d_model)
    block.W_value.copy_(_read_by(subject, value, before.writes))
    block.b_value.copy_(value.b_enc)
    n = mlp.spec.n_latents
    block.W_features[:, :n] = _read_by(subject, mlp, before.writes)
    block.W_values[:, :n] = _read_by(subject, mlp, moved)
    block.b_interaction[:n] = mlp.b_enc
    block.W_from_values.copy_(moved @ after.reads)
    from_mlp = added @ after.reads
    block.W_from_interactions[:n] = from_mlp[:n]
    block.W_from_interactions[-2:] = from_mlp[n:]
    if block.W_skip is None:
        _start_carriers(block, subject, n, before, after)


def _start_carriers(
    block: FeatureBlock, subject: Subject, n: int, before: Stream, after: Stream
) -> None:
    """Interaction features that carry one feature of the next layer each, as it would be had the
    block done nothing."""
    typical = _typical_scale(before, subject)
    block.W_features[:, n:] = before.writes @ after.reads * typical
    block.b_interaction[n:] = after.bias
    carried = slice(n, n + after.reads.shape[1])
    block.W_from_interactions[carried] = torch.eye(after.reads.shape[1])
    block.b_out.zero_()


def _start_look(
    looks: FeaturePatterns, subject: Subject, before: Stream, query: Part, key: Part
) -> None:
    for part, read, bias, heads in (
        (query, looks.W_query, looks.b_query, looks.queries),
        (key, looks.W_key, looks.b_key, looks.keys),
    ):
        read.copy_(_read_by(subject, part, before.writes))
        bias.copy_(part.b_enc)
        written = torch.cat([part.W_dec, part.b_dec[None]]) / part.spec.output_scale
        heads.copy_(torch.cat([written, part.start_output[None]]).view_as(heads))


def _read_by(subject: Subject, part: Part, writes: Tensor) -> Tensor:
    return virtual_weights(subject, part, writes, torch.arange(part.spec.n_latents)).T


def _writes(subject: Subject, part: Part) -> Tensor:
    """What a part's latents and its two constants put on the stream."""
    latents = written_by(subject, part, torch.arange(part.spec.n_latents))
    offset = part.b_dec.detach() / part.spec.output_scale
    return torch.cat([latents, torch.stack([offset, part.start_output])])


def _typical_scale(before: Stream, subject: Subject) -> float:
    """Root mean square of the stream of one feature; the right size is soon learnt."""
    size = before.writes.norm(dim=1).median() / subject.d_model**0.5
    return float(size)


def _refuse_unknown(
    subject: Subject, dictionaries: Sequence[Dictionary], parts: Mapping[str, Part]
) -> None:
    unknown = {
        "centres what its norms read": subject.norms_centre,
        "norms what its blocks write": not bool((subject.write_gain(0, "mlp") == 1).all()),
        "runs attention and MLP side by side": subject.geometry.parallel,
        "has offsets of values": subject.attention_weights(0).b_V is not None,
        "has no start token": subject.start_token is None,
    }
    for what, true in unknown.items():
        if true:
            raise UserError(f"{subject.name} {what}, which networks of layers do not know yet")
    if len(dictionaries) != subject.n_layers:
        raise UserError(
            f"{len(dictionaries)} dictionaries for the {subject.n_layers} blocks of "
            f"{subject.name}: give one of the stream after every block"
        )
    for dictionary in dictionaries:
        spec = dictionary.spec
        if spec.activation.kind != "topk" or spec.encoder.kind != "linear" or spec.layer_norm:
            raise UserError(f"{spec.name}: layers are made of TopK dictionaries, linearly encoded")
        if spec.pre_bias or spec.skip or spec.nesting:
            raise UserError(f"{spec.name}: layers know no pre_bias, no skip and no nesting")
    for name, part in parts.items():
        if part.spec.skip or part.spec.gated:
            raise UserError(f"{name}: parts with a skip or with gates make no interaction features")
