"""Parts for every block of a small known network, fitted as a decompilation fits them."""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.activations.window import start_vectors
from unweave.activations.workers import Workers
from unweave.dictionaries.initial import ridge_map
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import KINDS, input_site, output_site, place_of
from unweave.dictionaries.spec import PartSpec
from unweave.dictionaries.start import start_linear, start_mlp
from unweave.subject import AttentionWeights, MLPWeights, Subject
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings, LocalTrainer

Start = Literal["weights", "data", "untrained"]
"""Where parts start: at the network's own neurons and heads, at data alone, or, as the control, at
random, where they stay."""


class KnownFitSettings(BaseModel):
    """How parts of a known network are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    latents: PositiveInt = 4
    """Latents of a part, as a multiple of the residual stream's width."""
    k: PositiveInt = 8
    """Latents active at a place, in every part."""
    rows: PositiveInt = 600
    """Rows of random inputs to fit on."""
    steps: PositiveInt = 600
    """Steps of the local fit of each part."""
    batch: PositiveInt = 256
    """Vectors a step."""
    lr: PositiveFloat = 5e-3
    """Learning rate of the local fit."""
    joint_steps: NonNegativeInt = 100
    """Steps of 32 rows in which the parts are tuned together."""
    joint_lr: PositiveFloat = 1e-3
    """Learning rate of these."""


def specs_of(subject: Subject, settings: KnownFitSettings) -> list[PartSpec]:
    """Queries, keys, attention output and MLP of every block."""
    heads, wanted = subject.n_heads, settings.latents * subject.d_model
    z, kv = heads * subject.d_head, subject.n_kv_heads * subject.d_head
    shapes = {
        "q": (subject.d_model, z, 1), "k": (subject.d_model, kv, 1),
        "attn": (z, subject.d_model, heads), "mlp": (subject.d_model, subject.d_model, 1),
    }  # fmt: skip
    return [
        PartSpec(
            name=name, input_site=input_site(name), output_site=output_site(name),
            d_in=d_in, d_out=d_out, heads=slots,
            n_latents=-(-wanted // slots) * slots, k=min(settings.k, wanted),
        )
        for layer in range(subject.n_layers)
        for kind in KINDS
        for name, (d_in, d_out, slots) in [(f"L{layer}.{kind}", shapes[kind])]
    ]  # fmt: skip


@torch.no_grad()
def vectors_at(
    subject: Subject, rows: Int[Tensor, "rows pos"], sites: list[str]
) -> dict[str, Tensor]:
    """What sites hold after the start of each row, heads side by side."""
    found = subject.run(rows, capture=sites, logits=False).sites
    return {site: found[site][:, 1:].flatten(2).flatten(0, 1).clone() for site in sites}


def fit_known(
    subject: Subject,
    rows: Int[Tensor, "rows pos"],
    *,
    start: Start,
    seed: int,
    settings: KnownFitSettings | None = None,
    kinds: Collection[str] = KINDS,
) -> dict[str, Part]:
    """Parts of some kinds for all blocks, fitted one by one and then tuned together."""
    settings = settings or KnownFitSettings()
    specs = [spec for spec in specs_of(subject, settings) if place_of(spec.name).kind in kinds]
    sites = sorted({s for spec in specs for s in (spec.input_site, spec.output_site)})
    held, first = vectors_at(subject, rows, sites), start_vectors(subject, rows, sites)
    parts = {}
    for spec in specs:
        x, y = held[spec.input_site], held[spec.output_site]
        part = _started(subject, spec, x, y, start=start, seed=seed)
        part.start_output.copy_(first[spec.output_site])
        if start != "untrained":
            fit_locally(part, x, y, seed=seed, settings=settings)
        parts[spec.name] = part
    if start != "untrained" and settings.joint_steps:
        joint = JointSettings(
            tokens=settings.joint_steps * 32 * rows.shape[1],
            micro_rows=16, micro_batches=2, lr=settings.joint_lr,
        )  # fmt: skip
        with Workers(1) as workers:
            tune_jointly(subject, parts, rows, workers=workers, seed=seed, settings=joint)
    return parts


def fit_locally(part: Part, x: Tensor, y: Tensor, *, seed: int, settings: KnownFitSettings) -> None:
    """One part alone, on vectors of its two sites."""
    local = LocalSettings(batch=settings.batch, lr=settings.lr)
    trainer = LocalTrainer(part, settings.steps, seed=seed, settings=local)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.steps):
        drawn = torch.randint(len(x), (settings.batch,), generator=generator)
        trainer.step(x[drawn], y[drawn])


def no_neurons(spec: PartSpec) -> MLPWeights:
    """An MLP without neurons: started from it, all of a part's latents come from data."""
    none = torch.zeros(0, spec.d_in)
    return MLPWeights(none, None, None, torch.zeros(0, spec.d_out), None, "relu")


@torch.no_grad()
def randomised_(part: Part, *, seed: int) -> Part:
    """Encoder and decoder drawn anew at their lengths; which offsets and heights a part has stays,
    so that it fires as often as before."""
    generator = torch.Generator().manual_seed(seed)
    for weight in (part.W_enc, part.W_dec):
        drawn = torch.randn(weight.shape, generator=generator)
        length = weight.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
        weight.copy_(drawn * length)
    return part


def _started(
    subject: Subject, spec: PartSpec, x: Tensor, y: Tensor, *, start: Start, seed: int
) -> Part:
    layer, kind = place_of(spec.name)
    if kind == "mlp":
        weights = subject.mlp_weights(layer) if start == "weights" else no_neurons(spec)
        part = start_mlp(spec, weights, x, y, seed=seed)
    else:
        own = start == "weights"
        W = _map_of(subject.attention_weights(layer), kind) if own else ridge_map(x, y).T
        part = start_linear(spec, W.float(), x, y, seed=seed)
    return randomised_(part, seed=seed) if start == "untrained" else part


def _map_of(weights: AttentionWeights, kind: str) -> Tensor:
    """The linear map that a part of attention stands in for, heads side by side."""
    if kind == "attn":
        return weights.W_O.flatten(0, 1)
    return (weights.W_Q if kind == "q" else weights.W_K).movedim(0, 1).flatten(1)
