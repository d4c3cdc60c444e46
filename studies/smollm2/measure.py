"""What a run is measured by: splice modes of all parts and of some, and their rivals."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unweave.activations.window import Harvester, HarvestSettings, start_vectors
from unweave.activations.workers import Workers
from unweave.dictionaries.baselines.neurons import exact_block
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import input_site, output_site, place_of
from unweave.subject import Subject
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import MeanOutput, top_neurons
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import RowScores, Variant, single_scores, splice_scores


class Linear(nn.Module):
    """A dense linear map in place of a block, fitted by ridge regression, rows far off weighing
    less, and the start token's own constant.
    """

    def __init__(self, x: Tensor, y: Tensor, start: Tensor, ridge: float = 1e-2) -> None:
        super().__init__()
        far = (y - y.mean(0)).norm(dim=1)
        weight = (2 * far.median() / far.clamp_min(1e-12)).clamp(max=1.0)[:, None]
        self.start = start
        self.mean_in = (weight * x).sum(0) / weight.sum()
        self.mean_out = (weight * y).sum(0) / weight.sum()
        x, y = x - self.mean_in, y - self.mean_out
        gram = (x * weight).T @ x
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        self.W = torch.linalg.solve(gram, (x * weight).T @ y)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, pos, d_in]` to `[batch, pos, d_out]`."""
        y = (x.float() - self.mean_in) @ self.W + self.mean_out
        return torch.cat([self.start.expand(len(y), 1, -1), y[:, 1:]], dim=1).to(x.dtype)


def rivals(
    subject: Subject, parts: Mapping[str, Part], rows: Tensor, workers: Workers
) -> dict[str, dict[str, nn.Module]]:
    """Means, linear maps and the blocks' own neurons in place of the MLPs."""
    mlps = [name for name in parts if place_of(name).kind == "mlp"]
    sites = {site(name) for name in mlps for site in (input_site, output_site)}
    y = Harvester(
        subject, rows, sorted(sites), workers=workers, seed=0,
        settings=HarvestSettings(window_tokens=rows.numel()),
    ).window(0).vectors  # fmt: skip
    starts = start_vectors(subject, rows, sorted(sites))
    at = {name: output_site(name) for name in mlps}
    own = {n: top_neurons(exact_block(subject, n), starts[at[n]], parts[n].spec.k) for n in mlps}
    return {
        "mean, mlps": {n: MeanOutput(y[at[n]], starts[at[n]]) for n in mlps},
        "linear, mlps": {n: Linear(y[input_site(n)], y[at[n]], starts[at[n]]) for n in mlps},
        "neurons, mlps": own,
    }


def scores_of(
    subject: Subject,
    parts: dict[str, Part],
    others: dict[str, dict[str, nn.Module]],
    held: Tensor,
    single: int,
    workers: Workers,
) -> dict:
    """Scores of all parts, of some of them and of their rivals, on held-out rows."""
    variants = {name: Variant(group, "propagated") for name, group in grouped(parts).items()}
    first = next(iter(variants))
    variants[f"{first}, clean"] = Variant(variants[first].placed, "clean")
    variants |= {name: Variant(group, "propagated") for name, group in others.items()}
    found = splice_scores(subject, variants, held, workers=workers)
    kept: dict = {"tokens": held.numel()}
    kept["original"] = round(float(found[first].ce_original.mean()), 4)
    kept |= {name: summary(scores) for name, scores in found.items()}
    if single:
        placed = stand_ins(parts.values(), AtStart())
        alone = single_scores(subject, placed, held[: single // 128], workers=workers)
        rise = {name: float(scores.ce_increase.mean()) for name, scores in alone.items()}
        kept["single"] = {name: round(value, 4) for name, value in rise.items()}
        kept["single, mean"] = round(sum(rise.values()) / len(rise), 4)
    return kept


def grouped(parts: Mapping[str, Part]) -> dict[str, dict[str, nn.Module]]:
    """Parts that are put in place together."""
    placed = stand_ins(parts.values(), AtStart())
    kinds = {
        "everything": "q k attn mlp",
        "mlps": "mlp",
        "attention": "q k attn",
        "patterns": "q k",
        "values": "attn",
    }
    groups = {
        name: {n: m for n, m in placed.items() if place_of(n).kind in chosen.split()}
        for name, chosen in kinds.items()
    }
    if not groups["attention"]:
        return {"mlps": groups["mlps"]}
    return groups


def summary(scores: RowScores) -> dict[str, list[float] | float]:
    """Means over held-out rows, the rise of the loss with its 95 % interval."""
    rise = mean_interval(scores.ce_increase)
    return {
        "ce_increase": round(rise.value, 4),
        "interval": [round(rise.low, 4), round(rise.high, 4)],
        "kl": round(float(scores.kl.mean()), 4),
        "top1": round(float(scores.top1_agreement.mean()), 4),
    }
