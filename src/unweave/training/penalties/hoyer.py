"""Hoyer sparsity (Hoyer 2004) of each row's strengths, blind to their overall size.

    score = (sqrt(F) - ||u||_1 / ||u||_2) / (sqrt(F) - 1)

One for a single latent, zero for all alike. The penalty is one minus the score: it never pushes all
activations down together.
"""

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.activation.settings import Chosen
from unweave.training.penalties.strengths import Strengths


class Hoyer(Chosen):
    """One minus the Hoyer sparsity, mean over rows."""

    kind: Literal["hoyer"] = "hoyer"

    def of(self, at: Strengths, done: float) -> Float[Tensor, ""]:
        """Mean over rows; rows without any active latent cost nothing."""
        total = at.per_row(at.u)
        size = at.per_row(at.u.square())
        on = size > 0
        ratio = total[on] / size[on].sqrt()
        root = math.sqrt(at.n_latents)
        return ((ratio - 1) / (root - 1)).sum() / at.rows
