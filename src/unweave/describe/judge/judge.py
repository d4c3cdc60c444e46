"""What a judge of latents is: someone who is shown where a latent fires and says why.

Three makers: our own rules (`rules`), a language model behind an address (`endpoint`), a language
model of this process (`local`).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable


class Unreadable(Exception):
    """A judge's answer that does not have the form asked for; nothing can be made of it."""


class Passage(NamedTuple):
    """A short stretch of text."""

    tokens: tuple[int, ...]
    """Token ids."""
    pieces: tuple[str, ...]
    """The text of each token, as it stands in the text."""

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.pieces)


class Example(NamedTuple):
    """A passage with a latent's activations."""

    passage: Passage
    activations: tuple[float, ...]
    """One a token."""
    threshold: float
    """Above it the latent counts as firing."""

    @property
    def fires(self) -> bool:
        """Whether the latent fires at any of the tokens: what a judge has to tell."""
        return any(value > self.threshold for value in self.activations)

    def marked(self) -> str:
        """The text with every token at which the latent fires between << and >>.

        Such marks of the text's own are broken apart, so that none can be forged.
        """
        shown = [broken(piece) for piece in self.passage.pieces]
        return "".join(
            f"<<{piece}>>" if value > self.threshold else piece
            for piece, value in zip(shown, self.activations, strict=True)
        )


NO_COSTS: Mapping[str, float] = MappingProxyType({})
"""Of a judge whom asking costs nothing."""


def broken(text: str) -> str:
    """Text without << and >>."""
    return text.replace("<<", "< <").replace(">>", "> >")


@runtime_checkable
class Judge(Protocol):
    """Explains from examples, and tells from the explanation alone where a latent fires."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def at_once(self) -> int:
        """How many latents may be judged side by side."""
        ...

    @property
    def costs(self) -> Mapping[str, float]:
        """What asking it has cost so far, by name; empty where asking costs nothing."""
        ...

    def explain(self, examples: Sequence[Example]) -> str:
        """What the latent fires on, in words (or whatever this judge itself can read back).

        Raises:
            Unreadable: no explanation came of it.
        """
        ...

    def predict(self, explanation: str, passages: Sequence[Passage]) -> list[bool]:
        """For each passage, whether the latent fires anywhere in it.

        Raises:
            Unreadable: the answer cannot be read.
        """
        ...
