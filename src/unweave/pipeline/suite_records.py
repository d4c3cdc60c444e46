"""What a folder of a bench suite says of itself."""

from pydantic import JsonValue

from unweave.artifact.records import Record
from unweave.validate.protocols.protocol import Outcome


class SuiteRun(Record):
    """run.json: what the results in a folder belong to."""

    subject: str
    """Name of the network."""
    subject_sha256: str
    """Fingerprint of its weights."""
    dictionary: str
    """Name of the dictionary."""
    dictionary_sha256: str
    """Over its spec and weights."""
    site: str
    """Where it reads and writes."""
    settings: dict[str, JsonValue]
    """All settings but the tasks."""
    version: str
    """Of unweave."""
    commit: str | None
    """Of the source checkout, if it is one."""
    begun_ms: int
    """When the folder was begun, milliseconds since 1970."""


class Found(Record):
    """One protocol's result, with what it belongs to."""

    protocol: str
    run_sha256: str
    """Digest of run.json without the time and the commit."""
    outcome: Outcome | None = None
    """What it found."""
    refused: str | None = None
    """Why it found nothing."""
