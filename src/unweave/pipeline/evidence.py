"""The stages that look at features: firings, descriptions and their scores, interactions."""

import numpy as np
import torch

from unweave.artifact import descriptions as store
from unweave.artifact import layout
from unweave.artifact.arrays import save_array
from unweave.artifact.atomic import new_folder, write_json
from unweave.artifact.feature_id import FeatureId, short_hash
from unweave.artifact.features import PROMOTED
from unweave.artifact.firings import Firings, write_firings
from unweave.artifact.tables import write_table
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.edges import LOGITS, TOKENS, interaction_edges
from unweave.decompile.firings import PartFirings, collect_firings
from unweave.describe import stored
from unweave.describe.describe import Description, describe_part
from unweave.describe.evidence import PartEvidence
from unweave.describe.features import feature_table
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.part import Part
from unweave.pipeline.job import Job
from unweave.pipeline.results import Done, FiringsResult, SemanticResult
from unweave.pipeline.semantics import summarise
from unweave.subject import Subject
from unweave.subject.rows import TokenRows
from unweave.validate.semantic import PartScores, score_part, with_scores


def collect(job: Job, parts: dict[str, Part], text: TokenRows) -> None:
    """Which latents fire where, over evidence rows: training rows to explain, held-out to score."""

    def collected() -> FiringsResult:
        rows, explain_rows = evidence_rows(job, parts, text)
        firings = collect_firings(
            job.subject,
            parts,
            rows,
            workers=job.workers,
            harvest=job.settings.harvest,
            progress=job.progress,
        )
        with new_folder(job.artifact / "firings") as folder:
            save_array(folder / "tokens.npy", rows.numpy().astype(np.int32))
            write_json(folder / "token_text.json", list(token_texts(job.subject)))
            for name, fired in firings.items():
                (folder / name).mkdir()
                write_firings(
                    folder / name,
                    fired.latent,
                    fired.value,
                    fired.token_indptr,
                    parts[name].spec.n_latents,
                )
        return FiringsResult(explain_rows=explain_rows)

    job.stage("firings", FiringsResult, collected)


def evidence_rows(job: Job, parts: dict[str, Part], text: TokenRows) -> tuple[torch.Tensor, int]:
    """Rows to look at, and how many of them explainers may see."""
    settings = job.settings.evidence
    active = sum(part.spec.k for part in parts.values())
    tokens = min(settings.most_tokens, settings.firings // active)
    rows = max(2, tokens // text.train.shape[1])
    held = min(len(text.heldout), max(1, round(rows * settings.heldout_share)))
    explain = min(len(text.train), max(1, rows - held))
    return torch.cat([text.train[:explain], text.heldout[:held]]), explain


def token_texts(subject: Subject) -> tuple[str, ...]:
    """Every token of the vocabulary as text, alone; its number where there is no tokenizer."""
    size = subject.vocab_size
    tokenizer = subject.tokenizer
    if tokenizer is None:
        return tuple(f"<{token}>" for token in range(size))
    known = min(size, len(tokenizer))
    pieces = [tokenizer.piece(token) for token in range(known)]
    return (*pieces, *(f"<{token}>" for token in range(known, size)))


def describe(job: Job, parts: dict[str, Part]) -> SemanticResult:
    """Say what every latent does, and score what was said on held-out text."""

    def described() -> SemanticResult:
        texts = token_texts(job.subject)
        vocabulary = Vocabulary.from_decode(texts.__getitem__, len(texts))
        unembed = job.subject.unembed().float()
        unembed = unembed - unembed.mean(0)
        (job.artifact / "features").mkdir(exist_ok=True)
        said: list[store.Description] = []
        scores: list[PartScores] = []
        bits = 0.0
        with job.progress.task("Describing", total=len(parts), unit="parts") as advance:
            for one in job.workers.map(
                lambda part: _describe_one(job, part, vocabulary, unembed), parts.values()
            ):
                said += stored([d for d in one[0] if d.count > 0])
                bits += sum(d.bits for d in one[0] if d.count > 0)
                scores.append(one[1])
                advance(1)
        store.write_descriptions(job.artifact / layout.DESCRIPTIONS, said)
        return summarise(scores, bits, len(said))

    return job.stage("describe", SemanticResult, described)


def part_evidence(
    job: Job, part: Part, vocabulary: Vocabulary, promoted: np.ndarray | None
) -> PartEvidence:
    """A part's firings as the describing room takes them, read from the artifact."""
    fired = Firings.open(layout.firings_of(job.artifact, part.spec.name))
    return PartEvidence(
        part=part.spec.name,
        tokens=np.load(job.artifact / layout.TOKENS),
        explain_rows=explain_rows(job),
        token_indptr=np.asarray(fired.token_indptr),
        latent=np.asarray(fired.latent),
        value=np.asarray(fired.value).astype(np.float32),
        n_latents=part.spec.n_latents,
        vocabulary=vocabulary,
        promoted=promoted,
        digest=short_hash(layout.weights_of(job.artifact, part.spec.name)),
    )


def explain_rows(job: Job) -> int:
    """How many of the evidence rows explainers may see, once firings have been collected."""
    return job.result("firings", FiringsResult).explain_rows


def _describe_one(
    job: Job, part: Part, vocabulary: Vocabulary, unembed: torch.Tensor
) -> tuple[list[Description], PartScores]:
    plain = part_evidence(job, part, vocabulary, None)
    table = feature_table(plain)
    effects = logit_effects(part, unembed, table, job.settings.evidence.promoted_features)
    evidence = part_evidence(job, part, vocabulary, effects["promoted_token"].numpy())
    descriptions = describe_part(evidence, job.settings.describe)
    scores = score_part(evidence, descriptions)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in table.items()}
    save_tensors(layout.features_of(job.artifact, part.spec.name), tensors | effects)
    return with_scores(descriptions, scores), scores


def logit_effects(
    part: Part, unembed: torch.Tensor, table: dict[str, np.ndarray], limit: int
) -> dict[str, torch.Tensor]:
    """Tokens that each of the strongest latents promotes and suppresses when it writes one unit.

    The direct path: decoder row through the final norm's gain and the centred unembedding.
    """
    n = part.spec.n_latents
    mass = table["count"] * table["mean_active"]
    chosen = torch.from_numpy(np.sort(np.argsort(-mass, kind="stable")[:limit]).copy())
    out = {}
    for name in ("promoted", "suppressed"):
        out[f"{name}_token"] = torch.full((n, PROMOTED), -1, dtype=torch.int32)
        out[f"{name}_logit"] = torch.zeros(n, PROMOTED)
    for group in chosen.split(256):
        with torch.no_grad():
            logits = part.W_dec[group] @ unembed.T
        for name, sign in (("promoted", 1), ("suppressed", -1)):
            top = (sign * logits).topk(min(PROMOTED, logits.shape[1]), dim=1)
            width = top.indices.shape[1]
            out[f"{name}_token"][group, :width] = top.indices.to(torch.int32)
            out[f"{name}_logit"][group, :width] = sign * top.values
    return out


def connect(job: Job, parts: dict[str, Part]) -> None:
    """Interaction edges between features, from weights, ranked by what they deliver."""

    def connected() -> Done:
        firings = {}
        for name in parts:
            fired = Firings.open(layout.firings_of(job.artifact, name))
            firings[name] = PartFirings(
                np.asarray(fired.token_indptr), np.asarray(fired.latent), np.asarray(fired.value)
            )
        edges = interaction_edges(
            job.subject,
            parts,
            firings,
            workers=job.workers,
            settings=job.settings.edges,
            progress=job.progress,
        )
        digest = {name: short_hash(layout.weights_of(job.artifact, name)) for name in parts}

        def named(part: str, index: int) -> str:
            if part in (TOKENS, LOGITS):
                return f"{part}/{index}"
            return str(FeatureId(part, index, digest[part]))

        (job.artifact / "graph").mkdir(exist_ok=True)
        write_table(
            job.artifact / layout.EDGES_TABLE,
            {
                "source": [named(*e) for e in zip(edges.source_part, edges.source, strict=True)],
                "target": [named(*e) for e in zip(edges.target_part, edges.target, strict=True)],
                "weight": np.array(edges.weight, dtype=np.float32),
                "kind": ["virtual"] * len(edges.weight),
                "used": np.array(edges.used, dtype=np.float32),
            },
        )
        return Done()

    job.stage("edges", Done, connected)


def features_alive(job: Job, name: str) -> float:
    """Share of a part's latents that fired anywhere on the evidence."""
    count = load_tensors(layout.features_of(job.artifact, name))["count"]
    return (count > 0).float().mean().item()
