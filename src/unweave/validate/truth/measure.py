"""One dictionary in one world: every number that means something there, with its chance level.

What means nothing is refused with a reason, never filled in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from unweave.artifact.records import Record
from unweave.dictionaries.baselines.linear import Coefficients, read_by
from unweave.dictionaries.code import Coder
from unweave.errors import UserError
from unweave.validate.fidelity import measure_fidelity
from unweave.validate.protocols.protocol import Refused
from unweave.validate.truth.absorption import measure_absorption
from unweave.validate.truth.chance import random_directions_of, recovery_beside_chance
from unweave.validate.truth.hedging import measure_hedging
from unweave.validate.truth.planes import measure_planes
from unweave.validate.truth.states import state_latents
from unweave.validate.worlds.world import Directions, Hidden, Turning, World

Numbers = dict[str, float]


class Measured(NamedTuple):
    """What one metric found."""

    numbers: Numbers
    """Of the dictionary; nan where a number means nothing here."""
    chance: Numbers
    """What a dictionary that knows nothing would have, and other bounds."""


class WorldReport(Record):
    """A dictionary in a world."""

    world: str
    """Its name."""
    numbers: dict[str, dict[str, float]]
    """By metric and name."""
    chance: dict[str, dict[str, float]]
    """What they are to be read against, likewise."""
    refused: dict[str, str] = Field(default_factory=dict)
    """Reason, by metric or by `metric.name`, of everything that was not measured."""

    def flat(self) -> dict[str, float | None]:
        """`metric.name` to number, chance as `metric.name by chance`: for a mean over seeds."""
        found: dict[str, float | None] = {}
        for metric, numbers in self.numbers.items():
            found |= {f"{metric}.{name}": value for name, value in numbers.items()}
        for metric, numbers in self.chance.items():
            found |= {f"{metric}.{name} by chance": value for name, value in numbers.items()}
        return found


def measure_world(
    coder: Coder, world: World, *, metrics: Sequence[str] | None = None, seed: int = 0
) -> WorldReport:
    """Hold any coder to a world.

    Raises:
        UserError: there is no metric of that name.
    """
    wanted = list(METRICS) if metrics is None else list(metrics)
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise UserError(f"There is no metric {unknown[0]!r}; there are: {', '.join(METRICS)}")
    report = WorldReport(world=world.name, numbers={}, chance={})
    for name in wanted:
        try:
            found = METRICS[name](coder, world, seed)
        except Refused as reason:
            report.refused[name] = str(reason)
            continue
        for key, numbers in (("numbers", found.numbers), ("chance", found.chance)):
            known = {n: float(v) for n, v in numbers.items() if not math.isnan(v)}
            getattr(report, key)[name] = known
        for number, value in found.numbers.items():
            if math.isnan(value):
                report.refused[f"{name}.{number}"] = _WHY_NOT.get(number, _NO_ROWS)
    return report


_NO_PAIR = "no latent is above the bar for any feature, so there is no pair to measure it on"
_NO_LATENT = "no latent fires on the held-out vectors"
_NO_ROWS = "no held-out row has what this is measured on"
_WHY_NOT: Mapping[str, str] = {
    "f1": _NO_PAIR,
    "slope": _NO_PAIR,
    "precision": _NO_LATENT,
    "learned_true": _NO_LATENT,
    "mmcs_reverse": _NO_LATENT,
}


def _fidelity(coder: Coder, world: World, seed: int) -> Measured:
    twin = random_directions_of(coder, seed=seed)
    found = [measure_fidelity(one, world.held_out, world.held_out) for one in (coder, twin)]
    mine, chance = ({"l0": f.l0, "fvu": f.fvu} for f in found)
    return Measured(mine, {"fvu": chance["fvu"]})


def _recovery(coder: Coder, world: World, seed: int) -> Measured:
    truth = _directions(world, "recovery")
    found, chance = recovery_beside_chance(
        coder, truth.directions, world.held_out, truth.code, seed=seed
    )
    mine, theirs = found._asdict(), chance._asdict()
    for numbers in (mine, theirs):
        # Silence alone is no absorption; the metric of that name asks for both halves.
        del numbers["absorption"], numbers["parent_missed"], numbers["features"]
    return Measured(mine, theirs)


def _absorption(coder: Coder, world: World, seed: int) -> Measured:
    truth = _directions(world, "absorption")
    if truth.parents is None:
        raise Refused("absorption means nothing here: this world has no hierarchy")
    found = measure_absorption(
        coder, truth.directions, world.held_out, truth.code, truth.parents
    )._asdict()
    alone = {"silent": found.pop("silent_alone"), "taken_over": found.pop("taken_over_alone")}
    return Measured(found, alone)


def _hedging(coder: Coder, world: World, seed: int) -> Measured:
    truth = _directions(world, "hedging")
    if truth.independent:
        raise Refused("hedging means nothing here: features of this world come and go on their own")
    found = measure_hedging(
        coder, truth.directions, world.held_out, truth.code, parents=truth.parents, seed=seed
    )._asdict()
    free = {n: found.pop(f"{n}_uncorrelated") for n in ("writes", "reads")}
    return Measured(found, free)


def _planes(coder: Coder, world: World, seed: int) -> Measured:
    if not isinstance(world.truth, Turning):
        raise Refused("planes mean nothing here: this world's features do not turn")
    found = measure_planes(coder, world.truth.planes, world.held_out, seed=seed)._asdict()
    chance = {n: found.pop(f"{n}_by_chance") for n in ("nearest", "angle")}
    del found["planes"]
    return Measured(found, chance)


def _states(coder: Coder, world: World, seed: int) -> Measured:
    """Beside chance: what the token alone tells, and what Bayes does, the most there is."""
    truth = world.truth
    if not isinstance(truth, Hidden):
        raise Refused("states mean nothing here: this world is no language and hides none")
    found = state_latents(coder, world.held_out, truth.states, seed=seed)._asdict()
    chance = {"auroc": found.pop("shuffled_auroc"), "f1": found.pop("shuffled_f1")}
    token = torch.nn.functional.one_hot(truth.tokens).float()
    best = torch.nn.functional.one_hot(truth.beliefs.argmax(1)).float()
    for name, told in (("token", token), ("bayes", best), ("belief", truth.beliefs)):
        known = state_latents(_identity(told), told, truth.states, seed=seed)
        chance |= {f"{name}_auroc": known.auroc}
        if name != "belief":
            chance |= {f"{name}_f1": known.f1, f"{name}_matched_f1": known.matched_f1}
    del found["states"]
    return Measured(found, chance)


def _directions(world: World, metric: str) -> Directions:
    if not isinstance(world.truth, Directions):
        raise Refused(f"{metric} means nothing here: what is true here is not a set of directions")
    return world.truth


def _identity(x: Tensor) -> Coefficients:
    rows = torch.eye(x.shape[1])
    return Coefficients(read_by(rows, torch.zeros(x.shape[1])), rows)


METRICS: dict[str, Callable[[Coder, World, int], Measured]] = {
    "fidelity": _fidelity,
    "recovery": _recovery,
    "absorption": _absorption,
    "hedging": _hedging,
    "planes": _planes,
    "states": _states,
}
"""By name: given a coder, a world and a seed for the controls."""
