"""The stage that reads how features interact."""

import numpy as np

from unweave.artifact import layout
from unweave.artifact.feature_id import FeatureId, short_hash
from unweave.artifact.tables import write_table
from unweave.decompile.edges import LOGITS, TOKENS, interaction_edges
from unweave.dictionaries.part import Part
from unweave.pipeline.evidence import part_firings
from unweave.pipeline.job import Job
from unweave.pipeline.results import Done


def connect(job: Job, parts: dict[str, Part]) -> None:
    """Interaction edges between features, from weights, ranked by what they deliver."""

    def connected() -> Done:
        edges = interaction_edges(
            job.subject,
            parts,
            {name: part_firings(job, name) for name in parts},
            workers=job.workers,
            settings=job.settings.edges,
            progress=job.progress,
        )
        digest = {name: short_hash(layout.weights_of(job.artifact, name)) for name in parts}

        def named(part: str, index: int) -> str:
            if part in (TOKENS, LOGITS):
                return f"{part}/{index}"
            return str(FeatureId(part, index, digest[part]))

        (job.artifact / "graph").mkdir(exist_ok=True)
        write_table(
            job.artifact / layout.EDGES_TABLE,
            {
                "source": [named(*e) for e in zip(edges.source_part, edges.source, strict=True)],
                "target": [named(*e) for e in zip(edges.target_part, edges.target, strict=True)],
                "weight": np.array(edges.weight, dtype=np.float32),
                "kind": ["virtual"] * len(edges.weight),
                "used": np.array(edges.used, dtype=np.float32),
            },
        )
        return Done()

    job.stage("edges", Done, connected)
