"""The aggregation test as a protocol of the suite."""

from unweave.artifact.scores import Number
from unweave.validate.bootstrap import Interval
from unweave.validate.interventions.aggregation import AggregationSettings, aggregate
from unweave.validate.interventions.protocol import heldout
from unweave.validate.protocols.protocol import Bench, Outcome


def aggregation(bench: Bench, settings: AggregationSettings | None = None) -> Outcome:
    """KL of unions of explanations, beside random sets of the same size."""
    settings = settings or AggregationSettings()
    found = aggregate(
        bench.subject, [bench.dictionary], heldout(bench), settings,
        seed=bench.seed, progress=bench.progress,
    )  # fmt: skip
    by_donor = {
        donor: {f"kl_{donor}_{count}": _nats(one) for count, one in each.items()}
        for donor, each in found.kl.items()
    }
    controls = by_donor.pop("random") | {"kl_nothing_kept": _nats(found.nothing)}
    numbers = {name: one for each in by_donor.values() for name, one in each.items()}
    return Outcome(
        protocol="aggregation",
        numbers=numbers | {"kl_never_needed_deleted": _nats(found.never_needed)},
        controls=controls,
        details={
            "settings": settings.model_dump(mode="json"), "text": bench.text, "seed": bench.seed,
            "size": {str(count): size for count, size in found.size.items()},
            "needed": found.needed, "active": found.active,
        },
    )  # fmt: skip


def _nats(found: Interval) -> Number:
    return Number(value=found.value, low=found.low, high=found.high, unit="nats/token")
