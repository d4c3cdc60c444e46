"""The local stage: all parts fitted to their blocks, side by side, in one pass of the subject."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings, Window, start_vectors
from unweave.activations.workers import Workers
from unweave.dictionaries.gated_start import start_gated
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.dictionaries.spec import PartSpec
from unweave.dictionaries.start import start_linear, start_mlp
from unweave.progress import QUIET, Progress
from unweave.subject import AttentionWeights, Subject
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.local import LocalSettings, LocalTrainer


def fit_parts(
    subject: Subject,
    specs: Sequence[PartSpec],
    tokens: Int[Tensor, "rows pos"],
    *,
    workers: Workers,
    seed: int,
    settings: LocalSettings | None = None,
    harvest: HarvestSettings | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> tuple[dict[str, Part], Metrics]:
    """Fit every part to what the subject's own block does on the text.

    A batch is drawn within a window of text (see `activations.window`); a window's last vectors
    that fill no batch are left out. The result depends on the text, the seed and the settings, not
    on the number of workers, and a run that resumes from a checkpoint ends in the same bits.
    """
    settings, checkpoints = settings or LocalSettings(), checkpoints or Checkpoints(None)
    sites = sorted({site for spec in specs for site in (spec.input_site, spec.output_site)})
    harvester = Harvester(subject, tokens, sites, workers=workers, seed=seed, settings=harvest)
    settings = _fitting_batch(settings, tokens, harvester)
    visits = settings.epochs * harvester.windows
    steps = settings.epochs * _steps_per_epoch(tokens, harvester, settings.batch)

    first = harvester.window(0)
    starts = start_vectors(subject, tokens, sites)
    trainers = list(
        workers.map(
            lambda spec: _trainer(subject, spec, first, starts, steps, seed, settings), specs
        )
    )
    metrics: Metrics = []
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, metrics = progressed.done, progressed.metrics
        for trainer in trainers:
            trainer.restore(progressed.tensors[trainer.part.spec.name])
    per_visit = tokens.numel() / harvester.windows
    with progress.task("Fitting parts", total=visits * per_visit, unit="tokens") as advance:
        advance(done * per_visit)
        for visit in range(done, visits):
            window = harvester.window(visit % harvester.windows)
            if visit + 1 < visits:
                harvester.foresee((visit + 1) % harvester.windows)
            reports = workers.map(lambda t, w=window: _visit(t, w, settings.batch), trainers)
            metrics += [{"stage": "local", "visit": visit, **report} for report in reports]
            advance(per_visit)
            checkpoints.offer(
                visit + 1, metrics, lambda: {t.part.spec.name: t.state() for t in trainers}
            )
    return {trainer.part.spec.name: trainer.part for trainer in trainers}, metrics


def _fitting_batch(settings: LocalSettings, tokens: Tensor, harvester: Harvester) -> LocalSettings:
    """A short text gets smaller batches, so that no window is too small to hold one."""
    rows = -(-tokens.shape[0] // harvester.windows)
    vectors = rows * (tokens.shape[1] - 1)
    return settings.model_copy(update={"batch": max(1, min(settings.batch, vectors // 4))})


def _steps_per_epoch(tokens: Tensor, harvester: Harvester, batch: int) -> int:
    sizes = [harvester.vectors_in(index) for index in range(harvester.windows)]
    return sum(size // batch for size in sizes)


def _trainer(
    subject: Subject,
    spec: PartSpec,
    first: Window,
    starts: dict[str, Tensor],
    steps: int,
    seed: int,
    settings: LocalSettings,
) -> LocalTrainer:
    layer, kind = place_of(spec.name)
    x, y = first.vectors[spec.input_site], first.vectors[spec.output_site]
    if kind == "mlp":
        start = start_gated if spec.gated else start_mlp
        part = start(spec, subject.mlp_weights(layer), x, y, seed=seed)
    else:
        W = _map_of(subject.attention_weights(layer), kind, subject.n_heads // subject.n_kv_heads)
        part = start_linear(spec, W.float(), x, y, seed=seed)
    part.start_output.copy_(starts[spec.output_site])
    if kind in ("q", "k") and settings.pattern_lr is not None:
        settings = settings.model_copy(update={"lr": settings.pattern_lr})
    return LocalTrainer(part, steps, seed=seed, settings=settings)


def _map_of(weights: AttentionWeights, kind: str, groups: int) -> Tensor:
    """The linear map that a part of attention stands in for, [d_in, d_out], heads side by side."""
    if kind == "attn":
        return weights.W_O.flatten(0, 1)
    W = weights.W_Q if kind == "q" else weights.W_K[::groups]
    return W.movedim(0, 1).flatten(1)


def _visit(trainer: LocalTrainer, window: Window, batch: int) -> dict[str, float | int | str]:
    """Every whole batch of the window, in its random order."""
    spec = trainer.part.spec
    x, y = window.vectors[spec.input_site], window.vectors[spec.output_site]
    batches = [window.order[i : i + batch] for i in range(0, len(window.order), batch)]
    reports = [trainer.step(x[b], y[b]) for b in batches if len(b) == batch]
    return {
        "part": spec.name,
        "step": trainer.step_index,
        "fvu": sum(report.loss for report in reports) / max(len(reports), 1),
        "revived": sum(report.revived for report in reports),
    }


def save_parts(parts: dict[str, Part], folder: Path) -> None:
    """Write every part under its name, decoders first brought to unit norm."""
    for name, part in parts.items():
        part.save(folder / name)


def load_parts(folder: Path, device: torch.device | None = None) -> dict[str, Part]:
    """Read every part in the folder onto a device, in the order in which blocks compute them."""
    found = sorted(
        (path for path in folder.iterdir() if path.is_dir()),
        key=lambda path: place_of(path.name).order,
    )
    return {path.name: Part.load(path).to(device) for path in found}
