"""The public protocols on one dictionary, one after the other, each done once and kept.

    run.json                     subject, dictionary, settings, code; when it was begun
    protocols/NAME.json          what a protocol found, or why it refused
    saebench/NAME_eval_results.json   the same in SAEBench's own layout, where it has one
    store/NAME/                  what a protocol keeps of its own: its data sets one by one

A run that was cut off goes on where it was and finds the same; protocols may be added later. A
protocol that refused is asked again.
"""

import time
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from unweave._version import __version__
from unweave.artifact.atomic import sweep, write_json, write_text
from unweave.artifact.hashing import sha256_of_bytes, sha256_of_json
from unweave.artifact.manifest import source_commit
from unweave.artifact.reading import record_in
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import load_foreign
from unweave.errors import UserError
from unweave.pipeline.saebench_output import saebench_output
from unweave.pipeline.suite_records import Found, SuiteRun
from unweave.progress import QUIET, Progress
from unweave.subject import Subject, load_subject
from unweave.validate.placed import Placed, placed
from unweave.validate.protocols.protocol import Bench, Protocol, Refused
from unweave.validate.protocols.suite import protocols_named


class BenchSuiteSettings(BaseModel):
    """What is asked of a dictionary."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tasks: tuple[str, ...] = ()
    """Names of protocols; all that are known when empty."""
    site: str | None = None
    """Where it stands, for a dictionary that does not say, or instead of what it says."""
    data: Path | None = None
    """A folder of labelled data sets; without it the published ones, from the hub."""
    text: str = "wiki"
    """Plain text, by a name that `unweave texts` lists, a file or a folder."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the published numbers of examples and tokens."""
    seed: NonNegativeInt = 0
    """Seed of every random choice."""
    device: str = "cpu"
    """Where the subject and the dictionary run."""
    dtype: str = "float32"
    """Number format of the subject; numbers are compared in float32."""


class Suite(NamedTuple):
    """Everything a suite came to."""

    folder: Path
    run: SuiteRun
    found: list[Found]


def bench_suite(
    dictionary: Path,
    subject: str | Subject,
    settings: BenchSuiteSettings,
    *,
    out: Path,
    progress: Progress = QUIET,
) -> Suite:
    """Run the protocols that `out` does not have yet.

    Raises:
        UserError: no dictionary there or several, a site that is not known, an unknown protocol,
            a folder that holds the results of something else.
    """
    protocols = protocols_named(settings.tasks)
    one = placed_at(dictionary, settings.site)
    if isinstance(subject, str):
        subject = load_subject(subject, dtype=settings.dtype, device=settings.device)
    for site in (*one.reads, *one.writes):
        subject.place(site)
    run = _begin(out, subject, one, settings)
    assert isinstance(one.coder, Dictionary)
    one.coder.to(subject.device)
    bench = Bench(
        subject, one, out / "store", settings.data, settings.text, settings.share, settings.seed,
        progress,
    )  # fmt: skip
    found = [_done_once(protocol, bench, out, run) for protocol in protocols]
    return Suite(out, run, found)


def placed_at(path: Path, site: str | None) -> Placed:
    """The one dictionary of a folder, at its own site or at another.

    Raises:
        UserError: several dictionaries there, or a site that nobody has named.
    """
    there = load_foreign(path)
    if len(there) != 1:
        names = ", ".join(str(path / name) for name in list(there)[:6])
        raise UserError(
            f"{path} holds {len(there)} dictionaries: give one of them, such as {names}"
        )
    ((name, dictionary),) = there.items()
    one = placed(path.name if name == path.name else name, dictionary)
    if site is not None:
        sites = tuple(site.split(","))
        if not one.autoencodes or len(sites) != len(one.reads):
            raise UserError(
                f"{name} reads {', '.join(one.reads)} and writes {', '.join(one.writes)}: --site is"
                " for a dictionary that reads and writes as many sites as are given"
            )
        return one._replace(reads=sites, writes=sites)
    if "unknown" in (*one.reads, *one.writes):
        raise UserError(f"{path} does not say which site its dictionary belongs to: give --site")
    return one


def dictionary_sha256(dictionary: Dictionary) -> str:
    """Hex digest over spec and weights, names in order."""
    state = dictionary.state_dict()
    weights = {
        name: sha256_of_bytes(state[name].cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name in sorted(state)
    }
    return sha256_of_json({"spec": dictionary.spec.model_dump(mode="json"), "weights": weights})


def _begin(out: Path, subject: Subject, one: Placed, settings: BenchSuiteSettings) -> SuiteRun:
    assert isinstance(one.coder, Dictionary)
    run = SuiteRun(
        subject=subject.name, subject_sha256=subject.fingerprint, dictionary=one.name,
        dictionary_sha256=dictionary_sha256(one.coder), site=" -> ".join(
            dict.fromkeys((", ".join(one.reads), ", ".join(one.writes)))
        ),
        settings=settings.model_dump(mode="json", exclude={"tasks"}), version=__version__,
        commit=source_commit(), begun_ms=int(time.time() * 1000),
    )  # fmt: skip
    path = out / "run.json"
    if path.is_file():
        earlier = record_in(path, SuiteRun)
        if run_sha256(earlier) != run_sha256(run):
            raise UserError(
                f"{out} holds results of another dictionary, subject, setting or version: take"
                " another folder, or remove it"
            )
        sweep(out)
        return earlier
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and is no folder of a bench suite")
    write_json(path, run.model_dump(mode="json"))
    return run


def run_sha256(run: SuiteRun) -> str:
    """Digest of what results depend on."""
    return sha256_of_json(run.model_dump(mode="json", exclude={"begun_ms", "commit"}))


def _done_once(protocol: Protocol, bench: Bench, out: Path, run: SuiteRun) -> Found:
    path = out / "protocols" / f"{protocol.name}.json"
    if path.is_file() and record_in(path, Found).refused is None:
        return record_in(path, Found)
    bench.progress.say(f"{protocol.name}: {protocol.title}")
    digest = run_sha256(run)
    try:
        found = Found(protocol=protocol.name, run_sha256=digest, outcome=protocol.run(bench))
    except Refused as reason:
        bench.progress.say(f"{protocol.name} refuses: {reason}")
        found = Found(protocol=protocol.name, run_sha256=digest, refused=str(reason))
    theirs = saebench_output(found.outcome, run) if found.outcome else None
    if theirs is not None:
        write_json(out / "saebench" / f"{protocol.name}_eval_results.json", theirs)
    # Not sorted: the first numbers are those that tables show.
    write_text(path, found.model_dump_json(indent=1) + "\n")
    return record_in(path, Found)
