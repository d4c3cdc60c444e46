"""The interaction graph, read from weights.

A block reads a weighted sum of everything written upstream, so what feature s adds to the
pre-activation of feature t is its activation times one number, the virtual weight

    V_ts = enc_t . G dec_s                 t of an MLP, of queries or of keys; G = diag(gain of the
                                           norm before it)
    V_ts = enc_t . W_V^h G dec_s           t reads head h, along whatever pattern the head has

up to the norm's common factor 1/s(x). A gated latent has one through each of its two encoders; its
edges are those through u, the gate left as it is. A LayerNorm takes the mean out of dec_s first,
and what Gemma's blocks write passes one more norm. Virtual weights between features that never meet
are interference; an edge is therefore ranked by what it delivers, `used` = V * E[a_s | t active].
Features of queries and keys write no stream: they meet in scores, which are products and no edges.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.decompile.firings import PartFirings
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.progress import QUIET, Progress
from unweave.subject import Subject


class EdgeSettings(BaseModel):
    """How much of the graph is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    features_per_part: PositiveInt = 512
    """Features considered per part, those that write most."""
    tokens: PositiveInt = 2048
    """Evidence tokens over which co-activation is measured."""
    per_target: PositiveInt = 8
    """Incoming edges kept per feature, the most used ones."""
    per_logit_source: PositiveInt = 4
    """Promoted tokens kept per feature of the last layers' parts."""


@dataclass(frozen=True)
class Edges:
    """Rows of the edge table; a source below zero is a token, a target below zero a logit."""

    source_part: list[str]
    source: list[int]
    target_part: list[str]
    target: list[int]
    weight: list[float]
    used: list[float]


TOKENS = "token"
LOGITS = "logit"


def virtual_weights(
    subject: Subject, target: Part, written: Tensor, latents: Tensor, *, gate: bool = False
) -> Tensor:
    """V[target latent, source] for source vectors `written` [sources, d_model] in stream units.

    A gated latent has two, through `W_enc` and, with `gate`, through `W_gate`.
    """
    spec = target.spec
    place = place_of(spec.name)
    gain = subject.norm_gain(place.layer, place.norm).float()
    through = _centred(subject, written) * gain
    matrix = target.W_gate if gate else target.W_enc
    assert matrix is not None
    encoder = matrix.detach()[latents] * spec.input_scale
    if place.kind != "attn":
        return encoder @ through.T
    W_V = subject.attention_weights(place.layer).W_V.float()  # [heads, d_model, d_head]
    head = latents // (spec.n_latents // spec.heads)
    out = encoder.new_empty(len(latents), len(written))
    for index in range(spec.heads):
        mine = (head == index).nonzero()[:, 0]
        out[mine] = encoder[mine] @ (through @ W_V[index]).T
    return out


def written_by(subject: Subject, part: Part, latents: Tensor) -> Tensor:
    """What latents add to the stream per unit of activation, [latents, d_model].

    Of parts that write one: attention's and MLPs'.
    """
    place = place_of(part.spec.name)
    gain = subject.write_gain(place.layer, place.norm).float()
    W_dec = part.W_dec.detach()
    return W_dec[latents.to(W_dec.device)] * gain / part.spec.output_scale


def logit_directions(subject: Subject) -> Tensor:
    """Row t: what on the stream raises logit t above the mean logit, up to the norm's factor."""
    unembed = subject.unembed().float()
    return _centred(subject, unembed - unembed.mean(0))


def _centred(subject: Subject, vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(-1, keepdim=True) if subject.norms_centre else vectors


def interaction_edges(
    subject: Subject,
    parts: dict[str, Part],
    firings: dict[str, PartFirings],
    *,
    workers: Workers,
    settings: EdgeSettings | None = None,
    progress: Progress = QUIET,
) -> Edges:
    """The most used edges into every considered feature, from tokens and all earlier parts."""
    settings = settings or EdgeSettings()
    considered = {name: _considered(parts[name], firings[name], settings) for name in parts}
    active = {
        name: _dense(firings[name], considered[name], parts[name].spec.n_latents, settings.tokens)
        for name in parts
    }
    considered, active = (
        {name: tensor.to(subject.device) for name, tensor in one.items()}
        for one in (considered, active)
    )
    names = list(parts)
    with progress.task("Reading interactions", total=len(names), unit="parts") as advance:
        found = []
        for edges in workers.map(
            lambda i: _into(
                subject, parts, _before(subject, names, i), names[i], considered, active, settings
            ),
            range(len(names)),
        ):
            found.append(edges)
            advance(1)
    found.append(_to_logits(subject, parts, considered, active, settings))
    columns = ([x for e in found for x in getattr(e, f)] for f in Edges.__dataclass_fields__)
    return Edges(*columns)


def _before(subject: Subject, names: list[str], index: int) -> list[str]:
    """The parts that a part can read: those that write the stream before it does."""
    places = [place_of(name) for name in names[: index + 1]]
    beside = places[index].layer if subject.geometry.parallel else None
    return [
        name
        for name, place in zip(names[:index], places, strict=False)
        if place.writes_stream and place.layer != beside
    ]


def _considered(part: Part, firings: PartFirings, settings: EdgeSettings) -> Tensor:
    mass = np.bincount(
        firings.latent, firings.value.astype(np.float64), minlength=part.spec.n_latents
    )
    alive = int((mass > 0).sum())
    order = np.argsort(-mass, kind="stable")[: min(alive, settings.features_per_part)]
    return torch.from_numpy(np.sort(order))


def _dense(firings: PartFirings, latents: Tensor, n_latents: int, tokens: int) -> Tensor:
    """Activations [tokens, considered] of an even sample of tokens."""
    total = len(firings.token_indptr) - 1
    chosen = np.linspace(0, total - 1, min(tokens, total)).astype(np.int64)
    column = np.full(n_latents, -1)
    column[latents.numpy()] = np.arange(len(latents))
    starts, ends = firings.token_indptr[chosen], firings.token_indptr[chosen + 1]
    row = np.repeat(np.arange(len(chosen)), ends - starts)
    # Firing numbers of the chosen tokens, one run after another.
    before = np.cumsum(ends - starts) - (ends - starts)
    at = np.arange(len(row)) - np.repeat(before - starts, ends - starts)
    place = column[firings.latent[at]]
    out = np.zeros((len(chosen), len(latents)), dtype=np.float32)
    out[row[place >= 0], place[place >= 0]] = firings.value[at][place >= 0]
    return torch.from_numpy(out)


def _into(
    subject: Subject,
    parts: dict[str, Part],
    earlier: list[str],
    name: str,
    considered: dict[str, Tensor],
    active: dict[str, Tensor],
    settings: EdgeSettings,
) -> Edges:
    latents = considered[name]
    if not len(latents):
        return Edges([], [], [], [], [], [])
    on = (active[name] > 0).float()
    share = on / on.sum(0).clamp_min(1)
    best: list[tuple[Tensor, Tensor, Tensor, str]] = []
    for source in earlier:
        if not len(considered[source]):
            continue
        written = written_by(subject, parts[source], considered[source])
        weight = virtual_weights(subject, parts[name], written, latents)
        if place_of(name).kind == "attn":  # reads other positions
            delivered = active[source].mean(0).expand(len(latents), -1)
        else:
            delivered = share.T @ active[source]
        best.append(_strongest(weight, weight * delivered, considered[source], source, settings))
    embed = subject.embed().float()
    weight = virtual_weights(subject, parts[name], embed, latents)
    every = torch.arange(len(embed), device=embed.device)
    best.append(_strongest(weight, weight, every, TOKENS, settings))
    return _keep(best, name, latents, settings)


def _strongest(
    weight: Tensor, used: Tensor, ids: Tensor, source: str, settings: EdgeSettings
) -> tuple[Tensor, Tensor, Tensor, str]:
    top = used.abs().topk(min(settings.per_target, used.shape[1]), dim=1).indices
    return ids[top], weight.gather(1, top), used.gather(1, top), source


def _keep(
    best: list[tuple[Tensor, Tensor, Tensor, str]],
    name: str,
    latents: Tensor,
    settings: EdgeSettings,
) -> Edges:
    # Tokens are ranked among themselves: at a token its own embedding is all there is.
    edges = Edges([], [], [], [], [], [])
    features = [b for b in best if b[3] != TOKENS]
    for group in ([features] if features else []) + [[b for b in best if b[3] == TOKENS]]:
        # Read one by one below, for which they have to be here.
        ids, weight, used = (torch.cat([g[i] for g in group], dim=1).cpu() for i in range(3))
        owner = [g[3] for g in group for _ in range(g[0].shape[1])]
        top = used.abs().topk(min(settings.per_target, used.shape[1]), dim=1).indices
        for row, latent in enumerate(latents.tolist()):
            for column in top[row].tolist():
                edges.source_part.append(owner[column])
                edges.source.append(int(ids[row, column]))
                edges.target_part.append(name)
                edges.target.append(latent)
                edges.weight.append(float(weight[row, column]))
                edges.used.append(float(used[row, column]))
    return edges


def _to_logits(
    subject: Subject,
    parts: dict[str, Part],
    considered: dict[str, Tensor],
    active: dict[str, Tensor],
    settings: EdgeSettings,
) -> Edges:
    edges = Edges([], [], [], [], [], [])
    unembed = logit_directions(subject)
    for name, place in ((name, place_of(name)) for name in parts if len(considered[name])):
        if place.layer != subject.n_layers - 1 or not place.writes_stream:
            continue
        latents = considered[name]
        weight = (written_by(subject, parts[name], latents) @ unembed.T).cpu()
        top = weight.abs().topk(min(settings.per_logit_source, weight.shape[1]), dim=1).indices
        on = (active[name] > 0).float()
        strength = (active[name].sum(0) / on.sum(0).clamp_min(1)).cpu()
        for row, latent in enumerate(latents.tolist()):
            for token in top[row].tolist():
                edges.source_part.append(name)
                edges.source.append(latent)
                edges.target_part.append(LOGITS)
                edges.target.append(token)
                edges.weight.append(float(weight[row, token]))
                edges.used.append(float(weight[row, token] * strength[row]))
    return edges
