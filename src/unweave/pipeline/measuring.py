"""The stages that measure predictions: splice modes beside baselines and controls, samples."""

import numpy as np
import torch
from torch import Tensor

from unweave.activations.window import Harvester
from unweave.artifact import layout
from unweave.artifact.atomic import write_json
from unweave.artifact.scores import Splice
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import input_site, output_site
from unweave.pipeline.job import Job
from unweave.pipeline.results import Done, PartFidelity, SpliceResult, fidelity_of, interval
from unweave.pipeline.rivals import Rivals
from unweave.subject.generation import continue_text
from unweave.subject.rows import TokenRows
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import RowScores, Variant, fidelity, single_scores, splice_scores


def splice(job: Job, parts: dict[str, Part], others: Rivals, text: TokenRows) -> SpliceResult:
    """CE increase, KL and top-1 agreement in every splice mode, of the parts and their rivals."""

    def measured() -> SpliceResult:
        placed = stand_ins(parts.values(), AtStart())
        rows = text.heldout[: max(2, job.settings.measure.tokens // text.heldout.shape[1])]
        variants = {
            "propagated": Variant(placed, "propagated"),
            "clean": Variant(placed, "clean"),
            "mean_ablation": Variant(others.mean_ablation, "propagated"),
            "random_dictionary": Variant(others.random_dictionary, "propagated"),
            **{kind: Variant(s, "propagated") for kind, s in others.baselines.items()},
        }
        scores = splice_scores(
            job.subject, variants, rows, workers=job.workers, progress=job.progress
        )
        singles = single_scores(
            job.subject,
            placed,
            _single_rows(job, text, len(parts)),
            workers=job.workers,
            progress=job.progress,
        )
        every = RowScores(*(np.mean(c, axis=0) for c in zip(*singles.values(), strict=True)))
        found = {name: fidelity_of(row_scores) for name, row_scores in scores.items()}
        return SpliceResult(
            ce_original=interval(mean_interval(scores["propagated"].ce_original)),
            splice=Splice(
                clean=found["clean"],
                single=fidelity_of(every),
                propagated=found["propagated"],
            ),
            single={name: fidelity_of(row_scores) for name, row_scores in singles.items()},
            parts=_fidelities(job, parts, rows),
            rivals={name: found[name] for name in found if name not in ("propagated", "clean")},
        )

    return job.stage("splice", SpliceResult, measured)


def _single_rows(job: Job, text: TokenRows, parts: int) -> Tensor:
    rows = job.settings.measure.single_tokens // (parts * text.heldout.shape[1])
    return text.heldout[: max(4, rows)]


def _fidelities(job: Job, parts: dict[str, Part], rows: Tensor) -> dict[str, PartFidelity]:
    sites = [site(name) for name in parts for site in (input_site, output_site)]
    harvester = Harvester(
        job.subject, rows, sites, workers=job.workers, seed=0, settings=job.settings.harvest
    )
    vectors = harvester.window(0).vectors  # all that is measured, or as much as a window holds
    found = job.workers.map(
        lambda n: fidelity(parts[n], vectors[input_site(n)], vectors[output_site(n)]), parts
    )
    return {name: PartFidelity(**one._asdict()) for name, one in zip(parts, found, strict=True)}


def continue_prompts(job: Job, parts: dict[str, Part], text: TokenRows) -> None:
    """The beginnings of held-out rows, continued by both networks, side by side.

    Each takes its likeliest token; then, for the first prompts again, both draw with the same
    chance, so that they differ where their probabilities do.
    """

    def continued() -> Done:
        tokenizer, settings = job.subject.tokenizer, job.settings.measure
        samples = []
        if tokenizer is not None:
            network = DecompiledNetwork(job.subject, parts)
            length = min(16, text.heldout.shape[1] // 2)
            # A row may begin in the middle of a document; it is a prompt all the same.
            prompts = [
                tokenizer.decode(row[1 : 1 + length].tolist())
                for row in text.heldout[: settings.samples]
            ]
            how = [(prompt, 0.0) for prompt in prompts]
            how += [(prompt, settings.temperature) for prompt in prompts[: settings.drawn_samples]]
            samples = [_sample(job, network, *one) for one in how]
        write_json(job.artifact / layout.SAMPLES, samples)
        return Done()

    job.stage("samples", Done, continued)


def _sample(job: Job, network: DecompiledNetwork, prompt: str, temperature: float) -> dict:
    """One prompt, continued by both."""
    assert job.subject.tokenizer is not None
    # The start token and what the prompt is read as again, which may differ.
    room = job.subject.context - 1 - len(job.subject.tokenizer.encode(prompt))
    new = max(0, min(job.settings.measure.sample_tokens, room))
    seed = job.settings.seed
    with torch.inference_mode():
        original, decompiled = (
            continue_text(one, prompt, new, temperature=temperature, seed=seed)
            for one in (job.subject, network.subject)
        )
    both = {"prompt": prompt, "original": original, "decompiled": decompiled}
    return both | {"temperature": temperature, "seed": seed}
