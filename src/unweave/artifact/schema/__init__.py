"""JSON Schemas of the artifact's JSON files, made from the models that read them.

`python -m unweave.artifact.schema` writes them anew after a model has changed.
"""

import json
from pathlib import Path

from unweave.artifact.manifest import Manifest
from unweave.artifact.records import Record
from unweave.artifact.scores import Scores

FOLDER = Path(__file__).parent


def schemas() -> dict[str, str]:
    """The content of each schema file in this folder, by name, as the models are now."""
    models: dict[str, type[Record]] = {"manifest": Manifest, "scores": Scores}
    return {
        f"{name}.schema.json": json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                **model.model_json_schema(),
            },
            indent=1,
        )
        + "\n"
        for name, model in models.items()
    }
