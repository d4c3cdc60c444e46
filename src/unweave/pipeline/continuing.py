"""One prompt, continued by the original and by what an artifact holds of it."""

from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from unweave.artifact.folder import open_artifact
from unweave.decompile.explicit.network import ExplicitNetwork, Stepper
from unweave.decompile.network import DecompiledNetwork
from unweave.errors import UserError
from unweave.subject import Subject, load_subject
from unweave.subject.generation import Stepping, continue_text
from unweave.training.fit import load_parts


class ContinueSettings(BaseModel):
    """How a prompt is continued."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    new_tokens: PositiveInt = 40
    """Tokens written at most."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time; above 0 all draw with the same chance."""
    seed: NonNegativeInt = 0
    """Seed of that chance."""
    subject: str | None = None
    """The network; what the artifact says when not given."""
    explicit: bool = False
    """Whether the network runs on virtual weights alone, too."""


class Continued(NamedTuple):
    """What each wrote after the prompt."""

    original: str
    """The subject."""
    decompiled: str
    """The decompiled network, through its encoders and decoders."""
    explicit: str | None
    """The same on virtual weights alone, where that was asked for."""


def continue_prompt(folder: Path, prompt: str, settings: ContinueSettings) -> Continued:
    """Continue a prompt with the network that an artifact was made from, and with its parts.

    In float32, so that both executions of the decompiled network choose alike.

    Raises:
        UserError: no artifact, another network than it was made from, one without a tokenizer, a
            prompt too long, or a network that has no explicit form.
    """
    made = open_artifact(folder).manifest.subject
    subject = load_subject(settings.subject or made.name, dtype="float32")
    if subject.fingerprint != made.fingerprint:
        raise UserError(
            f"{folder} was made from other weights than those of {subject.name}; say with "
            "--subject where its network is"
        )
    parts = load_parts(folder / "dictionaries")
    network = DecompiledNetwork(subject, parts)
    stepper = Stepper(ExplicitNetwork(subject, parts)) if settings.explicit else None

    def written(one: Subject, by: Stepping | None = None) -> str:
        how = settings
        return continue_text(
            one, prompt, how.new_tokens, temperature=how.temperature, seed=how.seed, by=by
        )

    return Continued(
        written(subject),
        written(network.subject),
        None if stepper is None else written(subject, stepper),
    )
