"""A language model of this process as a judge; one of few parameters guesses much of the time.

It writes an explanation after two worked examples of ours. It does not name numbers: each passage
is a question of its own, and yes is said where the logit of yes exceeds that of no by more than it
does after a description that says nothing, so that a leaning to either word does not count.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt

from unweave.describe.judge.chat import explanation_in
from unweave.describe.judge.judge import NO_COSTS, Example, Passage, broken
from unweave.errors import UserError
from unweave.subject import Subject, continue_text
from unweave.subject.prompts import by_length, padded, prompt_rows

_WORKED = """Passages, with the marked words between << and >>:
- the river <<rose>> in spring and then <<fell>>
- prices <<climbed>> last week
What is marked: verbs of going up or down

Passages, with the marked words between << and >>:
- she lives in << Paris>> with her aunt
- a train to << Madrid>> was late
What is marked: names of cities

"""
_ASKED = """Description: names of cities
Text: a train to Madrid was late
Does the text have what is described? Yes

Description: verbs of going up or down
Text: she lives in a small house
Does the text have what is described? No

Description: {description}
Text: {text}
Does the text have what is described?"""
NOTHING = "something or other"
"""The description that says nothing."""


class LocalSettings(BaseModel):
    """Settings of a judge of this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["local"] = "local"
    """A network of this process."""
    subject: str = "smollm2-135m"
    """The network, by a name that `load_subject` takes."""
    shown: PositiveInt = 6
    """Examples shown, the strongest: a small network loses the thread with more."""
    new_tokens: PositiveInt = 20
    """Tokens of an explanation."""
    batch: PositiveInt = 16
    """Questions run together."""


class LocalJudge:
    """See the module."""

    at_once = 1
    costs = NO_COSTS

    def __init__(self, subject: Subject, settings: LocalSettings | None = None) -> None:
        """Any subject with a tokenizer will do.

        Raises:
            UserError: it has none.
        """
        if subject.tokenizer is None:
            raise UserError(f"{subject.name} has no tokenizer, so it cannot judge")
        self._subject, self._settings = subject, settings or LocalSettings()
        self.name = subject.name
        self._plain: dict[str, float] = {}
        words = subject.tokenizer.encode_many([" Yes", " No"])
        self._yes, self._no = words[0][0], words[1][0]

    def explain(self, examples: Sequence[Example]) -> str:
        """The line that it writes, the likeliest token each time."""
        ordered = sorted(examples, key=lambda one: max(one.activations), reverse=True)
        shown = [f"- {_line(one.marked())}\n" for one in ordered[: self._settings.shown]]
        prompt = "Passages, with the marked words between << and >>:\n" + "".join(shown)
        said = continue_text(
            self._subject, _WORKED + prompt + "What is marked:", self._settings.new_tokens
        )
        return explanation_in(said)

    def predict(self, explanation: str, passages: Sequence[Passage]) -> list[bool]:
        """Yes where the description speaks for it."""
        texts = [_line(broken(passage.text)) for passage in passages]
        told = self._margins([_ASKED.format(description=explanation, text=t) for t in texts])
        new = [text for text in dict.fromkeys(texts) if text not in self._plain]
        margins = self._margins([_ASKED.format(description=NOTHING, text=t) for t in new])
        self._plain |= dict(zip(new, margins.tolist(), strict=True))
        return [said > self._plain[text] for said, text in zip(told.tolist(), texts, strict=True)]

    @torch.inference_mode()
    def _margins(self, prompts: Sequence[str]) -> torch.Tensor:
        rows = prompt_rows(self._subject, prompts)
        found = torch.zeros(len(rows))
        for which in by_length(rows, self._settings.batch):
            group = padded([rows[at] for at in which.tolist()])
            logits = self._subject.run(group.tokens).logits
            assert logits is not None
            last = logits[torch.arange(len(which)), group.last].float()
            found[which] = (last[:, self._yes] - last[:, self._no]).cpu()
        return found


def _line(text: str) -> str:
    """On one line."""
    return " ".join(text.split())
