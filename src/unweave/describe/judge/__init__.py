"""Judges of latents: who explains from examples, and tells from the explanation where one fires."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from unweave.describe.judge.chat import ChatJudge
from unweave.describe.judge.endpoint import Costs, Endpoint, EndpointSettings
from unweave.describe.judge.judge import Example, Judge, Passage, Unreadable
from unweave.describe.judge.local import LocalJudge, LocalSettings
from unweave.describe.judge.rules import RulesJudge
from unweave.describe.vocabulary import Vocabulary
from unweave.subject import Subject, load_subject

__all__ = [
    "ChatJudge",
    "Costs",
    "Endpoint",
    "EndpointSettings",
    "Example",
    "Judge",
    "JudgeSettings",
    "LocalJudge",
    "LocalSettings",
    "Passage",
    "RulesJudge",
    "RulesSettings",
    "Unreadable",
    "open_judge",
]


class RulesSettings(BaseModel):
    """Our own claims."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["rules"] = "rules"
    """Claims that a machine makes and checks."""


JudgeSettings = Annotated[
    RulesSettings | EndpointSettings | LocalSettings, Field(discriminator="kind")
]
"""Any judge, told apart by `kind`."""


def open_judge(
    settings: RulesSettings | EndpointSettings | LocalSettings,
    subject: Subject,
    vocabulary: Vocabulary,
    *,
    store: Path,
) -> Judge:
    """The judge that the settings are of, for latents of `subject`; answers are kept in `store`.

    Raises:
        UserError: it cannot be had (no key, no such network).
    """
    match settings:
        case RulesSettings():
            return RulesJudge(vocabulary, start=subject.start_token or 0)
        case EndpointSettings():
            chat = Endpoint(settings, store / "answers")
            return ChatJudge(chat, name=settings.model, at_once=settings.at_once)
        case LocalSettings():
            same = settings.subject == subject.name
            return LocalJudge(subject if same else load_subject(settings.subject), settings)
