"""Sparse feature circuits on subject-verb agreement (Marks et al. 2024, 2403.19647).

The nodes are a dictionary's latents and its error, at each position; the metric m is the logit of
the verb that agrees with the subject less that of the other one. Nodes are ordered by their effects
on training pairs, and on other pairs

    faithfulness f(C) = (m(C) - m(no node)) / (m(network) - m(no node)),

where nodes outside C have their mean over training prompts at that position. A good circuit has
faithfulness near 1; and its completeness, the faithfulness of all other nodes, is near 0. Beside
the dictionary stand the coordinates of the same sites (neurons); the controls are the same nodes in
random order, and a random dictionary of the same size.

An error is one node, whatever it holds: a dictionary that explains nothing has a circuit of one
node for each position. So everything is measured `without_errors` as well, where they always have
their mean, in the circuit and in its complement.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.artifact.hashing import sha256_of_json
from unweave.artifact.scores import Number
from unweave.circuits.contrasts import Contrast
from unweave.circuits.latents import (
    CodedSite,
    NodeEffects,
    NodeValues,
    mean_values,
    node_effects,
    node_metrics,
    of_one_length,
    ranked,
    strongest,
)
from unweave.circuits.running import plain_metrics
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.training.fanout.executors import Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.bootstrap import ratio_interval
from unweave.validate.placed import Placed
from unweave.validate.protocols.can_do import CanDo, can_do
from unweave.validate.protocols.contrast_data import CircuitTask, read_agreement, task_of
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.data_sets import averaged, shared
from unweave.validate.protocols.protocol import Bench, Outcome, Refused

TASKS = ("simple", "nounpp", "within_rc")
"""Constructions of which there is data: NAME_train.json and NAME_test.json."""
Rival = tuple[list[CodedSite], list[NodeValues], list[NodeEffects]]


class SvaSettings(BaseModel):
    """Settings of the protocol."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: PositiveInt = 100
    """Pairs that effects and means are taken from, as published."""
    test: PositiveInt = 100
    """Other pairs, on which circuits are run."""
    steps: PositiveInt = 10
    """Points of integrated gradients, as published."""
    nodes: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    """Sizes of circuits."""
    shown: tuple[PositiveInt, ...] = (10, 100)
    """Sizes in the headline."""
    batch: PositiveInt = 25
    """Pairs run together, without influence on the numbers."""
    level: float = Field(default=0.01, gt=0, lt=1)
    """How unlikely by chance a subject's answers must be for a task to be one that it does."""


class AgreementTask(NamedTuple):
    """One construction."""

    name: str
    train: CircuitTask
    test: CircuitTask


def sva(bench: Bench, settings: SvaSettings | None = None) -> Outcome:
    """Feature circuits in the bench's dictionary, with the data in the bench's folder."""
    settings = settings or SvaSettings()
    if bench.data is None:
        raise Refused(
            "Subject-verb agreement needs the prompts of saprmarks/feature-circuits: give the"
            " folder that holds simple_train.json, simple_test.json and so on"
        )
    return sva_on(bench, [bench.dictionary], agreement_tasks(bench, bench.data, settings), settings)


def agreement_tasks(bench: Bench, folder: Path, settings: SvaSettings) -> list[AgreementTask]:
    """The constructions whose two files lie in a folder."""
    found = []
    for name in TASKS:
        sides = []
        for side, count in (("train", settings.train), ("test", settings.test)):
            path = next(iter(sorted(folder.glob(f"**/*{name}_{side}.json"))), None)
            if path is not None:
                most = shared(count, bench.share)
                sides.append(
                    task_of(bench.subject, name, read_agreement(path), most=most, seed=bench.seed)
                )
        if len(sides) == 2:
            found.append(AgreementTask(name, *sides))
    return found


def sva_on(
    bench: Bench,
    standing: Sequence[Placed],
    tasks: Sequence[AgreementTask],
    settings: SvaSettings,
) -> Outcome:
    """Feature circuits over the latents of one dictionary or of several, each at its own site.

    Raises:
        Refused: there is no task, the subject does none of them, or a dictionary writes elsewhere
            than it reads.
    """
    if not tasks:
        raise Refused("The folder given has no prompts of subject-verb agreement")
    for one in standing:
        if len(one.reads) != 1 or not one.autoencodes:
            raise Refused(
                f"{one.name} does not write the one site that it reads, so its latents and its"
                " error do not add up to what is there"
            )
    asked = {
        task.name: Task(
            {
                "settings": settings.model_dump(mode="json"), "seed": bench.seed,
                "share": bench.share, "subject": bench.subject.fingerprint,
                "dictionaries": [[one.name, *one.reads] for one in standing],
                "data": sha256_of_json([list(map(list, c)) for s in task[1:] for c in s.contrasts]),
            },
            task,
        )
        for task in tasks
    }  # fmt: skip
    found = fan_out(
        lambda task: _on_task(bench, standing, task, settings), asked, folder=bench.store / "sva",
        executor=Here(), title="sva", progress=bench.progress,
    )  # fmt: skip
    return _outcome(bench, cast(dict[str, dict[str, Any]], found), settings)


def _outcome(bench: Bench, found: dict[str, dict[str, Any]], settings: SvaSettings) -> Outcome:
    done = {name: one for name, one in found.items() if "refused" not in one}
    if not done:
        reasons = "; ".join(f"{name}: {one['refused']}" for name, one in found.items())
        raise Refused(f"{bench.subject.name} does not make verbs agree: {reasons}")
    means = averaged([_shown(one["curves"], settings) for one in done.values()])
    bad = {name for name in means if "_random_" in name}
    return Outcome(
        protocol="sva",
        numbers={n: Number(value=v, unit="share") for n, v in means.items() if n not in bad},
        controls={n: Number(value=v, unit="share") for n, v in means.items() if n in bad},
        details={
            "settings": settings.model_dump(mode="json"), "share": bench.share,
            "subject": bench.subject.name, "by_task": found,
        },
    )  # fmt: skip


def _shown(curves: dict[str, dict[str, Any]], settings: SvaSettings) -> dict[str, float]:
    found = {}
    for name, curve in curves.items():
        suffix = "" if name == "latents" else f"_{name}"
        for count in settings.shown:
            if count in curve["nodes"]:
                at = curve["nodes"].index(count)
                for measure in ("faithfulness", "completeness"):
                    found[f"{measure}_{count}{suffix}"] = curve[measure][at]["value"]
    return found


def _on_task(
    bench: Bench, standing: Sequence[Placed], task: AgreementTask, settings: SvaSettings
) -> dict[str, Any]:
    subject, batch = bench.subject, settings.batch
    train = list(of_one_length(task.train.contrasts))
    test = [c for c in task.test.contrasts if train and len(c.clean) == len(train[0].clean)]
    plain = plain_metrics(subject, test, batch=batch)
    does = can_do(plain)
    facts = {"can_do": does._asdict(), "pairs": [len(train), len(test)]}
    if (why := does.why_not(settings.level)) is not None:
        return {"refused": why, **facts}
    if subject.dtype != torch.float32:
        raise Refused(f"{subject.name} is in {subject.dtype}: load it with dtype='float32'")
    rivals = _rivals(bench, standing, train, settings)
    curves = _curves(bench, rivals, test, plain[0], settings)
    return {"curves": curves, "effects": _told(rivals["latents"][2], does), **facts}


def _curves(
    bench: Bench,
    rivals: dict[str, Rival],
    test: Sequence[Contrast],
    whole: Float[Tensor, " pairs"],
    settings: SvaSettings,
) -> dict[str, dict[str, Any]]:
    """Of each rival, and of the dictionary's nodes in random order."""
    curves = {}
    orders = _orders(rivals, bench.seed)
    with bench.progress.task("sva: circuits", total=len(orders), unit="curves") as advance:
        for title, (name, order) in orders.items():
            sites, means, effects = rivals[name]
            counts = [count for count in settings.nodes if count < len(order)]
            circuits = [strongest(effects, order, count) for count in (0, *counts)]
            others = [[one.complement for one in circuit] for circuit in circuits[1:]]
            if title.endswith("without_errors"):
                others = [
                    [one._replace(error=torch.zeros_like(one.error)) for one in circuit]
                    for circuit in others
                ]
            metrics = node_metrics(
                bench.subject, sites, test, [*circuits, *others], means, batch=settings.batch
            )
            curves[title] = _curve(counts, metrics, whole) | {"all_nodes": len(order)}
            advance(1)
    return curves


def _orders(rivals: dict[str, Rival], seed: int) -> dict[str, tuple[str, Int[Tensor, " nodes"]]]:
    """The orders of nodes that are tried, by title, and whose nodes they are."""
    found = {}
    for name, (_, _, effects) in rivals.items():
        found[name] = name, ranked(effects)
        bare = [one._replace(error=torch.zeros_like(one.error)) for one in effects]
        if any(one.error.any() for one in effects) and name != "neurons":
            title = "without_errors" if name == "latents" else f"{name}_without_errors"
            found[title] = name, ranked(bare)
    order = found["latents"][1]
    mixed = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
    found["random_nodes"] = "latents", order[mixed]
    return found


def _rivals(
    bench: Bench, standing: Sequence[Placed], train: Sequence[Contrast], settings: SvaSettings
) -> dict[str, Rival]:
    """Latents, neurons and random directions at the same sites, with their means and effects."""
    subject = bench.subject
    sites: dict[str, list[CodedSite]] = {"latents": [], "neurons": [], "random_dictionary": []}
    rows = torch.tensor([c.clean for c in train])
    for one in standing:
        x = subject.run(rows, capture=[one.reads[0]], logits=False).sites[one.reads[0]]
        x = x[:, 1:].flatten(0, 1).float()
        twin = random_twin(one, x, x, seed=bench.seed)
        coders = one.coder, coordinates(x.shape[1]), twin.coder
        for name, coder in zip(sites, coders, strict=True):
            sites[name].append(CodedSite(one.reads[0], coder))
    every = [one for some in sites.values() for one in some]
    with bench.progress.task("sva: effects", total=len(train), unit="pairs") as advance:
        effects = node_effects(
            subject, every, train, steps=settings.steps, batch=settings.batch, advance=advance
        )
    means = mean_values(subject, every, train, batch=settings.batch)
    count = len(standing)
    return {
        name: (some, means[at * count : (at + 1) * count], effects[at * count : (at + 1) * count])
        for at, (name, some) in enumerate(sites.items())
    }


def _curve(
    counts: Sequence[int],
    metrics: Float[Tensor, "circuits pairs"],
    whole: Float[Tensor, " pairs"],
) -> dict[str, Any]:
    """Faithfulness and completeness by size; the first row is with no node at all."""
    none = metrics[0]
    gap = (whole - none).double().numpy()
    shares = [ratio_interval((row - none).double().numpy(), gap)._asdict() for row in metrics[1:]]
    half = len(counts)
    return {
        "nodes": list(counts), "faithfulness": shares[:half], "completeness": shares[half:],
        "nodes_for_half": next(
            (c for c, s in zip(counts, shares, strict=False) if s["value"] >= 0.5), None
        ),
        "without_nodes": none.mean().item(),
    }  # fmt: skip


def _told(effects: Sequence[NodeEffects], does: CanDo) -> dict[str, float]:
    """What the effects of latents and of errors add up to, beside what really changes."""
    latents = sum(one.latents.sum().item() for one in effects)
    error = sum(one.error.sum().item() for one in effects)
    return {
        "latents": latents, "error": error, "clean_to_corrupt": does.corrupt - does.clean,
        "error_share": error / (latents + error) if latents + error else 0.0,
    }  # fmt: skip
