"""How much of a letter's feature is absorbed into other latents (Chanin et al. 2024, 2409.14507).

For each letter, on words that nothing was fitted on:

1. a ground-truth probe on the site's vectors says which words start with it;
2. the letter's main latents are those of the k-sparse probe, k growing while F1 gains more than
   .03 (a feature split into several is not absorbed);
3. of the words that the probe is right about, with a = x . p for its unit direction p and
   a_i = f_i d_i . p for each latent, it is *full absorption* if all main latents are silent, the
   latent of the largest a_i has cosine > .025 with p and makes up 40% of a;
4. the *fraction* is S / (S + M) with M = sum of a_i over the main latents and S that of the
   largest three others of cosine > .1, at most a - M; 0 if S < 40% of a or M >= a, 1 if M <= 0.

A latent counts by what it writes, so decoders need not have unit rows (with unit rows the terms
are those of sae-bench 0.6.0).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.dictionaries.code import Coder, SparseCode
from unweave.validate.protocols.absorption_probes import (
    Probes,
    ProbeSettings,
    SparseProbe,
    f1,
    fit_sparse_probe,
    train_probes,
)

SILENT = 1e-8
"""A latent below this does not fire."""


class MeasureSettings(BaseModel):
    """Settings of absorption; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    truth: ProbeSettings = ProbeSettings(batch=64)
    """The ground-truth probe."""
    sparse: ProbeSettings = ProbeSettings(decay=1e-6, l1=0.01)
    """The probe of all latents whose largest weights choose the main ones."""
    most_latents: PositiveInt = 10
    """Main latents of a letter at most."""
    gain: float = Field(default=0.03, gt=0)
    """A further main latent must raise F1 by more than this."""
    full_cosine: float = 0.025
    """Cosine with the probe from which one latent may have absorbed all."""
    fraction_cosine: float = 0.1
    """Cosine with the probe from which a latent may have absorbed a part."""
    share: float = 0.4
    """Share of the probe's projection that the absorbers must make up."""
    absorbers: PositiveInt = 3
    """Latents that may have absorbed a part together."""


class Words(NamedTuple):
    """Words by their vectors and their letters."""

    x: Float[Tensor, "words d"]
    letter: Int[Tensor, " words"]


class LetterFound(NamedTuple):
    """One letter."""

    letter: int
    probe_f1: float
    """Of the ground-truth probe."""
    sparse_f1: tuple[float, ...]
    """Of the k-sparse probe for k = 1, 2, ... as far as was looked."""
    main: tuple[int, ...]
    """Main latents."""
    words: int
    """Words that the ground-truth probe is right about."""
    fraction: float
    """Mean absorption fraction of these."""
    full: float
    """Share of these that are fully absorbed."""


class OfWords(NamedTuple):
    """Absorption word by word."""

    fraction: Float[Tensor, " words"]
    full: Bool[Tensor, " words"]


@torch.no_grad()
def absorption_of(
    coder: Coder,
    x: Float[Tensor, "words d"],
    direction: Float[Tensor, " d"],
    main: Int[Tensor, " main"],
    settings: MeasureSettings,
) -> OfWords:
    """Steps 3 and 4 for words of one letter; `direction` is the probe's, of any length."""
    p = direction / direction.norm()
    rows = coder.directions().to(p.dtype)
    along = rows @ p
    cosine = along / rows.norm(dim=1).clamp_min(1e-12)
    others = torch.ones(len(rows), dtype=torch.bool)
    others[main] = False
    fractions, fulls = [], []
    for group in x.split(256):
        acts = coder.encode(group).dense().to(p.dtype)
        projected, whole = acts * along, group.to(p.dtype) @ p
        mine = projected[:, main].sum(1)
        may = others & (cosine >= settings.fraction_cosine)
        able = torch.where(may & (projected > 0), projected, 0.0)
        taken = able.topk(min(settings.absorbers, able.shape[1]), dim=1).values.sum(1)
        fractions.append(_fraction(mine, taken, whole, settings.share))
        value, top = projected.max(1)
        silent = (acts[:, main] < SILENT).all(1)
        fulls.append(
            silent
            & (cosine[top] >= settings.full_cosine)
            & (whole >= 0)
            & (value >= settings.share * whole)
        )
    return OfWords(torch.cat(fractions), torch.cat(fulls))


def _fraction(mine: Tensor, taken: Tensor, whole: Tensor, share: float) -> Tensor:
    part = torch.minimum(taken, whole - mine)
    found = (part / (part + mine)).clamp(0, 1)
    found = torch.where(mine <= 0, torch.ones_like(found), found)
    none = (mine >= whole) | (taken / whole < share)
    return torch.where(none, torch.zeros_like(found), found)


def truth_probes(train: Words, n_letters: int, settings: MeasureSettings, *, seed: int) -> Probes:
    """Step 1."""
    return train_probes(train.x, train.letter, n_letters, settings.truth, seed=seed)


def probe_f1(probes: Probes, test: Words) -> list[float]:
    """F1 of each letter's ground-truth probe on words that it was not fitted on."""
    said = probes.scores(test.x) > 0
    return [f1(said[:, at], test.letter == at) for at in range(said.shape[1])]


class MainLatents(NamedTuple):
    """Step 2 for one letter."""

    latents: Int[Tensor, " main"]
    f1: tuple[float, ...]
    """For k = 1, 2, ..., the first that gained too little included."""


@torch.no_grad()
def main_latents(
    coder: Coder, train: Words, test: Words, n_letters: int, settings: MeasureSettings, *, seed: int
) -> list[MainLatents]:
    """Step 2: the latents that stand for each letter.

    Probes read how long a vector each latent writes: their penalties and rates are published for
    dictionaries of unit rows in the site's own units, and a dictionary may count in others.
    """
    code, held = (_written(coder, words.x) for words in (train, test))
    with torch.enable_grad():
        l1 = train_probes(code, train.letter, n_letters, settings.sparse, seed=seed)
    found = []
    for letter in range(n_letters):
        most = min(settings.most_latents, coder.n_latents)
        order = l1.weight[letter].topk(most).indices
        fitted, seen = _columns(code, order), _columns(held, order)
        yes, true = train.letter == letter, test.letter == letter
        scores: list[float] = []
        best = 0
        for k in range(1, most + 1):
            probe: SparseProbe = fit_sparse_probe(order[:k], fitted[:, :k], yes)
            scores.append(f1(probe.scores(seen[:, :k]) > 0, true))
            if best and scores[-1] <= scores[best - 1] + settings.gain:
                break
            best = k
        found.append(MainLatents(order[:best], tuple(scores)))
    return found


def _written(coder: Coder, x: Tensor) -> SparseCode:
    code, length = coder.encode(x), coder.directions().norm(dim=1)
    return SparseCode(code.support, code.value * length[code.support.latent])


def _columns(code: SparseCode, latents: Tensor) -> Tensor:
    """Activations of few latents, one column each."""
    place = torch.full((code.n_latents,), -1)
    place[latents] = torch.arange(len(latents))
    column = place[code.support.latent]
    listed = column >= 0
    out = torch.zeros(code.support.rows, len(latents))
    out[code.support.row[listed], column[listed]] = code.value[listed].float()
    return out


def measure_letters(
    coder: Coder, test: Words, probes: Probes, main: list[MainLatents], settings: MeasureSettings
) -> list[LetterFound]:
    """Steps 3 and 4 for every letter that has words which its probe is right about."""
    scores, quality = probes.scores(test.x), probe_f1(probes, test)
    found = []
    for letter, chosen in enumerate(main):
        right = (test.letter == letter) & (scores[:, letter] > 0)
        if not right.any():
            continue
        each = absorption_of(coder, test.x[right], probes.weight[letter], chosen.latents, settings)
        found.append(
            LetterFound(
                letter,
                quality[letter],
                chosen.f1,
                tuple(chosen.latents.tolist()),
                int(right.sum()),
                float(each.fraction.mean()),
                float(each.full.double().mean()),
            )
        )
    return found
