"""The stages that measure: splice modes, baselines and controls, continuations."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from unweave.activations.window import Harvester, start_vectors
from unweave.artifact import layout
from unweave.artifact.atomic import write_json
from unweave.artifact.scores import Fidelity, Splice
from unweave.decompile.firings import collect_firings
from unweave.decompile.modes import input_site, output_site
from unweave.decompile.network import DecompiledNetwork
from unweave.describe.describe import describe_part
from unweave.describe.evidence import PartEvidence
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.part import Part
from unweave.pipeline.evidence import evidence_rows, token_texts
from unweave.pipeline.job import Job
from unweave.pipeline.results import (
    BaselineResult,
    CompareResult,
    Done,
    PartFidelity,
    SpliceResult,
    fidelity_of,
    interval,
)
from unweave.pipeline.semantics import summarise
from unweave.subject.generation import continue_text
from unweave.subject.rows import TokenRows
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import (
    ExactAttentionOutput,
    ExactMLP,
    FewCoefficients,
    MeanOutput,
    SignedLatents,
    random_part,
    top_neurons,
    top_pca,
)
from unweave.validate.bootstrap import mean_interval
from unweave.validate.semantic import PartScores, score_part
from unweave.validate.splice import RowScores, fidelity, single_scores, splice_scores


def splice(job: Job, parts: dict[str, Part], text: TokenRows) -> SpliceResult:
    """CE increase, KL and top-1 agreement in every splice mode, and each part's fidelity."""

    def measured() -> SpliceResult:
        placed = stand_ins(parts.values(), AtStart())
        rows = _measured_rows(job, text)
        modes = {
            mode: splice_scores(
                job.subject, placed, rows, mode, workers=job.workers, progress=job.progress
            )
            for mode in ("propagated", "clean")
        }
        singles = single_scores(
            job.subject,
            placed,
            _single_rows(job, text, len(parts)),
            workers=job.workers,
            progress=job.progress,
        )
        every = RowScores(*(np.mean(c, axis=0) for c in zip(*singles.values(), strict=True)))
        return SpliceResult(
            ce_original=interval(mean_interval(modes["propagated"].ce_original)),
            splice=Splice(
                clean=fidelity_of(modes["clean"]),
                single=fidelity_of(every),
                propagated=fidelity_of(modes["propagated"]),
            ),
            single={name: fidelity_of(scores) for name, scores in singles.items()},
            parts=_fidelities(job, parts, rows),
        )

    return job.stage("splice", SpliceResult, measured)


def _measured_rows(job: Job, text: TokenRows) -> Tensor:
    return text.heldout[: max(2, job.settings.measure.tokens // text.heldout.shape[1])]


def _single_rows(job: Job, text: TokenRows, parts: int) -> Tensor:
    rows = job.settings.measure.single_tokens // (parts * text.heldout.shape[1])
    return text.heldout[: max(4, rows)]


def _fidelities(job: Job, parts: dict[str, Part], rows: Tensor) -> dict[str, PartFidelity]:
    sites = [site(name) for name in parts for site in (input_site, output_site)]
    harvester = Harvester(
        job.subject, rows, sites, workers=job.workers, seed=0, settings=job.settings.harvest
    )
    vectors = harvester.window(0).vectors  # one window holds what is measured, or a part of it
    found = job.workers.map(
        lambda n: fidelity(parts[n], vectors[input_site(n)], vectors[output_site(n)]), parts
    )
    return {name: PartFidelity(**one._asdict()) for name, one in zip(parts, found, strict=True)}


def compare(job: Job, parts: dict[str, Part], text: TokenRows) -> CompareResult:
    """Baselines with as many active numbers per token, and controls that must fail."""

    def compared() -> CompareResult:
        sites = [output_site(name) for name in parts]
        harvester = Harvester(
            job.subject,
            text.train,
            sites,
            workers=job.workers,
            seed=0,
            settings=job.settings.harvest,
        )
        outputs = harvester.window(0).vectors
        starts = start_vectors(job.subject, text.train, sites)
        neurons: dict[str, FewCoefficients] = {}
        pca: dict[str, FewCoefficients] = {}
        for name, part in parts.items():
            block = _exact(job, name)
            site, k = output_site(name), part.spec.k
            neurons[name] = top_neurons(block, starts[site], k)
            pca[name] = top_pca(block, outputs[site], starts[site], k)
        mean = {n: MeanOutput(outputs[output_site(n)], starts[output_site(n)]) for n in parts}
        random = {
            name: random_part(part, outputs[output_site(name)], seed=job.settings.seed)
            for name, part in parts.items()
        }
        return CompareResult(
            neurons=_baseline(job, parts, text, neurons),
            pca=_baseline(job, parts, text, pca),
            mean_ablation=_propagated(job, mean, text),
            random_dictionary=_propagated(job, stand_ins(random.values(), AtStart()), text),
        )

    return job.stage("compare", CompareResult, compared)


def _exact(job: Job, name: str) -> ExactMLP | ExactAttentionOutput:
    layer, kind = name[1:].split(".")
    if kind == "mlp":
        return ExactMLP(job.subject.mlp_weights(int(layer)))
    return ExactAttentionOutput(job.subject.attention_weights(int(layer)))


def _propagated(job: Job, placed: Mapping[str, nn.Module], text: TokenRows) -> Fidelity:
    scores = splice_scores(
        job.subject,
        placed,
        _measured_rows(job, text),
        "propagated",
        workers=job.workers,
        progress=job.progress,
    )
    return fidelity_of(scores)


def _baseline(
    job: Job, parts: dict[str, Part], text: TokenRows, placed: dict[str, FewCoefficients]
) -> BaselineResult:
    """A baseline's splice, and its coefficients described and scored like latents."""
    rows, explain_rows = evidence_rows(job, parts, text)
    signed = {name: SignedLatents(few) for name, few in placed.items()}
    firings = collect_firings(
        job.subject,
        signed,
        rows,
        workers=job.workers,
        harvest=job.settings.harvest,
        progress=job.progress,
    )
    texts = token_texts(job.subject)
    vocabulary = Vocabulary.from_decode(texts.__getitem__, len(texts))

    def describe(name: str) -> tuple[float, int, PartScores]:
        fired = firings[name]
        evidence = PartEvidence(
            part=name,
            tokens=rows.numpy(),
            explain_rows=explain_rows,
            token_indptr=fired.token_indptr,
            latent=fired.latent,
            value=fired.value.astype(np.float32),
            n_latents=signed[name].n_latents,
            vocabulary=vocabulary,
        )
        said = describe_part(evidence, job.settings.describe)
        alive = [d for d in said if d.count > 0]
        return sum(d.bits for d in alive), len(alive), score_part(evidence, said)

    bits, described, scores = 0.0, 0, []
    with job.progress.task("Describing a baseline", total=len(placed), unit="parts") as advance:
        for one in job.workers.map(describe, placed):
            bits, described = bits + one[0], described + one[1]
            scores.append(one[2])
            advance(1)
    return BaselineResult(
        propagated=_propagated(job, placed, text),
        semantic=summarise(scores, bits, described),
        dictionary_numbers=sum(few.W_dec.numel() for few in placed.values()),
    )


def continue_prompts(job: Job, parts: dict[str, Part], text: TokenRows) -> None:
    """The beginnings of held-out rows, continued greedily by both networks, side by side."""

    def continued() -> Done:
        tokenizer, settings = job.subject.tokenizer, job.settings.measure
        samples = []
        if tokenizer is not None:
            network = DecompiledNetwork(job.subject, parts)
            length = min(16, text.heldout.shape[1] // 2)
            # A row may begin in the middle of a document; it is a prompt all the same.
            for row in text.heldout[: settings.samples]:
                prompt = tokenizer.decode(row[1 : 1 + length].tolist())
                with torch.inference_mode():
                    both = [
                        continue_text(one, prompt, settings.sample_tokens)
                        for one in (job.subject, network.subject)
                    ]
                samples.append({"prompt": prompt, "original": both[0], "decompiled": both[1]})
        write_json(job.artifact / layout.SAMPLES, samples)
        return Done()

    job.stage("samples", Done, continued)
