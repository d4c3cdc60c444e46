"""Cross-layer transcoders: one dictionary a layer, whose latents write to that and all later ones.

    a^l = activation(W_enc^l x^l + b_enc^l)
    y_hat^m = b_dec^m + sum over l <= m of W_dec^(l -> m) a^l

(Anthropic 2025.) The set is a plain mapping from names to dictionaries, `L0.mlp` and so on: what
trains, splices or converts several dictionaries takes it as it is. What several members write to a
site is added up, so a site's offset must stand in one of them only: in the member of that layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.artifact.atomic import new_folder, write_json
from unweave.artifact.reading import json_in
from unweave.dictionaries.activation.batchtopk import BatchTopKActivation
from unweave.dictionaries.code import Support
from unweave.dictionaries.dictionary import Dictionary, Pass
from unweave.dictionaries.dictionary_files import load_dictionary, save_dictionary
from unweave.dictionaries.dictionary_spec import Activation, DictionarySpec, Port
from unweave.dictionaries.kernels.select import Selection
from unweave.dictionaries.shares import shares
from unweave.errors import UserError
from unweave.subject import Subject

Members = Mapping[str, Dictionary]
"""A set of dictionaries whose writes add up, by name."""
_SET = "set.json"


def mlp_ports(subject: Subject) -> tuple[list[Port], list[Port]]:
    """`mlp.in` and `mlp.out` of every block: what a cross-layer transcoder reads and writes."""
    blocks, width = range(subject.n_layers), subject.d_model
    reads, writes = (
        [Port(site=f"blocks.{i}.mlp.{side}", width=width) for i in blocks] for side in ("in", "out")
    )
    return reads, writes


def cross_layer_specs(
    reads: Sequence[Port],
    writes: Sequence[Port],
    n_latents: int,
    activation: Activation,
    **changes: Any,
) -> dict[str, DictionarySpec]:
    """One spec a layer, `n_latents` each: member l reads `reads[l]` and writes `writes[l:]`.

    Decoder rows are free unless `changes` say otherwise.

    Raises:
        UserError: not as many sites to read as to write.
    """
    if len(reads) != len(writes) or not reads:
        raise UserError(
            f"A cross-layer transcoder reads one site a layer and writes one; {len(reads)} to read "
            f"and {len(writes)} to write do not pair up"
        )
    return {
        f"L{layer}.mlp": DictionarySpec(
            name=f"L{layer}.mlp",
            reads=(read,),
            writes=tuple(writes[layer:]),
            n_latents=n_latents,
            activation=activation,
            **{"decoder": "free", **changes},
        )
        for layer, read in enumerate(reads)
    }


class Together(NamedTuple):
    """What a set did with one batch."""

    x: dict[str, Float[Tensor, "rows _"]]
    """What each member read, in its scaled units."""
    passed: dict[str, Pass]
    """Each member's pass."""
    written: dict[str, Float[Tensor, "rows _"]]
    """Per site the sum of what was written to it, in raw units."""


def run_members(
    members: Members,
    vectors: Mapping[str, Float[Tensor, "rows _"]],
    *,
    across: bool = False,
) -> Together:
    """Run every member on raw vectors and add up their writes; differentiable.

    With `across`, BatchTopK members share their latents out: the sum of their k per row on average
    goes to whoever is strongest in the batch, whatever the layer.

    Raises:
        UserError: vectors of a site are missing, or members that cannot be added up.
    """
    x = {name: _read(name, member, vectors) for name, member in members.items()}
    chosen = choose_across(members, x) if across else {}
    passed = {name: member.run(x[name], chosen.get(name)) for name, member in members.items()}
    written: dict[str, Tensor] = {}
    for name, member in members.items():
        raw = passed[name].y / member.output_scale
        parts = raw.split([port.width for port in member.spec.writes], dim=1)
        for port, part in zip(member.spec.writes, parts, strict=True):
            written[port.site] = written[port.site] + part if port.site in written else part
    return Together(x, passed, written)


def choose_across(
    members: Members, x: Mapping[str, Float[Tensor, "rows _"]]
) -> dict[str, Selection]:
    """BatchTopK over all members at once: the `rows * sum of k` largest scores of the batch.

    Scores are comparable where decoder rows have unit norm. One threshold is remembered by all.

    Raises:
        UserError: members with another activation.
    """
    for name, member in members.items():
        if not isinstance(member.activation, BatchTopKActivation):
            raise UserError(f"{name}: choosing latents across layers needs batchtopk everywhere")
    widths = [member.spec.d_in for member in members.values()]
    scorers = [member.encoder.scorer(torch.float32) for member in members.values()]

    def scores(tile: Tensor) -> Tensor:
        parts = zip(scorers, tile.split(widths, dim=1), strict=True)
        return torch.cat([scorer(part) for scorer, part in parts], dim=1)

    total = sum(member.n_latents for member in members.values())
    k = sum(member.activation.k for member in members.values())
    beside = torch.cat([*x.values()], dim=1).detach()
    found, smallest = shares().of_batch(scores, beside, total, k)
    chosen, start = {}, 0
    for name, member in members.items():
        chosen[name] = _slice(found, start, member.n_latents)
        member.activation.remember(smallest)
        start += member.n_latents
    return chosen


def _slice(found: Selection, start: int, n_latents: int) -> Selection:
    """The part of a selection that falls to `n_latents` latents from `start` on."""
    support = found.support
    mine = (support.latent >= start) & (support.latent < start + n_latents)
    counts = torch.bincount(support.row[mine], minlength=support.rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Selection(Support(offsets, support.latent[mine] - start, n_latents), found.score[mine])


@torch.no_grad()
def reconstruct(
    members: Members, vectors: Mapping[str, Float[Tensor, "rows _"]]
) -> dict[str, Float[Tensor, "rows _"]]:
    """What the set writes to each site, in raw units, as after training; no gradients."""
    with _at_rest(members):
        return run_members(members, vectors).written


def site_fvu(members: Members, vectors: Mapping[str, Float[Tensor, "rows _"]]) -> dict[str, float]:
    """Share of each site's variance that the set leaves unexplained; 1 is the mean."""
    found = {}
    for site, written in reconstruct(members, vectors).items():
        y = vectors[site].double()
        spread = (y - y.mean(0)).square().sum()
        found[site] = ((y - written).square().sum() / spread.clamp_min(1e-12)).item()
    return found


def offset_masks(members: Members) -> dict[str, Float[Tensor, " d_out"]]:
    """For members that share a site: ones where their `b_dec` is the site's own offset.

    A site belongs to the member that names it first among its writes, else to the first that
    writes it. Members that share nothing are left out.
    """
    owner: dict[str, str] = {}
    for name, member in members.items():
        owner.setdefault(member.spec.writes[0].site, name)
    written = [port.site for member in members.values() for port in member.spec.writes]
    for name, member in members.items():
        for port in member.spec.writes:
            owner.setdefault(port.site, name)
    masks = {}
    for name, member in members.items():
        ports = member.spec.writes
        if any(written.count(port.site) > 1 for port in ports):
            own = [torch.full((p.width,), float(owner[p.site] == name)) for p in ports]
            masks[name] = torch.cat(own).to(member.b_dec)
    return masks


def save_cross_layer(members: Members, folder: Path) -> None:
    """Write every member into a folder of its name and `set.json` beside them, whole or not."""
    with new_folder(folder) as partial:
        for name, member in members.items():
            save_dictionary(member, partial / name)
        write_json(partial / _SET, {"members": list(members)})


def load_cross_layer(folder: Path) -> dict[str, Dictionary]:
    """Read what `save_cross_layer` wrote, in the same order.

    Raises:
        UserError: no set there, or a member that cannot be read.
    """
    path = folder / _SET
    if not path.is_file():
        raise UserError(f"No {_SET} in {folder}: point at the folder of a cross-layer transcoder")
    content = json_in(path)
    names = content.get("members") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(_plain_name(name) for name in names):
        raise UserError(f"{path} lists no members: write the set again")
    return {name: load_dictionary(folder / name) for name in names}


def _plain_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and Path(name).name == name


@contextmanager
def _at_rest(members: Members) -> Iterator[None]:
    before = {name: member.training for name, member in members.items()}
    for member in members.values():
        member.eval()
    try:
        yield
    finally:
        for name, member in members.items():
            member.train(before[name])


def _read(name: str, member: Dictionary, vectors: Mapping[str, Tensor]) -> Tensor:
    spec = member.spec
    if spec.layer_norm or spec.nesting or spec.activation.kind == "gated":
        raise UserError(
            f"{name}: members of a set that adds up have no layer_norm, no nesting and no gated "
            "activation"
        )
    missing = [port.site for port in spec.reads if port.site not in vectors]
    if missing:
        raise UserError(f"{name} reads {missing[0]}, of which there are no vectors: harvest it too")
    x = torch.cat([vectors[port.site] for port in spec.reads], dim=1)
    return x.to(member.W_dec.dtype) * member.input_scale
