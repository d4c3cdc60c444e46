"""Edges trained so that few of them are enough.

    loss = KL(original || network) + weight * mean over parts of |f - f'|^2 / |f'|^2

with f' what the decompiled network's features say of the original's own stream: edges are cut from
a network whose features keep their meaning, not traded for another network that predicts as well.
While edges are cut (`PruningSchedule`), those of the least use go first, by `uses`; what is cut
stays cut, and what is left goes on being trained.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.decompile.sparse.edges import EdgeNetwork
from unweave.decompile.sparse.factors import FactoredEdges
from unweave.decompile.sparse.machine import Trace
from unweave.decompile.sparse.uses import coins, measured_joint, uses
from unweave.dictionaries.kernels.sparse import Code
from unweave.dictionaries.part import Part
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.edges.choosing import keep_highest
from unweave.training.edges.schedule import PruningSchedule
from unweave.training.joint import kl_per_token
from unweave.training.schedule import linear_decay


class EdgeTraining(BaseModel):
    """How edges are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: PositiveInt = 300_000
    """Tokens to train on."""
    rows: PositiveInt = 8
    """Rows a step."""
    lr: PositiveFloat = 5e-3
    """Peak learning rate of Adam, in units of each tensor's root mean square at the start."""
    match_weight: NonNegativeFloat = 0.3
    """Weight of the features' relative error beside the KL."""
    pruning: PruningSchedule | None = PruningSchedule()
    """When edges are cut; None trains those that are there."""
    elsewhere: float = Field(default=0.1, ge=0, le=1)
    """How much an edge counts where its reader is not active (`uses`)."""
    measured_rows: PositiveInt = 96
    """Rows on which joint activity is measured before the first cut: on few, what is rare looks
    unused, and all its edges go at once."""
    memory: float = Field(default=0.9, ge=0, lt=1)
    """What of earlier joint activity is kept when a later cut measures it on the step's rows."""
    clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""


def train_edges(
    network: EdgeNetwork,
    subject: Subject,
    reference: Mapping[str, Part] | None,
    tokens: Int[Tensor, "rows pos"],
    *,
    seed: int,
    settings: EdgeTraining | None = None,
    checkpoints: Checkpoints | None = None,
    at_step: Callable[[Metrics], None] | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train edges, or the vectors behind them, in place; returns the log, one line a step.

    `reference` are the parts whose features are matched, None where none are. Step s depends on
    the seed, s and the state before it alone, so that a resumed run ends in the same bits.
    `at_step` is called after each step with the log so far.
    """
    settings, checkpoints = settings or EdgeTraining(), checkpoints or Checkpoints(None)
    steps = settings.tokens // (settings.rows * tokens.shape[1])
    run = _Run(network, subject, reference, tokens, seed, settings, steps)
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, run.metrics = progressed.done, progressed.metrics
        run.restore(progressed.tensors["edges"])
    per_step = settings.rows * tokens.shape[1]
    network.fast()
    with progress.task("Training edges", total=steps * per_step, unit="tokens") as advance:
        advance(done * per_step)
        for step in range(done, steps):
            run.step(step)
            advance(per_step)
            if at_step is not None:
                at_step(run.metrics)
            checkpoints.offer(step + 1, run.metrics, lambda: {"edges": run.state()})
    network.fast(False)
    if isinstance(network, FactoredEdges):
        network.settle()
    for parameter in run.parameters.values():
        parameter.requires_grad_(False).grad = None
    return run.metrics


class _Run:
    """The state of a run: parameters and their moments, masks, joint activity."""

    def __init__(
        self,
        network: EdgeNetwork,
        subject: Subject,
        reference: Mapping[str, Part] | None,
        tokens: Tensor,
        seed: int,
        settings: EdgeTraining,
        steps: int,
    ) -> None:
        self.network, self.subject, self.reference = network, subject, reference
        self.tokens, self.seed, self.settings, self.steps = tokens, seed, settings, steps
        self.parameters = {n: t.requires_grad_() for n, t in network.parameters().items()}
        self.sizes = [_size(network, name) for name in self.parameters]
        groups = [{"params": [value]} for value in self.parameters.values()]
        self.adam = torch.optim.Adam(groups, lr=settings.lr, fused=True)
        self.joint: dict[str, Tensor] = {}
        self.metrics: Metrics = []

    def step(self, step: int) -> None:
        settings, network = self.settings, self.network
        rows = _drawn(self.tokens, settings.rows, self.seed, step)
        if settings.pruning is not None and settings.pruning.cuts(step, self.steps):
            self._cut(rows, settings.pruning.share(step, self.steps), step)
        original, wanted = self._original(rows)
        with torch.enable_grad():
            found = network.trace(rows)
            assert found.logits is not None
            kl = kl_per_token(original[:, 1:], found.logits[:, 1:]).mean()
            gap = self._gap(found, wanted, rows.shape[1])
            loss = kl + settings.match_weight * gap
        values = list(self.parameters.values())
        for value, grad in zip(values, torch.autograd.grad(loss, values), strict=True):
            value.grad = grad.contiguous()
        torch.nn.utils.clip_grad_norm_(values, settings.clip)
        for group, size in zip(self.adam.param_groups, self.sizes, strict=True):
            group["lr"] = settings.lr * size * linear_decay(step, self.steps)
        self.adam.step()
        line: dict[str, float | int | str] = {
            "stage": "edges",
            "step": step,
            "edges": network.edges,
        }
        self.metrics.append(line | {"kl": kl.item(), "gap": gap.item()})

    def _original(self, rows: Tensor) -> tuple[Tensor, dict[str, Code]]:
        """The original's logits, and what features say of its own stream."""
        parts = (self.reference or {}) if self.settings.match_weight else {}
        sites = {name: part.spec.input_site for name, part in parts.items()}
        with torch.no_grad():
            run = self.subject.run(rows, capture=list(dict.fromkeys(sites.values())))
            assert run.logits is not None
            codes = {
                name: part.encode(run.sites[sites[name]].reshape(-1, part.spec.d_in))
                for name, part in parts.items()
            }
        return run.logits, codes

    def _gap(self, found: Trace, codes: Mapping[str, Code], positions: int) -> Tensor:
        """Relative error of features, mean over parts; first positions are left out."""
        gaps = [torch.zeros(())]
        for name, code in codes.items():
            mine = found.strength[name]
            later = torch.arange(len(mine)) % positions > 0
            wanted = torch.zeros_like(mine).scatter(1, code.latent, code.value)[later]
            error = (mine[later] - wanted).square().sum()
            gaps.append(error / wanted.square().sum().clamp_min(1e-12))
        return torch.stack(gaps).sum() / max(1, len(codes))

    def _cut(self, rows: Tensor, share: float, step: int) -> None:
        network, settings = self.network, self.settings
        memory = settings.memory
        if isinstance(network, FactoredEdges):
            network.settle()
        first = not self.joint
        measured = _drawn(self.tokens, settings.measured_rows, self.seed, step) if first else rows
        fresh = measured_joint(network, measured, elsewhere=settings.elsewhere)
        for name, table in fresh.items():
            if not first:
                table.mul_(1 - memory).add_(self.joint[name], alpha=memory)
            self.joint[name] = table
        scores = uses(network, self.joint, coins(network, rows, seed=step))
        masks = keep_highest(scores, round(share * network.entries))
        network.keep(masks)
        for name, mask in masks.items():
            state = self.adam.state.get(network.tables[name], {})  # factors have none
            for moment in {"exp_avg", "exp_avg_sq"} & state.keys():
                state[moment].mul_(mask)

    def state(self) -> dict[str, Tensor]:
        found = {f"value/{name}": t.detach() for name, t in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for moment, value in self.adam.state.get(parameter, {}).items():
                found[f"adam/{name}/{moment}"] = value.detach()
        found |= {f"kept/{name}": mask for name, mask in self.network.kept.items()}
        return found | {f"joint/{name}": table for name, table in self.joint.items()}

    def restore(self, tensors: Mapping[str, Float[Tensor, "..."]]) -> None:
        for key, tensor in tensors.items():
            what, name = key.split("/", 1)
            if what == "value":
                with torch.no_grad():
                    self.parameters[name].copy_(tensor)
            elif what == "adam":
                name, moment = name.rsplit("/", 1)
                self.adam.state[self.parameters[name]][moment] = tensor.clone()
            elif what == "kept":
                self.network.keep({name: tensor.clone()})
            else:
                self.joint[name] = tensor.clone()


def _drawn(tokens: Tensor, rows: int, seed: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed << 24) + step)
    return tokens[torch.randint(len(tokens), (rows,), generator=generator)]


def _size(network: EdgeNetwork, parameter: str) -> float:
    """Root mean square of the entries kept, of an offset's table: what a step is measured in."""
    what, name = parameter.split("/", 1)
    if what not in ("offset", "table"):
        return float(network.parameters()[parameter].detach().double().square().mean().sqrt())
    table, kept = network.tables[name], network.kept.get(name)
    count = table.numel() if kept is None else max(1, int(kept.sum()))
    return float((table.detach().double().square().sum() / count).sqrt())
