"""Statistics of the study's vectors, kept in statistics.json once measured."""

import json
from functools import cache

from read import HERE
from worlds import data

from unweave.artifact.atomic import write_json
from unweave.training.laws.data import DataStatistics, data_statistics

KEPT = HERE / "statistics.json"


@cache
def statistics(name: str) -> DataStatistics:
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    if name not in kept:
        found = data(name)
        kept[name] = data_statistics(found.train, tokens=found.tokens).model_dump()
        write_json(KEPT, kept)
    return DataStatistics.model_validate(kept[name])
