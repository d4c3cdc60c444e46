"""The typical size of a site's vectors, measured so that a few enormous ones do not decide it."""

import math

from jaxtyping import Float
from torch import Tensor


def unit_scale(vectors: Float[Tensor, "vectors width"]) -> float:
    """Factor that brings the median norm to sqrt(width).

    The mean would follow massive activations: in SmolLM2 2.8 % of tokens hold 92 % of a layer's
    variance. A site that is silent everywhere is left as it is.
    """
    median = vectors.float().norm(dim=1).median().item()
    return math.sqrt(vectors.shape[1]) / median if median > 0 else 1.0
