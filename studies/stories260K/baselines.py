"""What a decompiled network is held against: stand-ins with as much to say, and less made of it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unweave.activations.window import Harvester, start_vectors
from unweave.activations.workers import Workers
from unweave.dictionaries.baselines.neurons import exact_block
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import input_site, output_site, place_of
from unweave.dictionaries.spec import PartSpec
from unweave.subject import Subject
from unweave.training.fit import fit_parts
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import MeanOutput, top_neurons
from unweave.validate.splice import Variant

RIDGE = 1e-3


class Linear(nn.Module):
    """A ridge map of what a block reads to what it writes, constant at the start token."""

    def __init__(self, x: Tensor, y: Tensor, start: Tensor) -> None:
        super().__init__()
        mean_x, mean_y = x.mean(0), y.mean(0)
        centred = (x - mean_x).double()
        gram = centred.T @ centred
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        self.W = torch.linalg.solve(gram, centred.T @ (y - mean_y).double()).float()
        self.b, self.start = mean_y - mean_x @ self.W, start

    def forward(self, x: Tensor) -> Tensor:
        """[batch, pos, d_in] to [batch, pos, d_out]."""
        y = x @ self.W + self.b
        return torch.cat([self.start.expand(len(y), 1, -1), y[:, 1:]], dim=1)


class Overheard(nn.Module):
    """In the place of a block's queries: keeps what the block reads, for the one behind it."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact
        self.x = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """The queries, as they are."""
        self.x = x
        return self.exact(x)


class FromOverheard(nn.Module):
    """In the place of an attention block's output: a linear map of what the block reads."""

    def __init__(self, linear: Linear, overheard: Overheard) -> None:
        super().__init__()
        self.linear, self.overheard = linear, overheard

    def forward(self, z: Tensor) -> Tensor:
        """[batch, pos, d_z] to [batch, pos, d_model], whatever z is."""
        return self.linear(self.overheard.x)


def rivals_of(
    subject: Subject,
    parts: Mapping[str, Part],
    specs: Sequence[PartSpec],
    tokens: Tensor,
    workers: Workers,
) -> dict[str, Variant]:
    """Mean ablation, ridge-linear maps, the network's own neurons and untrained parts."""
    reads = {name: input_site(name) for name in parts if place_of(name).kind in ("q", "mlp")}
    sites = sorted({*reads.values(), *(output_site(name) for name in parts)})
    vectors = Harvester(subject, tokens[:1024], sites, workers=workers, seed=0).window(0).vectors
    starts = start_vectors(subject, tokens, sites)
    at = {name: output_site(name) for name in parts}
    means = {n: MeanOutput(vectors[at[n]], starts[at[n]]) for n in parts}
    neurons = {
        n: top_neurons(exact_block(subject, n), starts[at[n]], p.spec.k) for n, p in parts.items()
    }
    linear: dict[str, nn.Module] = {}
    for layer in range(subject.n_layers):
        overheard = Overheard(exact_block(subject, f"L{layer}.q"))
        linear[f"L{layer}.q"] = overheard
        for kind, source in (("attn", f"L{layer}.q"), ("mlp", f"L{layer}.mlp")):
            name = f"L{layer}.{kind}"
            fit = Linear(vectors[reads[source]], vectors[at[name]], starts[at[name]])
            linear[name] = fit if kind == "mlp" else FromOverheard(fit, overheard)
    mlps = {name: stand for name, stand in linear.items() if place_of(name).kind == "mlp"}
    untrained, _ = fit_parts(  # a step of next to nothing: the parts as they start
        subject, specs, tokens[:64], workers=workers, seed=1,
        settings=LocalSettings(lr=1e-9, revive_at=(), batch=512),
    )  # fmt: skip
    return {
        "mean ablation": Variant(means, "propagated"),
        "ridge-linear blocks": Variant(linear, "propagated"),
        "ridge-linear MLPs, own attention": Variant(mlps, "propagated"),
        "own neurons": Variant(neurons, "propagated"),
        "untrained": Variant(stand_ins(untrained.values(), AtStart()), "propagated"),
    }
