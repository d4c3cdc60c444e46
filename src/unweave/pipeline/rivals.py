"""Other ways to take the same network apart, made for one job: baselines and controls."""

from dataclasses import dataclass

from torch import nn

from unweave.activations.window import Harvester, start_vectors
from unweave.dictionaries.baselines.neurons import exact_block
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import output_site
from unweave.pipeline.job import Job
from unweave.subject.rows import TokenRows
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import (
    FewCoefficients,
    MeanOutput,
    random_part,
    top_neurons,
    top_pca,
)

BASELINES = {
    "neurons": (
        "the blocks' own neurons (entries of z, of queries and of keys for attention): as many per "
        "token, those that write most, computed by the original network"
    ),
    "pca": (
        "the largest coordinates of the blocks' true outputs in their principal directions, as "
        "many per token, computed by the original network"
    ),
}
"""What each baseline is."""


@dataclass(frozen=True)
class Rivals:
    """Stand-ins by part name, for every rival."""

    baselines: dict[str, dict[str, FewCoefficients]]
    """Described and scored like parts."""
    mean_ablation: dict[str, MeanOutput]
    random_dictionary: dict[str, nn.Module]


def rivals(job: Job, parts: dict[str, Part], text: TokenRows) -> Rivals:
    """Baselines and controls with the parts' own numbers of active latents.

    Means and principal directions are those of the first window of training text.
    """
    sites = [output_site(name) for name in parts]
    outputs = (
        Harvester(
            job.subject,
            text.train,
            sites,
            workers=job.workers,
            seed=0,
            settings=job.settings.harvest,
        )
        .window(0)
        .vectors
    )
    starts = start_vectors(job.subject, text.train, sites)
    blocks = {name: exact_block(job.subject, name) for name in parts}
    at = {name: output_site(name) for name in parts}
    random = {n: random_part(p, outputs[at[n]], seed=job.settings.seed) for n, p in parts.items()}
    pca = job.workers.map(
        lambda n: top_pca(blocks[n], outputs[at[n]], starts[at[n]], parts[n].spec.k), parts
    )
    return Rivals(
        baselines={
            "neurons": {
                n: top_neurons(blocks[n], starts[at[n]], p.spec.k) for n, p in parts.items()
            },
            "pca": dict(zip(parts, pca, strict=True)),
        },
        mean_ablation={n: MeanOutput(outputs[at[n]], starts[at[n]]) for n in parts},
        random_dictionary=dict(stand_ins(random.values(), AtStart())),
    )
