"""Causal scrubbing of what an artifact says of its own features."""

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from unweave.describe.subject_tokens import vocabulary_of
from unweave.errors import UserError
from unweave.pipeline.pareto import ParetoSettings, prepare
from unweave.pipeline.pareto_sources import read_source
from unweave.progress import QUIET, Progress
from unweave.validate.interventions.scrub_claims import (
    ClaimsScrubbed,
    resampling,
    scrub_resampled,
)


class ArtifactScrubbingSettings(BaseModel):
    """What an artifact's claims are tested on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    subject: str | None = None
    """The network; what the artifact says when not given."""
    text: str | None = None
    """The text, of which the held-out part is used; the artifact's own when not given."""
    rows: PositiveInt = 64
    """Held-out rows that are resampled among, at most."""
    seed: NonNegativeInt = 0
    """Seed of the resampling; the text's order is the artifact's own."""


class ArtifactScrubbed(NamedTuple):
    """How much of the loss of random resampling an artifact's claims recover."""

    parts: dict[str, ClaimsScrubbed]
    """Each part alone, in the original network."""
    together: ClaimsScrubbed
    """All latents of all parts resampled at once, each by its own claim."""


def scrub_artifact(
    path: Path, settings: ArtifactScrubbingSettings | None = None, *, progress: Progress = QUIET
) -> ArtifactScrubbed:
    """Resample every latent among the places for which its stored description predicts the same.

    The last claim of each latent in `descriptions.sqlite` is the hypothesis; held-out rows of the
    artifact's text are what it is tested on. Beside it stands the claim of another latent.

    >>> found = scrub_artifact(Path("runs/wren"))  # doctest: +SKIP
    >>> found.together.own[1].value, found.together.shuffled[1].value  # doctest: +SKIP

    Raises:
        UserError: no artifact of a decompiled network, or one that describes none of its features.
    """
    settings = settings or ArtifactScrubbingSettings()
    source = read_source(path)
    claims = source.methods[0].claims if source.methods else None
    if claims is None:
        raise UserError(
            f"{path} holds no claims about features: give the folder of a decompiled network"
        )
    asked = ParetoSettings(
        subject=settings.subject, text=settings.text, baselines=(), heldout_rows=settings.rows
    )
    ground = prepare([source], asked, progress).ground
    parts, vocabulary = source.methods[0].parts, vocabulary_of(ground.subject)
    subject, rows = ground.subject, ground.heldout
    drawn = []
    with progress.task("Resampling latents", total=len(parts), unit="parts") as advance:
        for part in parts:
            said = claims[part.name]
            new = resampling(subject, part, said, vocabulary, rows, seed=settings.seed)
            drawn.append((part, new))
            advance(1)
    alone = {one[0].name: scrub_resampled(subject, [one], rows) for one in drawn}
    return ArtifactScrubbed(alone, scrub_resampled(subject, drawn, rows, progress=progress))
