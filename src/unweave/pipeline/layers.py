"""The same dictionaries at many sites, one task a site, on processes or machines.

OUT/SITE/            what `pipeline.train` makes of that site
OUT/tasks/SITE.json  what was asked for, and the scores
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unweave.artifact.atomic import Json
from unweave.errors import UserError
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.progress import QUIET, Progress
from unweave.training.fanout.executors import Executor
from unweave.training.fanout.tasks import Task, fan_out


class _Site(NamedTuple):
    """One site's task."""

    subject: str
    settings: TrainSiteSettings
    out: Path


def train_layers(
    subject: str,
    settings: TrainSiteSettings,
    sites: Sequence[str],
    *,
    out: Path,
    executor: Executor | None = None,
    progress: Progress = QUIET,
) -> dict[str, Json]:
    """Train at every site by itself, `settings` saying everything but the site; scores by site.

    Where `settings.to` names sites to write, it has one for each site read.

    Each task runs the subject up to its own site: it takes more passes of the subject than training
    all sites in one process does, and is meant for more machines than one has sites to train at
    once. One process a core when no executor is given; give each one thread. A task that was cut
    off goes on from its own checkpoints.

    Raises:
        UserError: whatever `train_site` refuses, at the first site; not as many to write as to
            read.
    """
    out = out.absolute()
    if settings.to and len(settings.to) != len(sites):
        raise UserError(
            f"{len(sites)} sites to read and {len(settings.to)} to write make no pairs: name as "
            "many of each"
        )
    tasks = {}
    for place, site in enumerate(sites):
        pair = {"site": (site,), "to": settings.to[place : place + 1]}
        own = settings.model_copy(update={**pair, "threads": settings.threads or 1})
        asked = {"subject": subject, "settings": own.model_dump(mode="json")}
        tasks[site] = Task(asked, _Site(subject, own, out / site))
    return fan_out(
        _train, tasks, folder=out / "tasks", executor=executor, title="Sites", progress=progress
    )


def _train(site: _Site) -> Json:
    folder = train_site(site.subject, site.settings, out=site.out)
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
