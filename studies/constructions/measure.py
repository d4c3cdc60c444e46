"""What is measured of each construction, on the same held-out rows."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from unweave.decompile.layers.codes import activate, decode_stream
from unweave.decompile.layers.fit import truth_of
from unweave.decompile.layers.network import LayerNetwork, LayerRun
from unweave.decompile.layers.start import start_stream
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.initial import ridge_map
from unweave.subject import Subject
from unweave.training.objectives.splice import Splice
from unweave.validate.bootstrap import mean_interval
from unweave.validate.length import sparse_bits
from unweave.validate.splice import RowScores, compare_logits, stack
from unweave.validate.splice_dictionary import ablation, site_means

GROUP = 8
FEWEST = 10
"""Firings that a feature needs on the held-out rows to have an R^2."""


def summary(scores: RowScores) -> dict:
    """Means over held-out rows, the rise of the loss with its 95 % interval."""
    rise = mean_interval(scores.ce_increase)
    return {
        "ce_increase": round(rise.value, 4),
        "interval": [round(rise.low, 4), round(rise.high, 4)],
        "kl": round(float(scores.kl.mean()), 4),
        "top1": round(float(scores.top1_agreement.mean()), 4),
    }


@torch.no_grad()
def scored(subject: Subject, held: Tensor, logits_of: Callable[[Tensor], Tensor]) -> dict:
    """Scores of a network, given as a function from rows to logits."""
    groups = held.split(GROUP)
    return summary(
        stack([compare_logits(subject.run(rows).logits, logits_of(rows), rows) for rows in groups])
    )


def length(active: Mapping[str, tuple[float, int]]) -> dict:
    """Active features and bits per token, from (active per token, how many there are) by name."""
    bits = sum(sparse_bits(l0, n) for l0, n in active.values())
    return {"active": round(sum(l0 for l0, _ in active.values()), 2), "bits": round(bits, 1)}


def modes_of_layers(
    subject: Subject, network: LayerNetwork, dictionaries: Sequence[Dictionary], held: Tensor
) -> dict:
    """Propagated, clean (the last block alone is what counts then), with exact patterns, single."""

    def clean(rows: Tensor, *, exact: bool = False) -> LayerRun:
        truth = truth_of(subject, dictionaries, rows)
        looks = truth.patterns if exact or not network.spec.patterns else None
        return network(rows, patterns=looks, given=dict(enumerate(truth.features[:-1], 1)))

    def exact(rows: Tensor) -> Tensor:
        return network(rows, patterns=truth_of(subject, dictionaries, rows).patterns).logits

    def single(layer: int) -> Callable[[Tensor], Tensor]:
        site, first = f"blocks.{layer}.resid_post", start_stream(subject, layer)

        def logits(rows: Tensor) -> Tensor:
            features = clean(rows).features[layer]
            stream = decode_stream(dictionaries[layer], features, first)
            return subject.run(rows, replace={site: stream}).logits

        return logits

    found = {
        "clean": scored(subject, held, lambda rows: clean(rows).logits),
        "exact_patterns": scored(subject, held, exact),
        "single": [scored(subject, held, single(n)) for n in range(subject.n_layers)],
    }
    if network.spec.patterns:
        found["propagated"] = scored(subject, held, lambda rows: network(rows).logits)
    return found


def streams_in_place(
    subject: Subject, dictionaries: Sequence[Dictionary], held: Tensor
) -> dict[str, object]:
    """What the autoencoders cost with the subject's own blocks between them; and mean streams."""

    def spliced(chosen: Sequence[Dictionary]) -> Callable[[Tensor], Tensor]:
        named = {dictionary.spec.name: dictionary for dictionary in chosen}
        return lambda rows: Splice(named).run(subject, rows).logits

    sites = [dictionary.spec.reads[0].site for dictionary in dictionaries]
    means = site_means(subject, sites, held)
    return {
        "all": scored(subject, held, spliced(dictionaries)),
        "each": [scored(subject, held, spliced([one])) for one in dictionaries],
        "mean_streams": scored(
            subject, held, lambda rows: subject.run(rows, replace=ablation(sites, means)).logits
        ),
    }


@torch.no_grad()
def maps_between_layers(
    subject: Subject,
    dictionaries: Sequence[Dictionary],
    held: Tensor,
    network: LayerNetwork | None,
    train: Tensor,
) -> list[dict]:
    """Per block: R^2 of each feature after it, from the true features before it.

    Without a network: by a ridge map of the features at the same position, fitted on `train`.
    """
    truth = truth_of(subject, dictionaries, held)
    if network is not None:
        looks = None if network.spec.patterns else truth.patterns
        run = network(held, patterns=looks, given=dict(enumerate(truth.features[:-1], 1)))
        guesses = run.features
    else:
        guesses = _ridge(subject, dictionaries, held, train)
    return [_r2(guess, true) for guess, true in zip(guesses, truth.features, strict=True)]


def _ridge(
    subject: Subject, dictionaries: Sequence[Dictionary], held: Tensor, train: Tensor
) -> list[Tensor]:
    found = []
    known, asked = (truth_of(subject, dictionaries, rows).features for rows in (train, held))
    before = [
        torch.nn.functional.one_hot(rows, subject.vocab_size).float() for rows in (train, held)
    ]
    for layer, dictionary in enumerate(dictionaries):
        x, new = (f[:, 1:].flatten(0, 1) for f in before)
        y = known[layer][:, 1:, :-2].flatten(0, 1)
        W = ridge_map(x, y)
        pre = (new - x.mean(0)) @ W.T + y.mean(0)
        pre = torch.nn.functional.pad(pre.unflatten(0, (len(held), -1)), (0, 0, 1, 0))
        found.append(activate(pre, dictionary.activation.k))
        before = [known[layer], asked[layer]]
    return found


def _r2(guess: Tensor, true: Tensor) -> dict:
    mine, wanted = (f[:, 1:, :-2].flatten(0, 1) for f in (guess, true))
    alive = (wanted > 0).sum(0) >= FEWEST
    spread = (wanted - wanted.mean(0)).square().sum(0)
    r2 = (1 - (mine - wanted).square().sum(0) / spread.clamp_min(1e-12))[alive].numpy()
    return {
        "features": int(alive.sum()),
        "median": round(float(np.median(r2)), 3),
        "quartiles": [round(float(q), 3) for q in np.quantile(r2, [0.25, 0.75])],
        "above_0.9": round(float((r2 > 0.9).mean()), 3),
    }
