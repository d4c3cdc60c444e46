"""How long maps are, and what a reader predicts who is told them: their mathematical numbers.

A map is told for each of the `m` tokens that the network puts first. The reader knows what the
network predicts from baselines alone and adds each map's sum to its token's logit:

    length    m (log2 V + (pos - 1) B) bits a token: which token, and a number for every token read
    loss      KL(network || reader), bits a token

Nothing is amortised, since a map serves one prediction. What a complete map says of the prediction
is its sum, one number of the pos - 1 that are sent. There are no semantic numbers: a map says where
the network looked, and nobody can foretell from that what it would do elsewhere.
"""

import math

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.artifact.records import Record
from unweave.artifact.scores import Interval
from unweave.subject import Subject
from unweave.validate.attribution_maps.maps import Map
from unweave.validate.attribution_maps.scores import ask, logits_at_the_end, token_score
from unweave.validate.bootstrap import BootstrapSettings, mean_interval
from unweave.validate.length import VALUE_BITS


class ToldSettings(BaseModel):
    """Settings of the numbers of maps."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: tuple[PositiveInt, ...] = (1, 4, 16)
    """For how many of the tokens put first maps are told."""
    value_bits: PositiveInt = VALUE_BITS
    """Bits of one number of a map."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals over rows."""


class Told(Record):
    """What telling so many maps costs and brings."""

    tokens: int
    """Maps told for each prediction."""
    length: float
    """Bits a token."""
    loss: Interval
    """KL(network || reader), bits a token."""


def told(
    subject: Subject,
    rows: Int[Tensor, "rows pos"],
    method: Map,
    settings: ToldSettings | None = None,
) -> list[Told]:
    """The numbers of one method at the last position of `rows`; the first entry tells nothing."""
    settings = settings or ToldSettings()
    most = max(settings.tokens)
    # The mean vector does not depend on what is explained.
    plain = ask(subject, rows, token_score(subject, rows, rows[:, -1]))
    with torch.no_grad():
        true = logits_at_the_end(subject, rows, plain.x)
        known = logits_at_the_end(subject, rows, plain.baseline)
    first = true.topk(most, dim=1).indices
    moved = torch.zeros_like(true)
    found = [_told(0, true, known, rows.shape[1], settings)]
    for place in range(most):
        token = first[:, place]
        asked = plain._replace(score=token_score(subject, rows, token))
        moved.scatter_(1, token[:, None], method(subject, asked).sum(1, keepdim=True))
        if place + 1 in settings.tokens:
            found.append(_told(place + 1, true, known + moved, rows.shape[1], settings))
    return found


def _told(
    tokens: int,
    true: Float[Tensor, "rows vocab"],
    reader: Float[Tensor, "rows vocab"],
    length: int,
    settings: ToldSettings,
) -> Told:
    p, q = true.double().log_softmax(1), reader.double().log_softmax(1)
    divergence = (p.exp() * (p - q)).sum(1) / math.log(2)
    value, low, high = mean_interval(divergence.numpy(), settings.bootstrap)
    bits = tokens * (math.log2(true.shape[1]) + (length - 1) * settings.value_bits)
    return Told(tokens=tokens, length=bits, loss=Interval(value=value, low=low, high=high))
