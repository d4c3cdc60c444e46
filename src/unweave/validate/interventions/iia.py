"""Interchange-intervention accuracy: how often an exchange gives the answer that it should.

(Geiger et al. 2021, 2023; the causal-variable track of MIB, Mueller et al. 2025.) Pairs are
halved into training and test ones; only the latter are counted. Wilson intervals.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt

from unweave.artifact.scores import Number
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.subject import Subject
from unweave.validate.bootstrap import Interval
from unweave.validate.interventions.interchange import (
    Counterfactual,
    Exchange,
    LearnSettings,
    Move,
    along,
    answers_after,
    everything,
    exchange_of,
    learned_basis,
    learned_weight,
    most_changed,
    of_latents,
    random_basis,
)
from unweave.validate.placed import Placed
from unweave.validate.protocols.can_do import at_least
from unweave.validate.protocols.protocol import Bench, Outcome, Refused


class IIASettings(BaseModel):
    """Settings of interchange-intervention accuracy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    k: PositiveInt = 8
    """Dimensions of subspaces, and latents or neurons exchanged where none are learned."""
    learn: LearnSettings = LearnSettings()
    """What is learned, and how."""
    chance: float = 0.01
    """Level at which the subject must beat a coin in telling a pair's own answers apart."""
    fewest: PositiveInt = 20
    """Pairs below which nothing is said."""


class Found(NamedTuple):
    """Shares of test pairs that answer as expected."""

    everything: Interval
    """The whole vector exchanged: what any method can reach here."""
    latents: Interval
    """The k latents that change most."""
    latents_learned: Interval
    """Latents of a learned mask."""
    neurons: Interval
    """The k coordinates that change most."""
    neurons_learned: Interval
    """Coordinates of a learned mask."""
    das: Interval
    """A learned subspace of k dimensions."""
    random: Interval
    """A random subspace of k dimensions."""
    nothing: Interval
    """Nothing exchanged."""
    exchanged: int
    """Latents of the learned mask."""


def wilson(hits: int, trials: int, z: float = 1.959964) -> Interval:
    """A share with Wilson's 95% interval (1927).

    >>> wilson(5, 10).value
    0.5
    """
    share = hits / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / trials) ** 2 / 4)
    half /= 1 + z * z / trials
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def interchange_accuracy(
    subject: Subject,
    one: Placed,
    pairs: Sequence[Counterfactual],
    settings: IIASettings | None = None,
    *,
    seed: int = 0,
) -> Found:
    """The accuracy of every way to exchange, at the site where a coder stands.

    Raises:
        Refused: too few pairs, a coder that does not write the one site it reads, or a subject
            that does not do the task.
    """
    settings = settings or IIASettings()
    if not one.autoencodes or len(one.reads) != 1:
        raise Refused("Variables are exchanged at one site: the coder must write the one it reads")
    if len(pairs) < settings.fewest:
        raise Refused(f"{len(pairs)} pairs are too few; give at least {settings.fewest}")
    site = one.reads[0]
    every = exchange_of(subject, site, pairs)
    _able(subject, site, every, settings)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    train, test = every.of(order[: len(order) // 2]), every.of(order[len(order) // 2 :])
    moves, exchanged = _moves(subject, one, train, settings, seed)
    shares = {name: _share(subject, site, test, move) for name, move in moves.items()}
    return Found(**shares, exchanged=exchanged)


def _moves(
    subject: Subject, one: Placed, train: Exchange, settings: IIASettings, seed: int
) -> tuple[dict[str, Move], int]:
    site, d, k, learn = one.reads[0], train.base.shape[1], settings.k, settings.learn
    neurons = coordinates(d)
    mask = learned_weight(subject, site, train, one.coder, learn, seed=seed)
    neuron_mask = learned_weight(subject, site, train, neurons, learn, seed=seed)
    most = most_changed(one.coder, train, min(k, one.coder.n_latents))
    return {
        "everything": everything,
        "latents": of_latents(one.coder, most),
        "latents_learned": of_latents(one.coder, mask),
        "neurons": of_latents(neurons, most_changed(neurons, train, min(k, d))),
        "neurons_learned": of_latents(neurons, neuron_mask),
        "das": along(learned_basis(subject, site, train, min(k, d), learn, seed=seed)),
        "random": along(random_basis(d, min(k, d), seed=seed + 1)),
        "nothing": lambda some: torch.zeros_like(some.base),
    }, int(mask.sum())


@torch.no_grad()
def _share(subject: Subject, site: str, test: Exchange, move: Move) -> Interval:
    hits = 0
    for which in torch.arange(len(test.pairs)).split(32):
        some = test.of(which)
        said = answers_after(subject, site, some, move(some)).argmax(1)
        hits += int((said == some.expected).sum())
    return wilson(hits, len(test.pairs))


@torch.no_grad()
def _able(subject: Subject, site: str, every: Exchange, settings: IIASettings) -> None:
    """The base's own answer must beat the source's in clearly more than half of the pairs."""
    differ = torch.tensor([p.base_answer != p.source_answer for p in every.pairs]).nonzero()[:, 0]
    hits = 0
    for which in differ.split(32):
        some = every.of(which)
        logits = answers_after(subject, site, some, torch.zeros_like(some.base))
        base, source = (
            logits.gather(1, torch.tensor([[getattr(p, f"{side}_answer")] for p in some.pairs]))
            for side in ("base", "source")
        )
        hits += int((base > source).sum())
    if not len(differ) or at_least(hits, len(differ)) >= settings.chance:
        raise Refused(
            f"The subject gives the base's own answer rather than the source's in {hits} of"
            f" {len(differ)} pairs, which is no better than chance: it does not do the task"
        )


def iia(
    bench: Bench, pairs: Sequence[Counterfactual], settings: IIASettings | None = None
) -> Outcome:
    """Interchange-intervention accuracy as an outcome, for pairs of one's own."""
    settings = settings or IIASettings()
    found = interchange_accuracy(bench.subject, bench.dictionary, pairs, settings, seed=bench.seed)
    shares = {
        f"iia_{name}": Number(value=each.value, low=each.low, high=each.high, unit="share")
        for name, each in found._asdict().items()
        if isinstance(each, Interval)
    }
    controls = {name: shares.pop(name) for name in ("iia_random", "iia_nothing")}
    first = {name: shares[name] for name in ("iia_latents_learned", "iia_latents")}
    return Outcome(
        protocol="iia",
        numbers=first | shares,
        controls=controls,
        details={
            "settings": settings.model_dump(mode="json"), "pairs": len(pairs),
            "seed": bench.seed, "exchanged": found.exchanged,
        },
    )  # fmt: skip
