"""All vectors of one site in memory, where there are few enough of them."""

from jaxtyping import Float, Int
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.subject import Subject


def gather(
    subject: Subject, rows: Int[Tensor, "rows pos"], site: str, *, workers: Workers, seed: int = 0
) -> Float[Tensor, "vectors width"]:
    """The site's vectors over rows of tokens, shuffled, position 0 of every row left out."""
    settings = HarvestSettings(window_tokens=rows.numel())
    harvester = Harvester(subject, rows, [site], workers=workers, seed=seed, settings=settings)
    window = harvester.window(0)
    return window.vectors[site][window.order].clone()
