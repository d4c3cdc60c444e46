"""Is a skip trigram one head's doing, or is it spread over several?

A trigram is *learnt* if its C is predicted at more than 99% of its places, and *localised* in a
head if, whatever non-empty set of the other heads is taken away, what the rest write together
still says C at more than 99% of them; learnt and localised in no head, it is *distributed*
(Mathwin, Akar & Sharkey 2024). That test looks only where the trigram is there: a head that writes
C with and without A passes it, though another head does the telling by cancelling it. So who brings
the *evidence* is measured beside it: by how much each head raises C when an A is there.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.worlds.skip_trigrams import A, draw_trigrams, head_outputs

BAR = 0.99
"""Share of places at which an answer must be right."""


class TrigramVerdict(NamedTuple):
    """What became of one trigram."""

    b: int
    """Its B."""
    accuracy: float
    """Share of its places at which the model predicts C."""
    false_alarms: float
    """Share of places of this B, in rows without A so far, at which it predicts C all the same."""
    heads: tuple[int, ...]
    """The heads that it is localised in; none where it is not learnt."""
    evidence: tuple[float, ...]
    """By head, the share of what an A adds to C's logit, on average; shares sum to 1."""

    @property
    def learnt(self) -> bool:
        """Whether C is predicted."""
        return self.accuracy > BAR

    @property
    def distributed(self) -> bool:
        """Whether it is learnt and no head has it."""
        return self.learnt and not self.heads


HeadOutputs = Callable[[Int[Tensor, "rows pos"]], Float[Tensor, "rows pos heads vocab"]]
"""What every head, or whatever stands in its place, adds to the logits."""


def localised_in(
    outputs: Float[Tensor, "places heads vocab"], c: Int[Tensor, " places"]
) -> tuple[int, ...]:
    """The heads that say C alone and in any company but the full one.

    With one head, that head if it says C.

    Raises:
        UserError: no places.
    """
    if not len(outputs):
        raise UserError("Heads cannot be judged at no places; draw more rows")
    said = c[:, None, None].expand(-1, outputs.shape[1], 1)
    margin = outputs.gather(2, said) - outputs
    found = []
    for head in range(outputs.shape[1]):
        others = torch.cat([margin[:, :head], margin[:, head + 1 :]], 1)
        least = margin[:, head] + _least_of(others)
        right = (least > 0).scatter(1, c[:, None], True).all(1)
        if right.double().mean() > BAR:
            found.append(head)
    return tuple(found)


def _least_of(others: Float[Tensor, "places others vocab"]) -> Float[Tensor, "places vocab"]:
    """The least that a set of the others adds, none and all but one among the sets, all not.

    A sum over a set is least where the set is of all that are negative; if that is all of them, the
    one that takes away least stays out. So no sets need to be gone through.
    """
    if others.shape[1] == 0:
        return others.sum(1)
    spared = others.amax(1).clamp_max(0)
    return others.clamp_max(0).sum(1) - spared


@torch.no_grad()
def judge_trigrams(
    subject: Subject,
    trigrams: int,
    *,
    seed: int,
    rows: int = 20_000,
    outputs: HeadOutputs | None = None,
) -> list[TrigramVerdict]:
    """Judge every trigram on fresh rows.

    `outputs` says what the parts of another explanation of the layer write, such as the heads of a
    gated block; without it, the subject's own heads do.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, due = draw_trigrams(trigrams, rows, generator=generator)
    logits = subject.run(tokens).logits
    assert logits is not None
    said = logits.argmax(-1)
    by_head = outputs(tokens) if outputs else head_outputs(subject, tokens)
    single = (due >= 0).sum(1) == 1
    before = (tokens == A).cumsum(1) == 0
    verdicts = []
    for b in range(1, trigrams + 1):
        c = b + trigrams
        there, absent = due == c, (tokens == b) & before
        accuracy = (said[there] == c).double().mean().item()
        judged = there & single[:, None]
        heads: tuple[int, ...] = ()
        if accuracy > BAR:
            heads = localised_in(by_head[judged], torch.full((int(judged.sum()),), c))
        raised = by_head[judged, :, c].mean(0) - by_head[absent, :, c].mean(0)
        verdicts.append(
            TrigramVerdict(
                b=b,
                accuracy=accuracy,
                false_alarms=(said[absent] == c).double().mean().item(),
                heads=heads,
                evidence=tuple((raised / raised.sum()).tolist()),
            )
        )
    return verdicts
