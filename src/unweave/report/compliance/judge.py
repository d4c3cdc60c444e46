"""An artifact held to a policy: a verdict for every requirement, with the numbers behind it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from unweave.artifact.check import check
from unweave.artifact.folder import Artifact, open_artifact
from unweave.artifact.records import Record
from unweave.artifact.scores import Interval, Scores
from unweave.progress import QUIET, Progress
from unweave.report.compliance.policy import Policy

Outcome = Literal["met", "not met", "not measured"]


class Requirement(Record):
    """One requirement and what the artifact has to say to it."""

    name: str
    """What is required, in a few words."""
    outcome: Outcome
    """What was not measured is not met either."""
    found: str
    """The numbers, in one sentence."""


class Compliance(Record):
    """Every requirement of a policy."""

    artifact: str
    """Its identity."""
    subject: str
    """SHA-256 over the weights of the model it is about."""
    policy: dict[str, float | int | bool]
    """The thresholds."""
    requirements: list[Requirement]
    """In the order of the page that explains them."""

    @property
    def complies(self) -> bool:
        """Whether every requirement is met."""
        return all(requirement.outcome == "met" for requirement in self.requirements)


def judge(folder: Path, policy: Policy | None = None, *, progress: Progress = QUIET) -> Compliance:
    """Hold a finished artifact to a policy; the files are hashed again on the way.

    Raises:
        UserError: `folder` is no finished artifact, or its scores cannot be read.
    """
    policy = policy or Policy()
    artifact = open_artifact(folder)
    scores = artifact.scores()
    requirements = [
        _conforms(folder, progress),
        _made_by(artifact, policy),
        _enough_text(scores, policy),
        *_faithful(scores, policy),
        _everything(artifact, policy),
        _controls(scores),
        *([_baselines(scores)] if policy.beat_baselines else []),
        *_described(scores, policy),
    ]
    return Compliance(
        artifact=artifact.manifest.identity,
        subject=artifact.manifest.subject.fingerprint,
        policy=policy.model_dump(),
        requirements=requirements,
    )


def _conforms(folder: Path, progress: Progress) -> Requirement:
    verdict = check(folder, progress=progress)
    count = len(verdict.violations)
    found = f"{verdict.files} files, {count} violations"
    if count:
        found += f", the first: {verdict.violations[0]}"
    return _verdict("the folder is what its manifest says", not count, found)


def _made_by(artifact: Artifact, policy: Policy) -> Requirement:
    code = artifact.manifest.code
    changed = code.commit is not None and code.commit.endswith("-dirty")
    found = f"unweave {code.version}, commit {code.commit or 'of a release'}"
    seeds = f", seed {artifact.manifest.seed}, {len(artifact.manifest.settings)} settings on record"
    return _verdict("it can be made again", not (changed and policy.clean_code), found + seeds)


def _enough_text(scores: Scores, policy: Policy) -> Requirement:
    tokens = scores.text.heldout_tokens
    return _verdict(
        f"measured on at least {policy.min_held_out_tokens:,} held-out tokens",
        tokens >= policy.min_held_out_tokens,
        f"{tokens:,} tokens of {scores.text.name}",
    )


def _faithful(scores: Scores, policy: Policy) -> Iterator[Requirement]:
    whole, clean = scores.splice.propagated, scores.splice.clean
    loss, lost = whole.ce_increase, scores.controls["mean_ablation"].ce_increase
    yield _below(
        f"loss increase at most {policy.max_ce_increase:g} nats, everything replaced",
        loss,
        policy.max_ce_increase,
    )
    share = loss.value / lost.value if lost.value > 0 else float("inf")
    yield _verdict(
        f"at most {policy.max_share_of_ablation:.0%} of what ablation costs",
        share <= policy.max_share_of_ablation,
        f"{share:.1%} of {lost.value:.3f} nats",
    )
    yield _above(
        f"the same top token at {policy.min_top1:.0%} of positions or more",
        whole.top1_agreement,
        policy.min_top1,
    )
    allowed = policy.max_mode_ratio * max(clean.ce_increase.value, 0.0)
    ends = [end for end in (loss.low, clean.ce_increase.high) if end is not None]
    # Two losses that cannot be told apart have no ratio to speak of.
    close = len(ends) == 2 and ends[0] <= ends[1]
    yield _verdict(
        f"propagated loss at most {policy.max_mode_ratio:g} times the clean one",
        loss.value <= allowed or close,
        f"{loss.value:.3f} propagated, {clean.ce_increase.value:.3f} clean",
    )


def _everything(artifact: Artifact, policy: Policy) -> Requirement:
    kinds = ("attn", "mlp", *(("q", "k") if policy.attention_in_features else ()))
    layers = artifact.manifest.subject.n_layers
    wanted = [f"L{layer}.{kind}" for layer in range(layers) for kind in kinds]
    missing = [name for name in wanted if name not in artifact.parts]
    what = "every block's parts are sparse" + (", patterns too" if len(kinds) > 2 else "")
    found = f"{len(wanted) - len(missing)} of {len(wanted)} parts"
    return _verdict(what, not missing, found + (f"; {missing[0]} is missing" if missing else ""))


def _controls(scores: Scores) -> Requirement:
    loss = scores.splice.propagated.ce_increase
    top = loss.value if loss.high is None else loss.high
    bad = [
        name
        for name, control in scores.controls.items()
        if (control.ce_increase.value if control.ce_increase.low is None else
            control.ce_increase.low) <= top
    ]  # fmt: skip
    losses = ", ".join(f"{n} {c.ce_increase.value:.3f}" for n, c in scores.controls.items())
    return _verdict("every control fails", not bad, f"loss increases: {losses}")


def _baselines(scores: Scores) -> Requirement:
    name = "every baseline with as many active units loses more"
    if not scores.baselines:
        return Requirement(name=name, outcome="not measured", found="there are no baselines")
    own = scores.four_numbers.math_accuracy
    top = own.value if own.high is None else own.high
    losses = {n: b.math_accuracy for n, b in scores.baselines.items()}
    beaten = all((x.value if x.low is None else x.low) > top for x in losses.values())
    return _verdict(name, beaten, ", ".join(f"{n} {x.value:.3f}" for n, x in losses.items()))


def _described(scores: Scores, policy: Policy) -> Iterator[Requirement]:
    words, shuffled = scores.semantic.auroc_mean, scores.semantic.shuffled.auroc_mean
    yield _above(f"descriptions detect at {policy.min_auroc:g} AUROC", words, policy.min_auroc)
    low = words.value if words.low is None else words.low
    high = shuffled.value if shuffled.high is None else shuffled.high
    found = f"{words.value:.3f}, given to other features {shuffled.value:.3f}"
    yield _verdict("descriptions beat the same words given to other features", low > high, found)
    alive = sum(part.alive_fraction * part.n_latents for part in scores.parts)
    share = scores.semantic.described / alive if alive else 0.0
    yield _verdict(
        f"at least {policy.min_described:.0%} of live features described",
        share >= policy.min_described,
        f"{share:.0%} of {alive:,.0f}",
    )


def _below(name: str, number: Interval, limit: float) -> Requirement:
    if number.high is None:
        return Requirement(name=name, outcome="not measured", found="no interval was measured")
    return _verdict(name, number.high <= limit, _said(number))


def _above(name: str, number: Interval, limit: float) -> Requirement:
    if number.low is None:
        return Requirement(name=name, outcome="not measured", found="no interval was measured")
    return _verdict(name, number.low >= limit, _said(number))


def _said(number: Interval) -> str:
    return f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f})"


def _verdict(name: str, met: bool, found: str) -> Requirement:
    return Requirement(name=name, outcome="met" if met else "not met", found=found)
