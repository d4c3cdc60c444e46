"""A small artifact with planted values, written with the same tools as real ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unweave.artifact import layout
from unweave.artifact.arrays import save_array
from unweave.artifact.atomic import write_json
from unweave.artifact.descriptions import Description, write_descriptions
from unweave.artifact.feature_id import FeatureId, short_hash
from unweave.artifact.firings import write_firings
from unweave.artifact.manifest import Provenance, seal
from unweave.artifact.records import SubjectRecord, TextRecord
from unweave.artifact.scores import (
    Baseline,
    Control,
    Detection,
    Fidelity,
    FourNumbers,
    Interval,
    Number,
    PartScore,
    Scores,
    Semantic,
    Splice,
    Stage,
    write_scores,
)
from unweave.artifact.tables import write_table
from unweave.artifact.tensors import save_tensors

WORDS = (
    "<s>", " the", " little", " girl", " dog", " ran", " to", " her", " mother", ".", "\n",
    " and", " said", ",", " \"", "hello", "ing", " park", " happy", " was", " cake", "!", " big",
    " red", " ball", " 3", "é", " friend", " saw", "\ufffd", "🐕", " tree",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to plant."""

    layers: int = 2
    latents: int = 24
    rows: int = 40
    context: int = 32
    name: str = "wren"
    words: tuple[str, ...] = WORDS
    describe: str = "fires on {word} number {latent}"
    prompt: str = "Once upon a time"
    original: str = " there was a little girl who loved her dog."
    decompiled: str = " there was a little boy who loved her dog."
    text: str = "heldout"
    seed: int = 0
    parts: tuple[str, ...] = ()
    control: bool = True

    def part_names(self) -> list[str]:
        """All parts, by layer, MLP first."""
        kinds = ("mlp", "attn")
        return list(self.parts) or [f"L{i}.{kind}" for i in range(self.layers) for kind in kinds]


def write_artifact(folder: Path, plan: Plan | None = None) -> Path:
    """Write a whole artifact and return its folder."""
    plan = plan or Plan()
    random = np.random.default_rng(plan.seed)
    tokens = random.integers(1, len(plan.words), (plan.rows, plan.context)).astype(np.int32)
    tokens[:, 0] = 0
    save_array(folder / layout.TOKENS, tokens)
    write_json(folder / layout.TOKEN_TEXT, list(plan.words))
    for part in plan.part_names():
        _part(folder, part, tokens, plan, random)
    digest = short_hash(layout.weights_of(folder, plan.part_names()[0]))
    _graph(folder, plan, digest, random)
    _descriptions(folder, plan, digest, random)
    samples = [
        {
            "prompt": plan.prompt,
            "original": plan.prompt + plan.original,
            "decompiled": plan.prompt + plan.decompiled,
        }
    ]
    write_json(folder / layout.SAMPLES, samples)
    write_scores(folder / layout.SCORES, scores(plan, random))
    seal(folder, provenance(plan))
    return folder


def subject(plan: Plan) -> SubjectRecord:
    """The network that was taken apart."""
    return SubjectRecord(
        name=plan.name,
        fingerprint="feedface" * 8,
        family="llama",
        n_layers=max(plan.layers, 1),
        d_model=192,
        d_mlp=512,
        n_heads=6,
        n_kv_heads=3,
        d_head=32,
        vocab_size=len(plan.words),
        parameters=1_870_000,
    )


def text(plan: Plan) -> TextRecord:
    """The text it was run on."""
    return TextRecord(
        name=plan.text, sha256="ab" * 32, tokens=400_000, heldout_tokens=20_480, context=256
    )


def provenance(plan: Plan) -> Provenance:
    """What the manifest says apart from the files."""
    return Provenance(
        subject=subject(plan),
        text=text(plan),
        settings={"training": {"latents": 8, "lr": 0.005}, "note": plan.name},
        seed=41,
        threads=2,
        dtype="float32",
        parts=plan.part_names(),
        explain_rows=plan.rows // 2,
    )


def four(loss: float, bits: float) -> dict[str, Number]:
    """The four numbers."""
    return {
        "math_accuracy": Number(value=loss, low=loss - 0.011, high=loss + 0.011, unit="nats/token"),
        "math_length_bits": Number(value=bits, low=bits - 13, high=bits + 13, unit="bits/token"),
        "semantic_accuracy": Number(value=0.312, low=0.301, high=0.323, unit="share of the bits"),
        "semantic_length_bits": Number(value=6.71, unit="bits/token"),
    }


def fidelity(loss: float, agreement: float) -> Fidelity:
    """A fidelity around a loss."""
    return Fidelity(
        ce_increase=Interval(value=loss, low=loss - 0.011, high=loss + 0.011),
        kl=Interval(value=loss + 0.013, low=loss + 0.002, high=loss + 0.024),
        top1_agreement=Interval(value=agreement, low=agreement - 0.007, high=agreement + 0.007),
    )


def scores(plan: Plan, random: np.random.Generator) -> Scores:
    """scores.json with planted values."""
    return Scores(
        subject=subject(plan),
        text=text(plan),
        tokens=400_000,
        seconds=221.4,
        peak_rss_bytes=3_100_000_000,
        threads=2,
        dtype="float32",
        ce_original=Interval(value=1.227, low=1.2, high=1.25),
        splice=Splice(
            clean=fidelity(0.187, 0.833),
            single=fidelity(0.066, 0.921),
            propagated=fidelity(0.218, 0.812),
        ),
        controls={
            "mean_ablation": Control(ce_increase=Interval(value=8.02), note=plan.name),
            "zero_ablation": Control(ce_increase=Interval(value=9.31)),
        },
        active_features_per_token=160.0,
        alive_fraction=0.874,
        four_numbers=FourNumbers(**four(0.218, 812.0)),
        baselines={
            "neurons": Baseline(**four(1.013, 640.0), note="The strongest neurons of each MLP."),
            "pca": Baseline(**four(1.76, 1203.0)),
        },
        semantic=Semantic(
            auroc_mean=Interval(value=0.751, low=0.74, high=0.76),
            correlation_mean=Interval(value=0.402),
            described=777,
            shuffled=Detection(
                auroc_mean=Interval(value=0.503), correlation_mean=Interval(value=0.004)
            ),
        ),
        parts=[_part_score(part, plan, random) for part in plan.part_names()],
        stages=[Stage(name="training", seconds=180.5), Stage(name="describe", seconds=9.0)],
    )


def _part_score(part: str, plan: Plan, random: np.random.Generator) -> PartScore:
    robust = float(random.uniform(0.1, 0.4))
    return PartScore(
        part=part,
        site_in="in",
        site_out="out",
        n_latents=plan.latents,
        l0=16.0,
        alive_fraction=float(random.uniform(0.6, 1.0)),
        fvu=robust * float(random.uniform(0.2, 0.9)),
        fvu_robust=robust,
        single=fidelity(float(random.exponential(0.08)) - 0.01, 0.92),
    )


def _part(
    folder: Path, part: str, tokens: np.ndarray, plan: Plan, random: np.random.Generator
) -> None:
    """Latent j fires on tokens of kind j + 1 (mod vocabulary), more strongly late in a row."""
    n = plan.latents
    flat = tokens.reshape(-1)
    fires = (flat > 0) & (flat <= n) & (random.random(flat.shape) < 0.8)
    latent = (flat[fires] - 1).astype(np.int32)
    place = np.flatnonzero(fires)
    value = (random.gamma(2.0, 1.0, len(place)) + 0.1).astype(np.float16).astype(np.float32)
    pointer = np.r_[0, np.cumsum(fires)].astype(np.int64)
    write_firings(layout.firings_of(folder, part), latent, value, pointer, n)
    save_tensors(layout.weights_of(folder, part), {"W": np.zeros(3, np.float32)})
    table = _features(latent, value, place, n, tokens.size - len(tokens))
    for kind, sign in (("promoted", 1), ("suppressed", -1)):
        table[f"{kind}_token"] = random.integers(0, len(plan.words), (n, 10)).astype(np.int32)
        effects = np.sort(random.random((n, 10)), axis=1)[:, ::-1] * sign
        table[f"{kind}_logit"] = effects.astype(np.float32)
    save_tensors(layout.features_of(folder, part), table)


def _features(
    latent: np.ndarray, value: np.ndarray, place: np.ndarray, n: int, places: int
) -> dict[str, np.ndarray]:
    edges = np.geomspace(0.05, 20.0, 33).astype(np.float32)
    bands = np.repeat(np.arange(6), [10, 2, 2, 2, 2, 2]).astype(np.int8)
    position = np.full((n, 20), -1, np.int64)
    strength = np.zeros((n, 20), np.float32)
    histogram = np.zeros((n, 32), np.int32)
    greatest = np.zeros(n, np.float32)
    for one in range(n):
        mine = np.flatnonzero(latent == one)
        mine = mine[np.argsort(-value[mine], kind="stable")][:20]
        position[one, : len(mine)], strength[one, : len(mine)] = place[mine], value[mine]
        histogram[one] = np.histogram(value[latent == one], edges)[0]
        greatest[one] = value[latent == one].max(initial=0.0)
    count = np.bincount(latent, minlength=n).astype(np.int64)
    return {
        "count": count,
        "frequency": (count / places).astype(np.float32),
        "mean_active": np.full(n, 2.0, np.float32),
        "max_active": greatest,
        "histogram": histogram,
        "histogram_edges": edges,
        "example_position": position,
        "example_value": strength,
        "example_band": bands,
    }


def _graph(folder: Path, plan: Plan, digest: str, random: np.random.Generator) -> None:
    names = plan.part_names()
    first, last = names[0], names[-1]
    rows: list[tuple[str, str, float, float]] = []
    for one in range(plan.latents):
        weight, word = float(random.normal()), one % len(plan.words)
        start, end = f"{first}/{one}@{digest}", f"{last}/{one}@{digest}"
        rows.append((start, end, weight, weight * 2))
        rows.append((f"token/{word}", start, weight, weight))
        rows.append((end, f"logit/{word}", weight, weight))
    rows.append((f"{first}/1@{digest}", f"{last}/2@{digest}", 12.375, -24.625))
    source, target, weights, used = zip(*rows, strict=True)
    write_table(
        folder / layout.EDGES_TABLE,
        {
            "source": source,
            "target": target,
            "weight": np.array(weights, np.float32),
            "kind": ["virtual"] * len(rows),
            "used": np.array(used, np.float32),
        },
    )


def _descriptions(folder: Path, plan: Plan, digest: str, random: np.random.Generator) -> None:
    told = []
    for part in plan.part_names():
        for latent in range(plan.latents):
            score = float(random.beta(6, 2))
            measured = {"auroc": score, "correlation": score * 0.8}
            if plan.control:
                measured["auroc_shuffled"] = float(random.normal(0.5, 0.03))
            word = plan.words[latent % len(plan.words)]
            told.append(
                Description(
                    feature=FeatureId(part, latent, digest),
                    text=plan.describe.format(word=word, latent=latent),
                    claim={"kind": "token"},
                    scores=measured,
                    bits=37.0,
                )
            )
    write_descriptions(folder / layout.DESCRIPTIONS, told)
