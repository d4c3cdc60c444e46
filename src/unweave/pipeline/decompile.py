"""From a model and text to an artifact: this is the whole path, a line a stage.

text -> parts, each fitted to its block -> parts tuned together -> firings -> descriptions,
scored -> interaction edges -> splice modes -> baselines and controls -> samples -> scores
"""

import shutil
from pathlib import Path

from unweave._version import __version__
from unweave.activations.workers import Workers
from unweave.pipeline import connecting, describing, evidence, fitting, measuring, writing
from unweave.pipeline.job import Job, Request, begin, finished, unfinished
from unweave.pipeline.rivals import rivals
from unweave.pipeline.settings import DecompileSettings
from unweave.progress import QUIET, Progress
from unweave.subject import Subject, load_subject


def decompile(
    subject: str | Subject,
    *,
    settings: DecompileSettings | None = None,
    out: Path,
    progress: Progress = QUIET,
) -> Path:
    """Take a language model apart and write the artifact to `out`; returns `out`.

    Cut off at any moment and called again with the same arguments it goes on, and ends with the
    artifact it would have made in one go, hash for hash (clock and memory readings apart).

    Raises:
        UserError: the subject or text cannot be used, `out` is taken, or the disk refuses.
    """
    settings = settings or DecompileSettings()
    loaded = load_subject(subject, device=settings.device) if isinstance(subject, str) else subject
    resolved = settings.resolved(loaded)
    out = out.absolute()
    request = Request.of(loaded, resolved, __version__)
    if finished(out, request):
        shutil.rmtree(unfinished(out), ignore_errors=True)
        progress.say(f"{out} is that artifact already")
        return out
    begin(out, request)
    with Workers(resolved.threads) as workers:
        job = Job(loaded, resolved, workers, out, progress)
        text = fitting.read_text(job)
        fitting.fit_locally(job, text)
        parts = fitting.tune(job, text)
        others = rivals(job, parts, text)
        evidence.collect(job, parts, others, text)
        semantic = describing.describe(job, parts)
        baselines = describing.describe_baselines(job, others)
        connecting.connect(job, parts)
        spliced = measuring.splice(job, parts, others, text)
        measuring.continue_prompts(job, parts, text)
        writing.write_scores_and_metrics(job, parts, text, spliced, semantic, baselines, others)
        return writing.seal_and_report(job, parts, text)
