"""MIB's circuit track (Mueller et al. 2025, 2504.13151): how good the circuits of scores are.

Edges are ordered by a method's scores; circuits of ten sizes (shares of all edges) are run with all
other edges corrupted, and

    faithfulness f = (m(circuit) - m(no edges)) / (m(network) - m(no edges)),

m the mean logit difference of right and wrong answers on pairs that no score was made from. Over
the sizes, by the trapezoid rule,

- CPR = area under f: higher is better; the edges that help most come first;
- CMD = area between f and 1: lower is better; the edges of the largest scores come first.

What is judged are methods of attribution on a subject, not a dictionary. The control is a random
order of edges.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.artifact.hashing import sha256_of_json
from unweave.artifact.scores import Number
from unweave.circuits.choosing import SIZES, from_nodes, random_scores, top_circuit
from unweave.circuits.components import Circuit, Scores
from unweave.circuits.contrasts import Contrast
from unweave.circuits.edge_attribution import (
    AttributionSettings,
    activation_edge_scores,
    edge_scores,
    integrated_edge_scores,
    node_scores,
)
from unweave.circuits.running import circuit_metrics, plain_metrics
from unweave.circuits.weight_scores import weight_edge_scores
from unweave.circuits.wired import Wired
from unweave.errors import UserError
from unweave.progress import Progress
from unweave.training.fanout.executors import Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.bootstrap import BootstrapSettings, resample_counts
from unweave.validate.protocols.can_do import can_do
from unweave.validate.protocols.contrast_data import (
    HUB,
    CircuitTask,
    hub_prompts,
    prompt_files,
    read_prompts,
    task_of,
)
from unweave.validate.protocols.data_sets import averaged, shared
from unweave.validate.protocols.protocol import Bench, Outcome, Refused


class MibSettings(BaseModel):
    """Settings of the circuit track."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    attribution: PositiveInt = 100
    """Pairs that scores are made from."""
    evaluation: PositiveInt = 200
    """Other pairs, on which circuits are run."""
    sizes: tuple[float, ...] = SIZES
    """Circuits' shares of all edges."""
    methods: tuple[str, ...] = ("eap_ig", "eap", "weights")
    """Ways to score edges, the first for the headline: also `nodes` and `eap_ig_activations`."""
    scoring: AttributionSettings = AttributionSettings()
    """Of the methods with gradients."""
    level: float = Field(default=0.01, gt=0, lt=1)
    """How unlikely by chance a subject's answers must be for a task to be one that it does."""


class Area(NamedTuple):
    """An area with its 95% interval over pairs."""

    value: float
    low: float
    high: float


def _nodes(wired: Wired, contrasts: Sequence[Contrast], **how: Any) -> Scores:
    return from_nodes(wired.graph, node_scores(edge_scores(wired, contrasts, **how)).tolist())


def _weights(
    wired: Wired, contrasts: Sequence[Contrast], *, settings: AttributionSettings,
    progress: Progress,
) -> Scores:  # fmt: skip
    return weight_edge_scores(wired.subject, progress=progress)


METHODS: dict[str, Callable[..., Scores]] = {
    "eap": edge_scores, "eap_ig": integrated_edge_scores,
    "eap_ig_activations": activation_edge_scores, "nodes": _nodes, "weights": _weights,
}  # fmt: skip
"""Ways to score edges by name."""


def mib(bench: Bench, settings: MibSettings | None = None) -> Outcome:
    """The circuit track on the tasks in the bench's folder, or on MIB's own from the hub."""
    settings = settings or MibSettings()
    most = sum(_counts(bench, settings))
    if bench.data is None:
        try:
            prompts = {name: hub_prompts(name, most=2 * most) for name in HUB}
        except UserError as error:  # the other protocols may not need the hub
            raise Refused(str(error)) from error
    else:
        prompts = {name: read_prompts(path) for name, path in prompt_files(bench.data).items()}
    tasks = [
        task_of(bench.subject, name, some, most=most, seed=bench.seed)
        for name, some in prompts.items()
    ]
    return mib_on(bench, tasks, settings)


def mib_on(bench: Bench, tasks: Sequence[CircuitTask], settings: MibSettings) -> Outcome:
    """The circuit track on given tasks; one that has been done before is not done again.

    Raises:
        Refused: there is no task, or the subject does none of them.
    """
    if not tasks:
        raise Refused("The circuit track needs pairs of prompts, and the folder given has none")
    strange = [name for name in settings.methods if name not in METHODS]
    if strange:
        raise UserError(f"There is no method {strange[0]}: choose from {', '.join(METHODS)}")
    asked = {
        task.name: Task(
            {
                "settings": settings.model_dump(mode="json"), "seed": bench.seed,
                "share": bench.share, "subject": bench.subject.fingerprint,
                "data": sha256_of_json([list(map(list, c)) for c in task.contrasts]),
            },
            task,
        )
        for task in tasks
    }  # fmt: skip
    found = fan_out(
        lambda task: _on_task(bench, task, settings), asked, folder=bench.store / "mib",
        executor=Here(), title="mib", progress=bench.progress,
    )  # fmt: skip
    return _outcome(bench, cast(dict[str, dict[str, Any]], found), settings)


def _outcome(bench: Bench, found: dict[str, dict[str, Any]], settings: MibSettings) -> Outcome:
    refused = {name: one["refused"] for name, one in found.items() if "refused" in one}
    if len(refused) == len(found):
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise Refused(
            f"{bench.subject.name} does none of the tasks, so none has a circuit: {reasons}"
        )
    areas = [
        {
            f"{area}_{name}": method[area]["value"]
            for name, method in one["methods"].items()
            for area in ("cmd", "cpr")
        }
        for name, one in found.items()
        if name not in refused
    ]
    means = averaged(areas)
    order = [f"{area}_{name}" for name in settings.methods for area in ("cmd", "cpr")]
    return Outcome(
        protocol="mib",
        numbers={name: Number(value=means[name], unit="area") for name in order},
        controls={
            name: Number(value=means[name], unit="area") for name in ("cmd_random", "cpr_random")
        },
        details={
            "settings": settings.model_dump(mode="json"), "share": bench.share,
            "subject": bench.subject.name, "by_task": found,
        },
    )  # fmt: skip


def _counts(bench: Bench, settings: MibSettings) -> tuple[int, int]:
    return shared(settings.attribution, bench.share), shared(settings.evaluation, bench.share)


def _on_task(bench: Bench, task: CircuitTask, settings: MibSettings) -> dict[str, Any]:
    count, others = _counts(bench, settings)
    if len(task.contrasts) < count + others:  # then half of them go to each side
        count = min(count, len(task.contrasts) // 2)
    train, test = task.contrasts[:count], task.contrasts[count:]
    batch = settings.scoring.batch
    plain = plain_metrics(bench.subject, test, batch=batch)
    does = can_do(plain)
    facts = {"can_do": does._asdict(), "pairs": [len(train), len(test)], "unlike": task.unlike}
    if (why := does.why_not(settings.level)) is not None:
        return {"refused": why, **facts}
    try:
        wired = Wired(bench.subject)
    except UserError as error:
        raise Refused(str(error)) from error
    scores = {
        name: METHODS[name](wired, train, settings=settings.scoring, progress=bench.progress)
        for name in settings.methods
    }
    scores["random"] = random_scores(wired.graph, seed=bench.seed)
    graph = {"edges": wired.graph.n_edges, "weighted_edges": wired.graph.n_weighted}
    methods = judge_scores(
        wired, test, plain, scores, sizes=settings.sizes, batch=batch, progress=bench.progress
    )
    return {"methods": methods, **facts, **graph}


def judge_scores(
    wired: Wired,
    contrasts: Sequence[Contrast],
    plain: Float[Tensor, "2 pairs"],
    scores: dict[str, Scores],
    *,
    sizes: Sequence[float],
    batch: int,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """CPR and CMD of each method's scores; `plain` is the metric of `plain_metrics`.

    A circuit that several methods or both orders choose is run once.
    """
    graph = wired.graph
    wanted = {
        (name, order): [top_circuit(graph, one, s, magnitude=order == "magnitude") for s in sizes]
        for name, one in scores.items()
        for order in ("signed", "magnitude")
    }
    # All edges are the clean run and none the corrupted one, which are there already.
    known = {_key(graph.mask): plain[0], _key(torch.zeros_like(graph.mask)): plain[1]}
    todo = {_key(c): c for circuits in wanted.values() for c in circuits if _key(c) not in known}
    runs = len(todo) * -(-len(contrasts) // batch)
    with progress.task("mib: circuits", total=runs, unit="runs") as advance:
        rows = circuit_metrics(wired, contrasts, list(todo.values()), batch=batch, advance=advance)
    known |= dict(zip(todo, rows, strict=True))
    found: dict[str, dict[str, Any]] = {name: {} for name in scores}
    for (name, order), circuits in wanted.items():
        metrics = torch.stack([known[_key(circuit)] for circuit in circuits])
        f, under, between = areas(metrics, plain, sizes)
        area = {"cpr": under} if order == "signed" else {"cmd": between}
        found[name] |= {key: value._asdict() for key, value in area.items()}
        found[name][f"faithfulness_{order}"] = f
    return found


def _key(circuit: Circuit) -> bytes:
    return circuit.numpy().tobytes()


def areas(
    metrics: Float[Tensor, "sizes pairs"],
    plain: Float[Tensor, "2 pairs"],
    sizes: Sequence[float],
) -> tuple[list[float], Area, Area]:
    """Faithfulness by size, the area under it, and that between it and 1."""
    values = torch.cat([metrics, plain]).double().numpy()
    counts = resample_counts(values.shape[1], BootstrapSettings())
    means = np.concatenate([values.mean(1)[None], counts @ values.T / values.shape[1]])
    whole, none = means[:, -2:-1], means[:, -1:]
    f = (means[:, :-2] - none) / (whole - none)
    found = [_interval(_trapezoid(y, sizes)) for y in (f, abs(1 - f))]
    return f[0].tolist(), found[0], found[1]


def _trapezoid(
    y: Float[np.ndarray, "draws sizes"], sizes: Sequence[float]
) -> Float[np.ndarray, " draws"]:
    return ((y[:, 1:] + y[:, :-1]) / 2 * np.diff(sizes)).sum(1)


def _interval(drawn: Float[np.ndarray, " draws"]) -> Area:
    """The first is the value itself, the others are of resampled pairs."""
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return Area(float(drawn[0]), float(min(low, drawn[0])), float(max(high, drawn[0])))
