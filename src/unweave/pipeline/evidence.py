"""The stage that collects evidence: what fires where, for the parts and for their rivals."""

import numpy as np
import torch

from unweave.artifact import layout
from unweave.artifact.arrays import open_array, save_array
from unweave.artifact.atomic import new_folder, write_json
from unweave.artifact.feature_id import short_hash
from unweave.artifact.firings import Firings, write_firings
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.firings import Encoder, PartFirings, collect_firings
from unweave.describe.evidence import PartEvidence
from unweave.describe.subject_tokens import token_texts
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import input_site
from unweave.pipeline.job import Job
from unweave.pipeline.results import FiringsResult
from unweave.pipeline.rivals import Rivals
from unweave.subject.rows import TokenRows
from unweave.validate.baselines import SignedLatents


def collect(job: Job, parts: dict[str, Part], others: Rivals, text: TokenRows) -> None:
    """One pass over training rows, to explain, and held-out rows, to score; kept on disk."""

    def collected() -> FiringsResult:
        rows, explaining = evidence_rows(job, parts, text)
        encoders: dict[str, tuple[str, Encoder]] = {
            name: (input_site(name), part) for name, part in parts.items()
        }
        for kind, stand_ins in others.baselines.items():
            for name, few in stand_ins.items():
                encoders[f"{kind}/{name}"] = (input_site(name), SignedLatents(few))
        firings = collect_firings(
            job.subject,
            encoders,
            rows,
            workers=job.workers,
            harvest=job.settings.harvest,
            progress=job.progress,
        )
        with new_folder(job.artifact / "firings") as folder:
            save_array(folder / "tokens.npy", rows.numpy().astype(np.int32))
            write_json(folder / "token_text.json", list(token_texts(job.subject)))
            for name, part in parts.items():
                (folder / name).mkdir()
                fired = firings[name]
                write_firings(
                    folder / name,
                    fired.latent,
                    fired.value,
                    fired.token_indptr,
                    part.spec.n_latents,
                )
        for kind in others.baselines:
            (job.folder / kind).mkdir(exist_ok=True)
            for name in parts:
                arrays = {
                    k: torch.from_numpy(v) for k, v in vars(firings[f"{kind}/{name}"]).items()
                }
                save_tensors(job.folder / kind / f"{name}.safetensors", arrays)
        return FiringsResult(explain_rows=explaining)

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


def explain_rows(job: Job) -> int:
    """How many of the evidence rows explainers may see, once firings have been collected."""
    return job.result("firings", FiringsResult).explain_rows


def part_firings(job: Job, name: str, kind: str = "") -> PartFirings:
    """What fired in a part, or in a baseline's stand-in of that name."""
    if kind:
        tensors = load_tensors(job.folder / kind / f"{name}.safetensors")
        return PartFirings(**{field: tensor.numpy() for field, tensor in tensors.items()})
    fired = Firings.open(layout.firings_of(job.artifact, name))
    arrays = (fired.token_indptr, fired.latent, fired.value)
    return PartFirings(*(np.asarray(array) for array in arrays))


def part_evidence(
    job: Job, name: str, n_latents: int, vocabulary: Vocabulary, kind: str = ""
) -> PartEvidence:
    """Firings as the describing room takes them."""
    fired = part_firings(job, name, kind)
    return PartEvidence(
        part=name,
        tokens=open_array(job.artifact / layout.TOKENS, dtype=np.int32, ndim=2),
        explain_rows=explain_rows(job),
        token_indptr=fired.token_indptr,
        latent=fired.latent,
        value=fired.value.astype(np.float32),
        n_latents=n_latents,
        vocabulary=vocabulary,
        digest="" if kind else short_hash(layout.weights_of(job.artifact, name)),
    )
