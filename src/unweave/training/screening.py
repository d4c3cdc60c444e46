"""Choosing among the latents that are likely for a vector, and now and then among all.

Vectors are clustered once. Some steps choose among all latents and count, cluster by cluster, how
much each latent was worth; in between, a vector is multiplied with the best of its cluster alone.
A latent's score is exact whenever it is computed; what can be missed are latents that are unusual
for their cluster. The dictionary itself does not change: trained, it is used whole.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.dictionaries.baselines.kmeans import cluster_centres, nearest
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.encoder.linear import LinearEncoder, LinearScorer
from unweave.dictionaries.kernels.grouped import Group, GroupedScorer
from unweave.errors import UserError
from unweave.training.objectives.loss import Watched

_CLUSTERED = 4096
"""Vectors that clusters are made of."""


class Screen(BaseModel):
    """How latents are screened; where several processes share a step, they are not."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    clusters: PositiveInt = 8
    """Clusters of vectors."""
    share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the latents that a cluster chooses among."""
    every: int = Field(default=4, ge=2)
    """Every so many steps, the choice is among all."""
    begin: float = Field(default=0.1, ge=0, lt=1)
    """Until this share of the run it always is: latents are still finding their place."""
    memory: float = Field(default=0.9, ge=0, lt=1)
    """What is left of a count when the next one is added."""


class Screening:
    """Who is likely where, for one dictionary."""

    def __init__(self, dictionary: Dictionary, settings: Screen) -> None:
        spec = dictionary.spec
        if spec.encoder.kind != "linear" or spec.activation.kind != "topk":
            raise UserError(
                f"{spec.name}: latents are screened for topk with a linear encoder, not for "
                f"{spec.activation.kind} with a {spec.encoder.kind} one"
            )
        self._dictionary, self._settings = dictionary, settings
        self._centres: Tensor | None = None
        self._worth: Tensor | None = None
        self._likely: Tensor | None = None

    def begin_step(self, step: int, steps: int) -> None:
        """Set what the encoder chooses among in this step."""
        every = step % self._settings.every == 0 or step < self._settings.begin * steps
        encoder = self._dictionary.encoder
        assert isinstance(encoder, LinearEncoder)
        encoder.screen = None if every or self._likely is None else self._screened

    def end_step(self, seen: Watched) -> None:
        """Learn from a step, if its choice was among all, and let the encoder be itself again."""
        encoder, code = self._dictionary.encoder, seen.passed.code
        if encoder.screen is not None:
            encoder.screen = None
            return
        assert code is not None
        x = self._read(seen.x.detach())
        if self._centres is None:
            self._centres = cluster_centres(x[:_CLUSTERED], self._settings.clusters, seed=0)
            self._worth = x.new_zeros(len(self._centres), code.n_latents)
        assert self._worth is not None
        at = nearest(x, self._centres)[code.support.row]
        self._worth *= self._settings.memory
        self._worth.index_put_((at, code.support.latent), code.value.detach(), accumulate=True)
        self._choose()

    def state(self) -> dict[str, Tensor]:
        """What the next steps depend on, by name."""
        if self._centres is None or self._worth is None:
            return {}
        return {"centres": self._centres, "worth": self._worth}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where `state()` was taken."""
        if tensors:
            like = self._dictionary.W_dec
            self._centres = tensors["centres"].to(like, copy=True)
            self._worth = tensors["worth"].to(like, copy=True)
            self._choose()

    def _choose(self) -> None:
        assert self._worth is not None
        many = max(
            self._dictionary.activation.k, round(self._settings.share * self._worth.shape[1])
        )
        # Where a cluster has seen too little, what is likely everywhere is likely there.
        worth = self._worth + 1e-3 * self._worth.mean(0)
        self._likely = worth.topk(many, dim=1).indices.sort(dim=1).values

    def _read(self, x: Tensor) -> Tensor:
        return x - self._dictionary.b_dec.detach() if self._dictionary.spec.pre_bias else x

    def _screened(self, scorer: LinearScorer) -> GroupedScorer:
        assert self._likely is not None
        assert self._centres is not None
        centres = self._centres
        groups = [
            Group(LinearScorer(scorer.W[latents], scorer.bias[latents]), latents)
            for latents in self._likely
        ]
        return GroupedScorer(lambda x: nearest(x.float(), centres), groups, len(scorer.W))
