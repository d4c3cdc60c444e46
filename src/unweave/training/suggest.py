"""Settings for a dictionary without a sweep: what our measured laws say about these vectors.

What is known of the data comes from statistics of the vectors, and, if asked for, from three tiny
runs on them (the probe). Equal arguments give equal suggestions.
"""

import math

from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.errors import UserError
from unweave.training.laws.data import DataStatistics, data_statistics
from unweave.training.laws.measured import Z90, Measured, measured
from unweave.training.laws.scaling import Point
from unweave.training.laws.shift import Belief
from unweave.training.laws.spliced import Relation
from unweave.training.trial import Outcome, Trial, run_trials

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of active latents that are thought of."""
FEWEST = 4
"""The least k that is chosen unasked: fewer were never measured."""
NARROWEST, WIDEST = 0.5, 64
"""Numbers of latents that are thought of, over the width of the vectors."""
EARNS = 0.02
"""A wider dictionary is suggested only if it lowers the predicted FVU by more than this share."""
PROBE_TOKENS = 32_768
"""Vectors that each run of the probe is trained on, at most."""


class SuggestSettings(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: str = Field(default="topk", pattern="^(topk|l1)$")
    """`topk`, or `l1` for ReLU with an L1 penalty."""
    k: PositiveInt | None = None
    """Active latents per vector; chosen where it is not given ..."""
    fvu: float | None = Field(default=None, gt=0, lt=1)
    """... as the fewest that should reach this FVU, where it is ..."""
    flops: PositiveFloat | None = None
    """Most floating-point operations the run may take."""
    seconds: PositiveFloat | None = None
    """Most seconds it may take, at `flops_per_second`."""
    flops_per_second: PositiveFloat | None = None
    """Speed of this machine; that of the study's, one core, when it is not given."""
    probe: bool = False
    """Whether to train three tiny dictionaries on the vectors first."""
    seed: int = 0
    """Seed of the statistics, the probe and the run suggested."""


class Predicted(BaseModel):
    """A prediction with its 90 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    value: float
    """The most likely."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class Suggestion(BaseModel):
    """Settings and what to expect of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trial: Trial
    """The run: latents, k or penalty weight, learning rate, batch, warm-up, tokens."""
    l0: float
    """Active latents per vector to expect."""
    fvu: Predicted
    """Share of the variance left."""
    ce_increase: Predicted | None
    """Rise of the next-token loss with the dictionary in place, nats; None without a subject."""
    dead: Predicted
    """Share of latents that never fire."""
    flops: float
    """Operations of the run."""
    seconds: float
    """Seconds at the speed assumed."""
    probe: tuple[Outcome, ...]
    """The probe's runs."""
    statistics: DataStatistics
    """What the vectors are like."""
    law: tuple[str, ...]
    """Why, in words."""


def suggest(
    vectors: Float[Tensor, "rows width"],
    *,
    tokens: int,
    settings: SuggestSettings | None = None,
    text: Int[Tensor, "rows_of_text pos"] | None = None,
    relation: Relation | None = None,
    numbers: Measured | None = None,
    workers: Workers | None = None,
) -> Suggestion:
    """Settings for a dictionary on these vectors, trained on `tokens` of them.

    `text` adds its entropy to the statistics; `relation` (see `laws.spliced`) turns the predicted
    FVU into a rise of CE; `numbers` replace those that ship with unweave.

    Raises:
        UserError: too few vectors, or a budget that pays for no dictionary at all.
    """
    settings, numbers = settings or SuggestSettings(), numbers or measured()
    statistics = data_statistics(vectors, tokens=text, seed=settings.seed)
    width = statistics.width
    if tokens < 2 * numbers.batch:
        raise UserError(f"{tokens} tokens are fewer than two steps of {numbers.batch}: give more")
    prior = numbers.shift.prior(statistics)
    outlook = _Outlook(numbers, prior, tokens, statistics, settings)
    probe: tuple[Outcome, ...] = ()
    if settings.probe:
        probe = tuple(_probed(outlook, vectors, workers))
        points = [Point(o.trial.n_latents, o.l0, o.trial.tokens, o.fvu) for o in probe if o.fvu > 0]
        noise = math.hypot(numbers.noise, 0.02)
        outlook = _Outlook(
            numbers, prior.updated(points, numbers.law, noise), tokens, statistics, settings
        )
    k = outlook.choose_k()
    n = outlook.choose_n(k)
    trial = outlook.trial(n, k)
    fvu = outlook.fvu(n, k)
    flops = trial.flops(width)
    return Suggestion(
        trial=trial,
        l0=k,
        fvu=fvu,
        ce_increase=None if relation is None else _ce(relation, fvu, numbers),
        dead=Predicted(**numbers.dead.predict(n, k, tokens)._asdict()),
        flops=flops,
        seconds=flops / outlook.speed,
        probe=probe,
        statistics=statistics,
        law=tuple(outlook.words(n, k)),
    )


class _Outlook:
    """What the laws say for one set of vectors, a number of tokens and a budget."""

    def __init__(
        self,
        numbers: Measured,
        belief: Belief,
        tokens: int,
        statistics: DataStatistics,
        settings: SuggestSettings,
    ) -> None:
        self.numbers, self.belief, self.tokens = numbers, belief, tokens
        self.statistics, self.settings = statistics, settings
        self.width, self.dimension = statistics.width, max(statistics.intrinsic, 1.0)
        self.speed = settings.flops_per_second or numbers.flops_per_second
        limits = [settings.flops, settings.seconds and settings.seconds * self.speed]
        self.limit = min((limit for limit in limits if limit), default=math.inf)
        powers = [2**j for j in range(4, 24)]
        self.widths = [n for n in powers if NARROWEST <= n / self.width <= WIDEST]

    def trial(self, n: int, k: int, *, tokens: int | None = None, seed: int | None = None) -> Trial:
        """The run for a size."""
        tokens = tokens or self.tokens
        batch, l1 = self.numbers.batch, None
        if self.settings.form == "l1":
            l1 = self.numbers.l1.weight(k, self.width)
        return Trial(
            n_latents=n,
            k=k if l1 is None else None,
            l1=l1,
            target_l0=None if l1 is None else k,
            lr=self.numbers.best_rate(n, k, tokens / batch, self.width),
            tokens=tokens,
            batch=batch,
            warmup=self.numbers.warmup,
            seed=self.settings.seed if seed is None else seed,
        )

    def fvu(self, n: int, k: int) -> Predicted:
        """The FVU of a size with a 90 % interval: the law's, the data's and a run's own scatter."""
        law, numbers = self.numbers.law, self.numbers
        shift, variance = self.belief.at(n, k)
        variance += numbers.noise**2 + float(law.draws(n, k, self.tokens).var())
        if self.settings.form == "l1":
            shift += numbers.l1.excess
            variance += numbers.l1.excess_scatter**2
        middle = math.log(law(n, k, self.tokens)) + shift
        low, value, high = (math.exp(middle + s * Z90 * math.sqrt(variance)) for s in (-1, 0, 1))
        return Predicted(value=min(value, 1.0), low=min(low, 1.0), high=min(high, 1.0))

    def affordable(self, k: int) -> list[int]:
        """Widths within the budget that have room for k."""
        return [
            n
            for n in self.widths
            if n >= 4 * k and self.trial(n, k).flops(self.width) <= self.limit
        ]

    def choose_n(self, k: int) -> int:
        """The narrowest affordable width within `EARNS` of the best predicted FVU."""
        widths = self.affordable(k)
        if not widths:
            least = min(self.trial(n, k).flops(self.width) for n in self.widths)
            raise UserError(
                f"The budget of {self.limit:.2g} operations pays for no dictionary with k={k} on "
                f"{self.tokens} vectors: allow {least:.2g}, or fewer tokens"
            )
        found = {n: self.fvu(n, k).value for n in widths}
        return next(n for n in widths if found[n] <= min(found.values()) * (1 + EARNS))

    def choose_k(self) -> int:
        """The k asked for, the fewest that reach the FVU asked for, or what the dimension of the
        data suggests."""
        if self.settings.k is not None:
            return self.settings.k
        options = [k for k in KS if k <= self.width // 2 and self.affordable(k)] or [KS[0]]
        if (goal := self.settings.fvu) is not None and self.affordable(options[0]):
            best = {k: self.fvu(self.choose_n(k), k).value for k in options}
            return next((k for k in options if best[k] <= goal), options[-1])
        wanted = max(math.log(self.numbers.k_per_dimension * self.dimension), math.log(FEWEST))
        return min(options, key=lambda k: abs(math.log(k) - wanted))

    def words(self, n: int, k: int) -> list[str]:
        """The law behind a suggestion."""
        numbers = self.numbers
        c, rate = numbers.law.coefficients, numbers.rate
        shift, variance = self.belief.at(n, k)
        near = 256 <= n <= 4 * 2048 and 4 <= k <= 32
        by = "statistics of the vectors"
        by += " and a probe" if self.settings.probe else ""
        return [
            f"FVU falls as n^{c['b_n']:.2f} k^{c['b_k']:.2f} towards a floor that falls as "
            f"k^{c['h']:.2f}; after T vectors what is above the converged value falls as "
            f"(T / n^{c['s']:.2f})^-{c['e']:.2f}.",
            f"By {by} these data lie {shift:+.2f} +- {Z90 * math.sqrt(variance):.2f} in log FVU "
            "from the data of the law.",
            f"The best learning rate goes as n^{rate.n_power:.2f} k^{rate.k_power:.2f} "
            f"steps^{rate.steps_power:.2f} width^{numbers.rate_width:.2f}.",
            *([] if self.settings.k or self.settings.fvu else [self._about_k(k)]),
            f"n={n} is the narrowest affordable width within {EARNS:.0%} of the best FVU.",
            *(
                ["The L1 weight is a first guess, steered to the L0 while training."]
                if self.settings.form == "l1"
                else []
            ),
            *([] if near else [f"n={n}, k={k} lie beyond what was measured: trust this less."]),
        ]

    def _about_k(self, k: int) -> str:
        return (
            f"k={k} is what a TwoNN dimension of {self.dimension:.1f} goes with in planted data; "
            "give --k or --fvu if you know what you need."
        )


def _probed(outlook: _Outlook, vectors: Tensor, workers: Workers | None) -> list[Outcome]:
    k = min(outlook.settings.k or 8, outlook.width // 8)
    heldout = max(256, len(vectors) // 10)
    tokens = min(PROBE_TOKENS, outlook.tokens)
    sizes = [(2 * outlook.width, k), (8 * outlook.width, k), (4 * outlook.width, 2 * k)]
    plain = SuggestSettings(k=k, seed=outlook.settings.seed)
    outlook = _Outlook(outlook.numbers, outlook.belief, tokens, outlook.statistics, plain)
    trials = [outlook.trial(n, k) for n, k in sizes]
    return list(run_trials(trials, vectors[:-heldout], vectors[-heldout:], workers=workers))


def _ce(relation: Relation, fvu: Predicted, numbers: Measured) -> Predicted:
    """The geometric mean of what truncation and noise cost, corrected by what dictionaries did."""

    def middle(at: float) -> float:
        truncation, noise = relation.at(at)
        return math.sqrt(truncation * noise) * math.exp(numbers.ce.excess)

    spread = math.exp(Z90 * numbers.ce.scatter)
    return Predicted(
        value=middle(fvu.value), low=middle(fvu.low) / spread, high=middle(fvu.high) * spread
    )
