"""What is in the networks of the worlds, without any dictionary, beside networks without it."""

from functools import partial
from typing import Any

import torch

from unweave.subject import Subject
from unweave.validate.truth.fourier import embedding_spectrum, margin, without_frequencies
from unweave.validate.truth.states import belief_r2
from unweave.validate.worlds.catalogue import LANGUAGES
from unweave.validate.worlds.hmm import HiddenMarkov, HiddenRows
from unweave.validate.worlds.hmm_network import (
    LearnerSettings,
    excess,
    stream,
    train_hmm_subject,
    untrained_hmm_subject,
)
from unweave.validate.worlds.modular import (
    ModularSettings,
    accuracy,
    held_out,
    targets,
    train_modular,
    untrained_modular,
)

ROWS = 1500


def language(name: str, seed: int) -> dict[str, float]:
    process, settings = LANGUAGES[name](), LearnerSettings()
    rows = process.draw(ROWS, settings.positions, seed=2_000_000_001)
    others = process.draw(ROWS, settings.positions, seed=2_000_000_002)
    found: dict[str, float] = {"entropy rate": process.entropy_rate()}
    for kind, make in (("trained", train_hmm_subject), ("untrained", untrained_hmm_subject)):
        subject = make(process, settings, seed=seed)
        ce = excess(subject, process, others)
        found |= {f"{kind}.ce": ce.ce, "bayes.ce": ce.best, "last token.ce": ce.last_token}
        for layer in range(settings.layers):
            site = f"blocks.{layer}.resid_post"
            for what, value in r2(process, subject, site, rows, others).items():
                found[f"{kind}.{site}.{what}"] = value
    token, other = (
        torch.nn.functional.one_hot(r.tokens[:, 1:].flatten()).float() for r in (rows, others)
    )
    belief, truth = (r.beliefs[:, 1:].flatten(0, 1) for r in (rows, others))
    found["last token.R2"] = belief_r2(token, belief, other, truth)
    return rounded(found)


def r2(
    process: HiddenMarkov, subject: Subject, site: str, rows: HiddenRows, others: HiddenRows
) -> dict[str, float]:
    x, y = stream(subject, rows, site), stream(subject, others, site)
    belief, truth = (r.beliefs[:, 1:].flatten(0, 1) for r in (rows, others))
    order = torch.randperm(len(belief), generator=torch.Generator().manual_seed(0))
    found = {
        "R2": belief_r2(x, belief, y, truth),
        "R2 shuffled": belief_r2(x, belief[order], y, truth),
    }
    if process.name == "nested":
        topic, known = (b.view(len(b), 3, 3).sum(2) for b in (belief, truth))
        found["R2 of topics"] = belief_r2(x, topic, y, known)
    return found


def modular(seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    task = ModularSettings()
    memory = task.model_copy(update={"labels": "random", "train_share": 1.0})
    for kind, settings in (("trained", task), ("random answers", memory)):
        model, answer = train_modular(settings, seed=seed), targets(settings, seed=seed)
        spectrum = embedding_spectrum(model)
        others = [k for k in range(1, settings.p // 2 + 1) if k not in spectrum.key]
        found |= {
            f"{kind}.accuracy": accuracy(model, answer),
            f"{kind}.key": len(spectrum.key),
            f"{kind}.effective": spectrum.effective,
            f"{kind}.margin": margin(model, answer),
            f"{kind}.accuracy without key": accuracy(
                without_frequencies(model, spectrum.key), answer
            ),
            f"{kind}.accuracy without others": accuracy(without_frequencies(model, others), answer),
            f"{kind}.margin without strongest": margin(
                without_frequencies(model, spectrum.key[:1]), answer
            ),
        }
        if kind == "trained":
            unseen = held_out(settings, seed=seed)
            found["trained.held-out accuracy"] = accuracy(model, answer, unseen)
    blank = embedding_spectrum(untrained_modular(task, seed=seed))
    found |= {"untrained.key": len(blank.key), "untrained.effective": blank.effective}
    return rounded(found)


def rounded(found: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in found.items()}


ABOUT: dict[str, Any] = {
    **{f"language, {name}": partial(language, name) for name in LANGUAGES},
    "modular, trained": modular,
}
