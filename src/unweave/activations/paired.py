"""Windows of activations of several subjects on the same text: what crosscoders are trained on.

The same row of two sites is the same token, whichever network computed it. Sites carry the name
they were given their subject by: `chat:blocks.2.resid_post`.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings, Window
from unweave.activations.workers import Workers
from unweave.errors import UserError
from unweave.subject import Subject


def paired_site(subject: str, site: str) -> str:
    """What a site of one of several subjects is called."""
    return f"{subject}:{site}"


class PairedHarvester:
    """Runs several subjects over the same rows; answers `window(i)` just as a harvester does."""

    def __init__(
        self,
        subjects: Mapping[str, Subject],
        tokens: Int[Tensor, "rows pos"],
        sites: Sequence[str],
        *,
        workers: Workers,
        seed: int,
        settings: HarvestSettings | None = None,
    ) -> None:
        """Harvest `sites` of every subject; the keys of `subjects` become their prefixes.

        Raises:
            UserError: no subject, or a prefix with a colon in it.
        """
        if not subjects or any(":" in name or not name for name in subjects):
            raise UserError(
                f"Subjects that are harvested together need names without a colon, not "
                f"{list(subjects)}"
            )
        self._harvesters = {
            name: Harvester(subject, tokens, sites, workers=workers, seed=seed, settings=settings)
            for name, subject in subjects.items()
        }
        self._first = next(iter(self._harvesters.values()))

    @property
    def windows(self) -> int:
        """How many windows the text makes."""
        return self._first.windows

    def vectors_in(self, index: int) -> int:
        """How many vectors a window holds per site."""
        return self._first.vectors_in(index)

    def window(self, index: int) -> Window:
        """Harvest one window of every subject. Its vectors are overwritten by the next call."""
        vectors: dict[str, Tensor] = {}
        for name, harvester in self._harvesters.items():
            window = harvester.window(index)
            vectors |= {paired_site(name, site): rows for site, rows in window.vectors.items()}
        return Window(index=index, vectors=vectors, order=window.order)

    def foresee(self, index: int) -> None:
        """Have idle workers begin on the window that is asked for next."""
        for harvester in self._harvesters.values():
            harvester.foresee(index)
