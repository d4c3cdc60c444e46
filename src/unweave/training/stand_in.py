"""What stands where a block stood, inside the subject's own skeleton."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from unweave.dictionaries.kernels.sparse import Code
from unweave.dictionaries.part import Part


class AtStart:
    """Whether the rows now running begin with the start token at their first position."""

    def __init__(self) -> None:
        self.yes = True


class StandIn(nn.Module):
    """A part in the place of a block: constant at the start token, sparse everywhere else."""

    def __init__(self, part: Part, at_start: AtStart) -> None:
        super().__init__()
        self.part = part
        self.code: Code | None = None
        """The code of the last call, for those who ask which latents were active."""
        self._at_start = at_start

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, pos, d_in]` to `[batch, pos, d_out]`."""
        y, self.code = self.part.run(x.float())
        y = y.to(x.dtype)
        if not self._at_start.yes:
            return y
        first = self.part.start_output.to(x.dtype).expand(y.shape[0], 1, -1)
        return torch.cat([first, y[:, 1:]], dim=1)


def stand_ins(parts: Iterable[Part], at_start: AtStart) -> dict[str, StandIn]:
    """One stand-in per part, by the part's name."""
    return {part.spec.name: StandIn(part, at_start) for part in parts}
