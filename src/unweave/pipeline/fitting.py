"""The stages that make parts: text, local fit, joint tuning."""

import json
import shutil

from unweave.artifact.atomic import new_folder, write_json
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import input_site, output_site
from unweave.dictionaries.spec import PartSpec
from unweave.errors import UserError
from unweave.pipeline.job import Job
from unweave.pipeline.results import Done, TextResult
from unweave.subject import Subject
from unweave.subject.rows import TokenRows, token_rows
from unweave.training.checkpoint import Checkpoints
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.joint import tune_jointly


def part_specs(
    subject: Subject,
    *,
    latents: int,
    k_mlp: int,
    k_attention: int,
    skip: bool,
    k_query: int = 0,
    k_key: int = 0,
    gated: bool = False,
) -> list[PartSpec]:
    """The parts of every block, in the order of computation; `latents` is a multiple of d_model.

    Queries and keys have a part where theirs may have active latents. An attention latent reads
    one head, so their number is rounded up to fill the heads evenly. MLPs' latents may be gated.
    """
    wanted, heads, d_model = latents * subject.d_model, subject.n_heads, subject.d_model
    z, kv = heads * subject.d_head, subject.n_kv_heads * subject.d_head
    even = -(-wanted // heads) * heads
    kinds = {
        "q": {"d_in": d_model, "d_out": z, "n_latents": wanted, "k": k_query},
        "k": {"d_in": d_model, "d_out": kv, "n_latents": wanted, "k": k_key},
        "attn": {"d_in": z, "d_out": d_model, "n_latents": even, "k": k_attention, "heads": heads},
        "mlp": {
            "d_in": d_model,
            "d_out": d_model,
            "n_latents": wanted,
            "k": k_mlp,
            "skip": skip,
            "gated": gated,
        },
    }
    return [
        PartSpec.model_validate(
            {"name": name, "input_site": input_site(name), "output_site": output_site(name)}
            | sizes
            | {"k": min(sizes["k"], wanted)}
        )
        for layer in range(subject.n_layers)
        for kind, sizes in kinds.items()
        for name in [f"L{layer}.{kind}"]
        if sizes["k"]
    ]


def read_text(job: Job) -> TokenRows:
    """Token rows of the text, kept so that a resumed job sees the very same."""
    path = job.folder / "text.safetensors"

    def read() -> TextResult:
        rows = token_rows(
            job.subject,
            job.settings.text,
            tokens=job.settings.tokens,
            context=job.settings.context,
            seed=job.settings.seed,
            progress=job.progress,
        )
        save_tensors(path, {"train": rows.train, "heldout": rows.heldout})
        return TextResult(source=rows.source, description=rows.description, sha256=rows.sha256)

    try:
        about = job.stage("text", TextResult, read)
    except UserError:
        job.withdraw()  # or the same command with a text that can be read would be refused
        raise
    tensors = load_tensors(path)
    return TokenRows(
        train=tensors["train"],
        heldout=tensors["heldout"],
        source=about.source,
        description=about.description,
        sha256=about.sha256,
    )


def fit_locally(job: Job, text: TokenRows) -> None:
    """Every part fitted to its block, in one pass of the subject."""

    def fit() -> Done:
        settings = job.settings
        specs = part_specs(
            job.subject,
            latents=settings.latents,
            k_mlp=settings.k_mlp,
            k_attention=settings.k_attention,
            k_query=settings.k_query,
            k_key=settings.k_key,
            skip=settings.skip,
            gated=settings.gated,
        )
        parts, metrics = fit_parts(
            job.subject,
            specs,
            text.train,
            workers=job.workers,
            seed=settings.seed + 1,
            settings=settings.local,
            harvest=settings.harvest,
            checkpoints=Checkpoints(job.folder / "local", seconds=settings.checkpoint_seconds),
            progress=job.progress,
        )
        with new_folder(job.folder / "local-parts") as folder:
            save_parts(parts, folder)
        write_json(job.folder / "local-metrics.json", metrics)
        return Done()

    job.stage("local", Done, fit)
    shutil.rmtree(job.folder / "local", ignore_errors=True)  # checkpoints are large


def tune(job: Job, text: TokenRows) -> dict[str, Part]:
    """Parts tuned together; they come back from the artifact's own files."""

    def tuned() -> Done:
        parts = load_parts(job.folder / "local-parts", job.subject.device)
        metrics = tune_jointly(
            job.subject,
            parts,
            text.train,
            workers=job.workers,
            seed=job.settings.seed + 2,
            settings=job.settings.joint,
            checkpoints=Checkpoints(job.folder / "joint", seconds=job.settings.checkpoint_seconds),
            progress=job.progress,
        )
        with new_folder(job.artifact / "dictionaries") as folder:
            save_parts(parts, folder)
        write_json(job.folder / "joint-metrics.json", metrics)
        return Done()

    job.stage("joint", Done, tuned)
    shutil.rmtree(job.folder / "joint", ignore_errors=True)
    return load_parts(job.artifact / "dictionaries", job.subject.device)


def training_log(job: Job) -> list[dict[str, float | int | str]]:
    """What both training stages logged."""
    return [
        line
        for stage in ("local", "joint")
        for line in json.loads((job.folder / f"{stage}-metrics.json").read_text(encoding="utf-8"))
    ]
