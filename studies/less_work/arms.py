"""The ways of doing less work that are compared, as trainees of one size."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.code import Support
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.linear import LinearScorer
from unweave.dictionaries.encoder.switch import Switch
from unweave.dictionaries.growth import grow
from unweave.dictionaries.initial import Start
from unweave.dictionaries.kernels.ragged import inner
from unweave.dictionaries.kernels.select import Selection, largest
from unweave.training.batches import ArraySource
from unweave.training.dead import AuxK, DeadLatents
from unweave.training.lazy import Lazy
from unweave.training.screening import Screen
from unweave.training.trainee import Trainee, TraineeSettings

WIDTH, K = 576, 32
RATE = {"planted": 4e-3, "real": 2e-3}
GROWN_AT = 0.4
"""Share of its steps that a dictionary is trained at half its width before it is grown."""


@dataclass
class Arm:
    """What differs from the plain run."""

    settings: dict = field(default_factory=dict)
    spec: dict = field(default_factory=dict)
    subspace: tuple[int, int] | None = None
    grown: bool = False


ARMS = {
    "plain": Arm(),
    "lazy": Arm({"lazy": Lazy()}),
    "lazy, moments only": Arm({"lazy": Lazy(missed="fade")}),
    "lazy, as SparseAdam": Arm({"lazy": Lazy(missed="stay")}),
    "screened by cluster": Arm({"screen": Screen()}),
    "screened and lazy": Arm({"screen": Screen(), "lazy": Lazy()}),
    "screened in 128 PCs": Arm(subspace=(128, 3)),
    "switch, 8 experts": Arm(spec={"encoder": Switch(experts=8)}),
    "kronecker, 4 x 4": Arm(spec={"encoder": Kronecker(left=4, right=4)}),
    "start at data": Arm({"start": Start(decoder="data")}),
    "start in the subspace": Arm({"start": Start(decoder="subspace")}),
    "grown from half": Arm(grown=True),
}


class Run:
    """One arm's training."""

    def __init__(
        self, name: str, kind: str, n: int, x: Tensor, steps: int, batch: int, seed: int,
        changes: dict,
    ) -> None:  # fmt: skip
        self.arm, self.steps, self.n, self.x = ARMS[name], steps, n, x
        self.source = ArraySource({"s": x}, batch=batch, steps=steps, seed=seed)
        settings = {"lr": RATE[kind], "dead": DeadLatents(auxk=AuxK(k=K))} | changes
        settings |= self.arm.settings
        self._make = lambda d, **more: Trainee(
            {"d": d},
            TraineeSettings(**(settings | more)),
            steps=steps,
            batch=batch,
            seed=100 + seed,
        )
        torch.manual_seed(seed)
        width = n // 2 if self.arm.grown else n
        dictionary = Dictionary(autoencoder("s", WIDTH, width, TopK(k=K), **self.arm.spec))
        self.trainee, self.begun = self._make(dictionary), False

    @property
    def dictionary(self) -> Dictionary:
        """As it is now."""
        return self.trainee.dictionaries["d"]

    def step(self) -> None:
        """The next one, with all that is needed before it."""
        if not self.begun:
            first = self.x[: max(8192, self.source.batch)]
            self.trainee.begin(ArraySource({"s": first}, batch=len(first)).at(0))
            if self.arm.subspace is not None:
                self.dictionary.encoder.screen = Subspace(
                    first, self.dictionary, *self.arm.subspace
                )
            self.begun = True
        at = self.trainee.step_index
        if (
            self.arm.grown
            and at == round(GROWN_AT * self.steps)
            and self.dictionary.n_latents < self.n
        ):
            wider = grow(self.dictionary, self.n, self.x[-8192:])
            self.trainee = self._make(wider, start=None)
            self.trainee.step_index = at
        self.trainee.step(self.source.at(at))

    def screen(self) -> Callable[[LinearScorer], object] | None:
        """What latents are screened by, if they are."""
        if self.arm.subspace is not None:
            return self.dictionary.encoder.screen
        screening = self.trainee._screening.get("d")
        return None if screening is None or screening._likely is None else screening._screened


class Subspace:
    """Candidates by scores in the data's first principal directions, ranked by exact ones."""

    def __init__(self, x: Tensor, dictionary: Dictionary, rank: int, factor: int) -> None:
        scaled = x * dictionary.input_scale
        self._mean = scaled.mean(0)
        basis = torch.linalg.svd(scaled - self._mean, full_matrices=False).Vh[:rank]
        self._basis, self._factor = basis.T.contiguous(), factor

    def __call__(self, scorer: LinearScorer) -> "SubspaceScorer":
        """For the weights of one step."""
        basis, mean = self._basis.to(scorer.W.dtype), self._mean.to(scorer.W.dtype)
        bias = scorer.bias + (scorer.W @ mean).float()
        return SubspaceScorer(
            scorer, LinearScorer(scorer.W @ basis, bias), basis, mean, self._factor
        )


@dataclass
class SubspaceScorer:
    """See `Subspace`."""

    exact: LinearScorer
    rough: LinearScorer
    basis: Tensor
    mean: Tensor
    factor: int

    def __call__(self, tile: Tensor) -> Tensor:
        """All scores, exactly."""
        return self.exact(tile)

    def choose(self, x: Tensor, k: int) -> Selection:
        """The k largest of the candidates by exact scores."""
        n = len(self.exact.W)
        support = largest(self.rough, (x - self.mean) @ self.basis, n, self.factor * k).support
        score = inner(x, self.exact.W, support) + self.exact.bias[support.latent]
        best = score.view(len(x), -1).topk(k, dim=1)
        at = best.indices.sort(dim=1)
        latent = support.latent.view(len(x), -1).gather(1, at.values)
        score = best.values.gather(1, at.indices).reshape(-1)
        return Selection(Support.from_topk(latent, n), score)
