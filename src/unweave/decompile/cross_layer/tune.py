"""A network with cross-layer transcoders tuned as a whole.

    loss = KL(original || spliced) + stream mean gap of the streams + pattern mean KL of patterns

with every member in place always (what they write adds up) and, in a share of the steps, a random
half of the attention parts left to the subject.
"""

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.decompile.cross_layer.network import CrossLayerNetwork
from unweave.decompile.gaps import pattern_gap, stream_gap
from unweave.dictionaries.cross_layer import offset_masks
from unweave.dictionaries.part_names import place_of
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.adam_state import part_state, restore_part
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.objectives.divergence import mean_kl
from unweave.training.schedule import linear_decay


class CrossLayerSettings(BaseModel):
    """How the network is tuned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: PositiveInt = 500_000
    """Tokens to tune on."""
    rows: PositiveInt = 8
    """Rows of a step."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    stream: NonNegativeFloat = 0.3
    """Weight of the residual stream's relative error beside the KL."""
    pattern: NonNegativeFloat = 0.3
    """Weight of the patterns' KL, where queries or keys have parts."""
    everything: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps with all attention parts in place."""
    clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""


def tune_cross_layer(
    network: CrossLayerNetwork,
    subject: Subject,
    tokens: Int[Tensor, "rows pos"],
    *,
    seed: int,
    settings: CrossLayerSettings | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Tune members and parts in place; returns the log, one line a step.

    Step s depends on the seed, s and the state before it alone.
    """
    settings, checkpoints = settings or CrossLayerSettings(), checkpoints or Checkpoints(None)
    per_step = settings.rows * tokens.shape[1]
    steps = max(1, settings.tokens // per_step)
    trained = trained_of(network)
    # Not fused: that changes weights past torch's count, and dictionaries keep theirs rounded.
    optimizer = torch.optim.Adam(trained.parameters(), lr=settings.lr, foreach=True)
    masks = offset_masks(network.members_by_name)
    metrics: Metrics = []
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, metrics = progressed.done, progressed.metrics
        restore_part(trained, optimizer, progressed.tensors["network"])
    trained.train()
    with progress.task("Tuning as a whole", total=steps * per_step, unit="tokens") as advance:
        advance(done * per_step)
        for step in range(done, steps):
            generator = torch.Generator().manual_seed((seed << 24) + step)
            drawn = torch.randint(len(tokens), (settings.rows,), generator=generator)
            loss, seen = _loss(network, subject, tokens[drawn], generator, settings)
            loss.backward()
            for name, mask in masks.items():  # a site's offset stands in one member alone
                offset = network.members_by_name[name].b_dec
                assert offset.grad is not None
                offset.grad *= mask
            _update(trained, optimizer, settings.lr * linear_decay(step, steps), settings.clip)
            for part in network.parts_by_name.values():
                part.unit_decoder_()
            metrics.append({"stage": "joint", "step": step, **seen})
            advance(per_step)
            checkpoints.offer(
                step + 1, metrics, lambda: {"network": part_state(trained, optimizer)}
            )
    trained.eval()
    return metrics


def trained_of(network: CrossLayerNetwork) -> torch.nn.ModuleList:
    """Members and parts, without the subject that they stand in."""
    return torch.nn.ModuleList([*network.members_by_name.values(), *network.parts_by_name.values()])


def _loss(
    network: CrossLayerNetwork,
    subject: Subject,
    rows: Tensor,
    generator: torch.Generator,
    settings: CrossLayerSettings,
) -> tuple[Tensor, dict[str, float]]:
    names = list(network.parts_by_name)
    streams = [f"blocks.{layer}.resid_post" for layer in range(subject.n_layers)]
    layers = sorted({place_of(n).layer for n in names if place_of(n).kind in "qk"})
    looks = [f"blocks.{layer}.attn.pattern" for layer in layers] if settings.pattern else []
    with torch.no_grad():
        original = subject.run(rows, capture=[*streams, *looks])
    whole = torch.rand((), generator=generator) < settings.everything
    keep = torch.rand(len(names), generator=generator) < 0.5
    placed = {name: bool(whole or on) for name, on in zip(names, keep, strict=True)}
    with torch.enable_grad():
        spliced = network.run(rows, capture=(*streams, *looks), attention=placed)
    assert original.logits is not None
    assert spliced.logits is not None
    kl = mean_kl(original.logits[:, 1:].flatten(0, 1), spliced.logits[:, 1:].flatten(0, 1))
    before, after = original.sites, spliced.sites
    stream = torch.stack([stream_gap(before[s], after[s]) for s in streams]).mean()
    loss, seen = kl + settings.stream * stream, {"kl": kl.item(), "stream": stream.item()}
    if looks:
        pattern = torch.stack([pattern_gap(before[s], after[s]) for s in looks]).mean()
        loss, seen = loss + settings.pattern * pattern, seen | {"pattern": pattern.item()}
    return loss, seen


def _update(trained: torch.nn.Module, optimizer: torch.optim.Adam, lr: float, clip: float) -> None:
    torch.nn.utils.clip_grad_norm_(trained.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
