"""The stages that put words to features, and score the words."""

from dataclasses import replace

import numpy as np
import torch

from unweave.artifact import descriptions as store
from unweave.artifact import layout
from unweave.artifact.features import PROMOTED
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.edges import logit_directions, written_by
from unweave.describe import stored
from unweave.describe.describe import Description, describe_part
from unweave.describe.features import feature_table
from unweave.describe.subject_tokens import vocabulary_of
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.pipeline.evidence import part_evidence
from unweave.pipeline.job import Job
from unweave.pipeline.results import SemanticResult
from unweave.pipeline.rivals import Rivals
from unweave.pipeline.semantics import summarise
from unweave.subject import Subject
from unweave.validate.baselines import FewCoefficients
from unweave.validate.semantic import PartScores, score_part, with_scores


def describe(job: Job, parts: dict[str, Part]) -> SemanticResult:
    """Say what every latent does, and score what was said on held-out text."""

    def described() -> SemanticResult:
        vocabulary = vocabulary_of(job.subject)
        unembed = logit_directions(job.subject)
        (job.artifact / "features").mkdir(exist_ok=True)
        said: list[Description] = []
        scores: list[PartScores] = []
        with job.progress.task("Describing", total=len(parts), unit="parts") as advance:
            for descriptions, part_scores in job.workers.map(
                lambda part: _describe_one(job, part, vocabulary, unembed), parts.values()
            ):
                said += [description for description in descriptions if description.count]
                scores.append(part_scores)
                advance(1)
        store.write_descriptions(job.artifact / layout.DESCRIPTIONS, stored(said))
        return summarise(scores, sum(one.bits for one in said), len(said))

    return job.stage("describe", SemanticResult, described)


def describe_baselines(job: Job, others: Rivals) -> dict[str, SemanticResult]:
    """The same for every baseline's coefficients; only the totals are kept."""
    return {
        kind: job.stage(
            f"describe-{kind}", SemanticResult, lambda k=kind, s=placed: _describe_rival(job, k, s)
        )
        for kind, placed in others.baselines.items()
    }


def _describe_rival(job: Job, kind: str, placed: dict[str, FewCoefficients]) -> SemanticResult:
    vocabulary = vocabulary_of(job.subject)

    def describe_one(name: str) -> tuple[float, int, PartScores]:
        latents = 2 * len(placed[name].W_dec)  # a coefficient of either sign
        evidence = part_evidence(job, name, latents, vocabulary, kind)
        said = describe_part(evidence, job.settings.describe)
        alive = [one for one in said if one.count]
        return sum(one.bits for one in alive), len(alive), score_part(evidence, said)

    bits, described, scores = 0.0, 0, []
    with job.progress.task(f"Describing {kind}", total=len(placed), unit="parts") as advance:
        for one_bits, alive, part_scores in job.workers.map(describe_one, placed):
            bits, described = bits + one_bits, described + alive
            scores.append(part_scores)
            advance(1)
    return summarise(scores, bits, described)


def _describe_one(
    job: Job, part: Part, vocabulary: Vocabulary, unembed: torch.Tensor
) -> tuple[list[Description], PartScores]:
    plain = part_evidence(job, part.spec.name, part.spec.n_latents, vocabulary)
    table = feature_table(plain)
    limit = job.settings.evidence.promoted_features
    effects = logit_effects(job.subject, part, unembed, table, limit)
    evidence = replace(plain, promoted=effects["promoted_token"].numpy())
    descriptions = describe_part(evidence, job.settings.describe)
    scores = score_part(evidence, descriptions)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in table.items()}
    save_tensors(layout.features_of(job.artifact, part.spec.name), tensors | effects)
    return with_scores(descriptions, scores), scores


def logit_effects(
    subject: Subject,
    part: Part,
    unembed: torch.Tensor,
    table: dict[str, np.ndarray],
    limit: int,
) -> dict[str, torch.Tensor]:
    """Tokens that each of the strongest latents promotes and suppresses when it writes one unit.

    The direct path: decoder row through the final norm's gain and the centred unembedding. What
    writes no stream (queries, keys) has none: tokens are -1.
    """
    n = part.spec.n_latents
    mass = table["count"] * table["mean_active"]
    chosen = torch.from_numpy(np.sort(np.argsort(-mass, kind="stable")[:limit]).copy())
    out = {}
    for name in ("promoted", "suppressed"):
        out[f"{name}_token"] = torch.full((n, PROMOTED), -1, dtype=torch.int32)
        out[f"{name}_logit"] = torch.zeros(n, PROMOTED)
    for group in chosen.split(256) if place_of(part.spec.name).writes_stream else ():
        with torch.no_grad():
            written = written_by(subject, part, group) * part.spec.output_scale
            logits = written @ unembed.T  # where the subject is; what is kept of them is here
        for name, sign in (("promoted", 1), ("suppressed", -1)):
            top = (sign * logits).topk(min(PROMOTED, logits.shape[1]), dim=1)
            width = top.indices.shape[1]
            out[f"{name}_token"][group, :width] = top.indices.to(torch.int32).cpu()
            out[f"{name}_logit"][group, :width] = (sign * top.values).cpu()
    return out


def features_alive(job: Job, name: str) -> float:
    """Share of a part's latents that fired anywhere on the evidence."""
    count = load_tensors(layout.features_of(job.artifact, name))["count"]
    return (count > 0).float().mean().item()
