"""Networks run with a circuit: kept edges carry what flows in this pass, the others something else.

Path patching for all edges at once (Wang et al. 2022, 2211.00593; Conmy et al. 2023, 2304.14997):
each component reads the sum of what its kept sources write in this very pass and of what the others
write in another one. The norm before a component sees the mixed input. What the others write:

- `counterfactual`: what they write on the corrupted prompt, at the same position;
- `mean`: what they write on average, over positions and prompts;
- `zero`: nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.circuits.components import Circuit, Readers
from unweave.circuits.contrasts import Contrast, Metric, Pairs, in_pairs, logit_difference
from unweave.circuits.wired import Wired
from unweave.errors import UserError
from unweave.progress import Advance
from unweave.subject import Subject

Ablation = Literal["counterfactual", "mean", "zero"]
"""What an edge carries that is not kept."""


class Elsewhere(NamedTuple):
    """What sources write in place of what they write."""

    kind: Ablation = "counterfactual"
    """Where that comes from."""
    means: Float[Tensor, "sources d"] | None = None
    """Mean outputs, for `mean`; see `mean_outputs`."""

    def outputs(self, wired: Wired, pairs: Pairs) -> Float[Tensor, "batch pos sources d"]:
        """For each prompt and position."""
        if self.kind == "counterfactual":
            return wired.outputs(pairs.corrupt)
        shape = *pairs.clean.shape, len(wired.graph.sources), wired.subject.d_model
        if self.kind == "zero":
            return torch.zeros(shape, device=wired.subject.device)
        if self.means is None:
            raise UserError("Mean ablation needs the means: make them with mean_outputs")
        return self.means.expand(shape)


COUNTERFACTUAL = Elsewhere()


class Mixed:
    """Kept edges carry this pass, the others what sources write elsewhere."""

    listens = True

    def __init__(self, circuit: Circuit, other: Float[Tensor, "batch pos sources d"]) -> None:
        self._lost, self._other = ~circuit, other
        self._moved = torch.empty_like(other)

    def wrote(self, sources: slice, outputs: Tensor) -> None:
        """See `Rule.wrote`."""
        torch.sub(self._other[:, :, sources], outputs, out=self._moved[:, :, sources])

    def reads(self, readers: Readers, stream: Tensor) -> Tensor:
        """See `Rule.reads`."""
        lost = self._lost[: readers.reach, readers.targets].to(stream)
        if not lost.any():
            return stream[:, :, None].expand(-1, -1, lost.shape[1], -1)
        return stream[:, :, None] + lost.T @ self._moved[:, :, : readers.reach]


@torch.no_grad()
def run_circuit(
    wired: Wired,
    pairs: Pairs,
    circuit: Circuit,
    other: Float[Tensor, "batch pos sources d"],
) -> Float[Tensor, "batch pos vocab"]:
    """Logits on the clean prompts with a circuit alone; `other` comes from `Elsewhere.outputs`."""
    return wired.run(pairs.clean, Mixed(circuit, other))


@torch.no_grad()
def circuit_metrics(
    wired: Wired,
    contrasts: Sequence[Contrast],
    circuits: Sequence[Circuit],
    *,
    metric: Metric = logit_difference,
    elsewhere: Elsewhere = COUNTERFACTUAL,
    batch: int = 8,
    advance: Advance = lambda _: None,
) -> Float[Tensor, "circuits contrasts"]:
    """The metric on every contrast with each circuit; advances by one for a circuit and a batch."""
    found = torch.zeros(len(circuits), len(contrasts))
    for pairs, other in _with_other(wired, contrasts, elsewhere, batch):
        for row, circuit in enumerate(circuits):
            logits = run_circuit(wired, pairs, circuit, other)
            found[row, pairs.which] = metric(logits, pairs).cpu()
            advance(1)
    return found


def _with_other(
    wired: Wired, contrasts: Sequence[Contrast], elsewhere: Elsewhere, batch: int
) -> Iterator[tuple[Pairs, Tensor]]:
    for pairs in in_pairs(contrasts, batch):
        yield pairs, elsewhere.outputs(wired, pairs)


@torch.no_grad()
def plain_metrics(
    subject: Subject,
    contrasts: Sequence[Contrast],
    *,
    metric: Metric = logit_difference,
    batch: int = 8,
) -> Float[Tensor, "2 contrasts"]:
    """The metric with the network as it is, on the clean and on the corrupted prompts."""
    found = torch.zeros(2, len(contrasts))
    for pairs in in_pairs(contrasts, batch):
        for row, tokens in enumerate((pairs.clean, pairs.corrupt)):
            logits = subject.run(tokens).logits
            assert logits is not None
            found[row, pairs.which] = metric(logits, pairs).cpu()
    return found


@torch.no_grad()
def mean_outputs(
    wired: Wired, contrasts: Sequence[Contrast], *, batch: int = 8
) -> Float[Tensor, "sources d"]:
    """What each source writes on average on the clean prompts; the filling counts for nothing."""
    total, positions = torch.zeros(1), 0
    for pairs in in_pairs(contrasts, batch):
        outputs = wired.outputs(pairs.clean)
        there = torch.arange(outputs.shape[1]) <= pairs.last[:, None]
        total = total + outputs[there.to(outputs.device)].sum(0)
        positions += int(there.sum())
    return total / positions
