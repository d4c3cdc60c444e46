"""Parts described side by side, each a task of its own that is done once."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from unweave.artifact.atomic import Json
from unweave.describe.describe import DescribeSettings, Description, describe_part
from unweave.describe.evidence import PartEvidence
from unweave.progress import QUIET, Progress
from unweave.training.fanout.executors import Executor
from unweave.training.fanout.tasks import Task, fan_out

_LIST = TypeAdapter(list[Description])


def describe_parts(
    evidence: Mapping[str, PartEvidence],
    settings: DescribeSettings | None = None,
    *,
    folder: Path,
    executor: Executor | None = None,
    progress: Progress = QUIET,
) -> dict[str, list[Description]]:
    """`describe_part` for every part, on processes or machines; goes on where it was cut off.

    Results are kept in `folder`, a file a part. A part is known there by its name, its dictionary's
    digest, its text and firings in number, and the settings.
    """
    settings = settings or DescribeSettings()
    tasks = {name: Task(_asked(one, settings), (one, settings)) for name, one in evidence.items()}
    found = fan_out(
        _described, tasks, folder=folder, executor=executor, title="Describing", progress=progress
    )
    return {name: _LIST.validate_python(said) for name, said in found.items()}


def _asked(one: PartEvidence, settings: DescribeSettings) -> Json:
    return {
        "part": one.part, "digest": one.digest, "latents": one.n_latents,
        "rows": len(one.tokens), "explain_rows": one.explain_rows, "firings": len(one.latent),
        "settings": settings.model_dump(mode="json"),
    }  # fmt: skip


def _described(piece: tuple[PartEvidence, DescribeSettings]) -> Json:
    return _LIST.dump_python(describe_part(*piece), mode="json")
