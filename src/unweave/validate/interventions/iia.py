"""Interchange-intervention accuracy: how often an exchange gives the answer that it should.

(Geiger et al. 2021, 2023; the causal-variable track of MIB, Mueller et al. 2025.) Only pairs count
whose two prompts the subject answers as it should, by its first choice among all tokens. They are
halved: what is learned or chosen is so on training pairs, and test pairs are counted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.dictionaries.code import Coder
from unweave.subject import Subject
from unweave.validate.bootstrap import Interval
from unweave.validate.interventions.interchange import (
    Counterfactual,
    Exchange,
    LearnSettings,
    Move,
    along,
    answers_after,
    changes,
    everything,
    exchange_of,
    learned_basis,
    learned_weight,
    most_effective,
    of_latents,
    random_basis,
)
from unweave.validate.placed import Placed, judged
from unweave.validate.protocols.asking import answers
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.protocol import Refused


class IIASettings(BaseModel):
    """Settings of interchange-intervention accuracy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pairs: PositiveInt = 128
    """Pairs that the subject can answer which are used, half of them to learn from."""
    drawn: PositiveInt = 384
    """Pairs among which they are looked for."""
    fewest: PositiveInt = Field(default=40, ge=4)
    """Pairs below which nothing is said."""
    k: PositiveInt = 8
    """Dimensions of subspaces."""
    chosen: PositiveInt = 128
    """Latents or neurons exchanged where no mask is learned, those of most effect."""
    learn: LearnSettings = LearnSettings()
    """What is learned, and how."""
    random_draws: PositiveInt = 2
    """Sets of random latents beside each set that was chosen."""


class Count(NamedTuple):
    """How many of some answers are as expected."""

    hits: int
    trials: int

    @property
    def share(self) -> Interval:
        """With Wilson's interval."""
        return wilson(self.hits, self.trials)


class Halves(NamedTuple):
    """Pairs with the vectors at one site."""

    train: Exchange
    test: Exchange


class Found(NamedTuple):
    """What every way to exchange gives on test pairs."""

    of_site: dict[str, Count]
    """Ways that need no dictionary: see `site_counts`."""
    of_coder: dict[str, Count]
    """Ways through the dictionary, and its controls: see `coder_counts`."""
    exchanged: dict[str, int]
    """How many latents each way through the dictionary exchanges."""

    def share(self, name: str) -> float:
        """One of them."""
        return (self.of_site | self.of_coder)[name].share.value


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
        Refused: a coder that does not write the one site it reads, a subject that answers too few
            pairs, or a place at which nothing that is exchanged gives the expected answer.
    """
    settings = settings or IIASettings()
    site = site_of(one)
    kept = answered(subject, pairs, settings)
    halves = halved(subject, site, [pairs[at] for at in kept], seed=seed)
    of_site = site_counts(subject, site, halves, settings, seed=seed)
    if (why := nothing_there(of_site)) is not None:
        raise Refused(why)
    return Found(of_site, *coder_counts(subject, one, halves, settings, seed=seed))


def site_of(one: Placed) -> str:
    """The one site that a coder reads and writes.

    Raises:
        Refused: there are several, or it writes elsewhere.
    """
    if not one.autoencodes or len(one.reads) != 1:
        raise Refused("Variables are exchanged at one site: the coder must write the one it reads")
    return one.reads[0]


def answered(subject: Subject, pairs: Sequence[Counterfactual], settings: IIASettings) -> list[int]:
    """Which pairs are used: the first whose two prompts the subject answers as it should.

    Raises:
        Refused: too few, which is so for a subject that does not do the task.
    """
    sides = [(p.base, p.base_answer) for p in pairs] + [(p.source, p.source_answer) for p in pairs]
    prompts = list(dict.fromkeys(row for row, _ in sides))
    said = dict.fromkeys(prompts, -1)
    for which, logits in answers(subject, prompts):
        for at, token in zip(which.tolist(), logits.argmax(1).tolist(), strict=True):
            said[prompts[at]] = token
    right = [said[row] == answer for row, answer in sides]
    kept = [at for at in range(len(pairs)) if right[at] and right[len(pairs) + at]]
    if len(kept) < settings.fewest:
        share = sum(right) / len(right) if right else 0.0
        raise Refused(
            f"{subject.name} answers {share:.0%} of the prompts as it should and both prompts in"
            f" {len(kept)} of {len(pairs)} pairs, but {settings.fewest} are needed"
        )
    return kept[: settings.pairs]


def halved(subject: Subject, site: str, pairs: Sequence[Counterfactual], *, seed: int) -> Halves:
    """Half of the pairs to learn from and half to test on, with their vectors."""
    every = exchange_of(subject, site, pairs)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return Halves(every.of(order[: len(order) // 2]), every.of(order[len(order) // 2 :]))


def site_counts(
    subject: Subject, site: str, halves: Halves, settings: IIASettings, *, seed: int
) -> dict[str, Count]:
    """The ways that need no dictionary.

    Returns:
        everything: the whole vector; other variables come with it, so it need not be the ceiling.
        das: a learned subspace of k dimensions.
        pca: the first k principal directions of the training prompts.
        neurons, neurons_learned: the coordinates of most effect, those of a learned mask.
        random: a random subspace of k dimensions.
        nothing: no exchange.
        Where there is nothing to exchange (`nothing_there`), the first two and the last.
    """
    train, learn = halves.train, settings.learn
    d = train.base.shape[1]
    k, few, neurons = min(settings.k, d), min(settings.chosen, d), coordinates(d)
    moves: dict[str, Move] = {
        "everything": everything,
        "nothing": lambda some: torch.zeros_like(some.base),
        "das": along(learned_basis(subject, site, train, k, learn, seed=seed)),
    }
    found = {name: count(subject, site, halves.test, move) for name, move in moves.items()}
    if nothing_there(found) is not None:
        return found
    main = principal_directions(torch.cat([train.base, train.source])).directions[:k]
    mask = learned_weight(subject, site, train, neurons, learn, seed=seed)
    moves |= {
        "pca": along(main.T),
        "neurons": of_latents(neurons, most_effective(subject, site, train, neurons, few)),
        "neurons_learned": of_latents(neurons, mask),
        "random": along(random_basis(d, k, seed=seed + 1).to(train.base.device)),
    }
    more = list(moves)[len(found) :]
    return found | {name: count(subject, site, halves.test, moves[name]) for name in more}


def nothing_there(of_site: Mapping[str, Count]) -> str | None:
    """Why a place is not one at which the variable can be exchanged, or None where it is."""
    best = max(("everything", "das"), key=lambda name: of_site[name].hits)
    if of_site[best].share.low > of_site["nothing"].share.high:
        return None
    return (
        f"Neither the whole vector nor a learned subspace carries the variable here: at best"
        f" {of_site[best].hits} of {of_site[best].trials} answers are as expected, and"
        f" {of_site['nothing'].hits} with nothing exchanged"
    )


def coder_counts(
    subject: Subject, one: Placed, halves: Halves, settings: IIASettings, *, seed: int
) -> tuple[dict[str, Count], dict[str, int]]:
    """The ways through a dictionary, and how many latents each exchanges.

    Returns:
        latents, latents_learned: those of most effect, those of a learned mask.
        latents_all: every latent, which is all that the dictionary has of the difference.
        random_latents, random_as_learned: as many drawn from those that differ in training pairs.
        twin, twin_learned: as the first two, in a random dictionary of the same norms and L0.
    """
    site, train, learn = site_of(one), halves.train, settings.learn
    x = torch.cat([train.base, train.source])
    twin = random_twin(one, x, x, seed=seed)
    weights: dict[str, tuple[Coder, list[torch.Tensor]]] = {}
    with judged([one.coder, twin.coder]):
        for coder, most, learned in (
            (one.coder, "latents", "latents_learned"),
            (twin.coder, "twin", "twin_learned"),
        ):
            few = min(settings.chosen, coder.n_latents)
            weights[most] = coder, [most_effective(subject, site, train, coder, few)]
            mask = learned_weight(subject, site, train, coder, learn, seed=seed)
            weights[learned] = coder, [mask]
        weights["latents_all"] = one.coder, [torch.ones_like(weights["latents"][1][0])]
        differ = (changes(one.coder, train) != 0).any(0)
        random = torch.Generator().manual_seed(seed + 2)
        for name, like in (("random_latents", "latents"), ("random_as_learned", "latents_learned")):
            size = int(weights[like][1][0][differ].sum())
            weights[name] = (
                one.coder,
                [_drawn(differ, size, random) for _ in range(settings.random_draws)],
            )
        counts = {
            name: count(subject, site, halves.test, *(of_latents(coder, each) for each in some))
            for name, (coder, some) in weights.items()
        }
        # Those of a mask that never differ exchange nothing.
        sizes = {
            name: int(some[0][(changes(coder, train) != 0).any(0)].sum())
            for name, (coder, some) in weights.items()
        }
    return counts, sizes


def _drawn(among: torch.Tensor, size: int, random: torch.Generator) -> torch.Tensor:
    there = among.nonzero()[:, 0]
    chosen = there[torch.randperm(len(there), generator=random)[:size].to(there.device)]
    return torch.zeros(len(among), device=among.device).index_fill(0, chosen, 1.0)


@torch.no_grad()
def count(subject: Subject, site: str, test: Exchange, *moves: Move) -> Count:
    """How many test pairs answer as expected, over one move or several."""
    hits = 0
    for which in torch.arange(len(test.pairs)).split(32):
        some = test.of(which)
        for move in moves:
            said = answers_after(subject, site, some, move(some)).argmax(1)
            hits += int((said.cpu() == some.expected.cpu()).sum())
    return Count(hits, len(moves) * len(test.pairs))
