"""Where cross-layer transcoders start: a transcoder a layer, whose later decoders are nothing yet.

A set of per-layer transcoders is a cross-layer transcoder that writes to its own layer alone, so
whatever fits those (a network's own neurons, a local fit) is a start for these.
"""

from collections.abc import Mapping

import torch

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.cross_layer import cross_layer_specs, mlp_ports
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.subject import Subject


@torch.no_grad()
def members_from_parts(subject: Subject, parts: Mapping[str, Part]) -> dict[str, Dictionary]:
    """Members that do what the MLP parts do; they differ once they are trained.

    Raises:
        UserError: an MLP without a part, or parts with a skip, with gates or of several sizes.
    """
    names = [f"L{layer}.mlp" for layer in range(subject.n_layers)]
    if missing := [name for name in names if name not in parts]:
        raise UserError(f"no part {missing[0]} to start a cross-layer transcoder from")
    chosen = [parts[name] for name in names]
    if any(part.spec.skip or part.spec.gated for part in chosen):
        raise UserError("cross-layer transcoders start from parts without a skip and without gates")
    sizes = {(part.spec.n_latents, part.spec.k) for part in chosen}
    if len(sizes) > 1:
        raise UserError(f"cross-layer transcoders are of one size; these parts are of {len(sizes)}")
    n_latents, k = sizes.pop()
    reads, writes = mlp_ports(subject)
    reads = [
        p.model_copy(update={"scale": q.spec.input_scale})
        for p, q in zip(reads, chosen, strict=True)
    ]
    writes = [
        p.model_copy(update={"scale": q.spec.output_scale})
        for p, q in zip(writes, chosen, strict=True)
    ]
    specs = cross_layer_specs(reads, writes, n_latents, TopK(k=k))
    members = {}
    for part, (name, spec) in zip(chosen, specs.items(), strict=True):
        member = Dictionary(spec)
        own = part.spec.d_out
        member.W_enc.copy_(part.W_enc)
        member.b_enc.copy_(part.b_enc)
        member.W_dec[:, :own] = part.W_dec
        member.b_dec[:own] = part.b_dec
        members[name] = member.eval()
    return members
