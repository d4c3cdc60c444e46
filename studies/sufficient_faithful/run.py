"""Is what suffices also what the network uses? Explanations that must add up, and tuning for it.

    OMP_NUM_THREADS=1 python studies/sufficient_faithful/run.py tune WORK STORIES260K_FOLDER
    OMP_NUM_THREADS=1 python studies/sufficient_faithful/run.py artifact NAME SUBJECT TEXT FOLDER
    OMP_NUM_THREADS=1 python studies/sufficient_faithful/run.py plot

`tune` decompiles stories260K and tunes it on, plainly and against masks, for equally many tokens;
WORK keeps what is done. `artifact` runs the aggregation test on a finished decompilation. Both
write into numbers.json beside this file, `plot` aggregation.png.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.artifact.atomic import write_json
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.adversarial import (
    AdversarialLoss,
    AdversarialSettings,
    Masks,
    needed_latents,
)
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.bootstrap import Interval
from unweave.validate.interventions.aggregation_network import (
    NetworkAggregation,
    NetworkAggregationSettings,
    aggregate_network,
)
from unweave.validate.splice import compare_logits

HERE = Path(__file__).parent
LOCAL_ROWS, BASE_TOKENS, MORE_TOKENS, LR = 1_200, 150_000, 60_000, 1e-3
CONTEXT, DONORS, ASKED = 32, 128, 64
ARMS: dict[str, AdversarialSettings | None] = {
    "plain": None,
    "random masks": AdversarialSettings(masks="random"),
    "adversarial masks": AdversarialSettings(masks="adversarial"),
}
JUDGES = {
    "random": AdversarialSettings(masks="random"),
    "on or off": AdversarialSettings(masks="binary"),
    "adversarial": AdversarialSettings(steps=6, step=0.3),
    "adversarial, 8 more let in": AdversarialSettings(steps=6, step=0.3, more=8),
}
SHARE, SPAN = 0.8, 32
"""Of the attribution, what counts as needed where masks are judged, in spans of positions."""


def base(subject: Subject, rows: Tensor, work: Path) -> dict[str, Part]:
    """Everything in parts, at most 64 latents a layer and token, fitted and tuned together."""
    if not (work / "base").is_dir():
        specs = part_specs(
            subject, latents=8, k_mlp=36, k_attention=14, k_query=7, k_key=7, skip=False
        )
        local = LocalSettings(batch=1024, lr=5e-3)
        with Workers(1) as workers:
            parts, _ = fit_parts(
                subject, specs, rows[:LOCAL_ROWS], workers=workers, seed=1, settings=local
            )
            joint = JointSettings(tokens=BASE_TOKENS, micro_rows=8, micro_batches=1, lr=2e-3)
            tune_jointly(subject, parts, rows, workers=workers, seed=2, settings=joint)
        save_parts(parts, work / "base")
    return load_parts(work / "base")


def tuned(
    subject: Subject, parts: dict[str, Part], rows: Tensor, masks: AdversarialSettings | None
) -> dict[str, Part]:
    """Tuned on for as many tokens whatever the loss."""
    parts = copy.deepcopy(parts)
    joint = JointSettings(tokens=MORE_TOKENS, micro_rows=8, micro_batches=1, lr=LR)
    besides = None if masks is None else AdversarialLoss(masks)
    with Workers(1) as workers:
        tune_jointly(subject, parts, rows, workers=workers, seed=3, settings=joint, besides=besides)
    return parts


def judged(subject: Subject, parts: dict[str, Part], held_out: Tensor) -> dict:
    """Predictions, masks and the aggregation test."""
    rows = held_out[:32]
    with torch.no_grad():
        original = subject.run(rows).logits
        with subject.swapped(stand_ins(parts.values(), AtStart())):
            made = subject.run(rows).logits
    assert original is not None
    assert made is not None
    scores = compare_logits(original, made, rows)
    found = {
        "ce_increase": float(scores.ce_increase.mean()), "kl": float(scores.kl.mean()),
        "top1": float(scores.top1_agreement.mean()),
    }  # fmt: skip
    found["masked"] = {
        name: masked_kl(subject, parts, rows[:16], original[:16], settings)
        for name, settings in JUDGES.items()
    }
    found["aggregation"] = aggregated(subject, parts, held_out)
    return found


def masked_kl(
    subject: Subject,
    parts: dict[str, Part],
    rows: Tensor,
    original: Tensor,
    settings: AdversarialSettings,
) -> float:
    """Mean KL with unneeded latents at strengths of the judge's choice."""
    generator = torch.Generator().manual_seed(7)
    needed = needed_latents(
        subject, parts, rows, share=SHARE, spans=rows.shape[1] // SPAN, generator=generator
    )
    masks = Masks(needed, settings, generator)
    if settings.masks == "adversarial":
        for _ in range(settings.steps):
            masks.worsen(subject, parts, rows, original)
    with torch.no_grad():
        return masks.kl(subject, parts, rows, original).mean().item()


def aggregated(subject: Subject, parts: dict[str, Part], held_out: Tensor) -> dict:
    """The test on the beginnings of held-out rows."""
    rows = held_out[:DONORS, :CONTEXT]
    settings = NetworkAggregationSettings(asked=ASKED)
    return as_numbers(aggregate_network(subject, parts, rows, settings))


def as_numbers(found: NetworkAggregation) -> dict:
    """For a file."""
    return {
        "plain": _interval(found.plain),
        "nothing": _interval(found.nothing),
        "needed": found.needed,
        "fires": found.fires,
        "kl": {
            donors: {str(count): _interval(one) for count, one in each.items()}
            for donors, each in found.kl.items()
        },
        "size": {d: {str(count): n for count, n in s.items()} for d, s in found.size.items()},
    }


def _interval(one: Interval) -> list[float]:
    return [round(value, 4) for value in (one.value, one.low, one.high)]


def write(section: str, name: str, found: dict) -> None:
    """Into numbers.json."""
    path = HERE / "numbers.json"
    numbers = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    numbers.setdefault(section, {})[name] = found
    write_json(path, numbers)


def timed(make: Callable[[], dict[str, Part]]) -> tuple[dict[str, Part], float]:
    """What is made, and the processor's seconds."""
    before = time.process_time()
    return make(), time.process_time() - before


def tune(work: Path, folder: str) -> None:
    """The base and all arms."""
    work.mkdir(parents=True, exist_ok=True)
    subject = load_subject(folder, dtype="float32")
    text = token_rows(subject, "self", tokens=2_000_000, context=128, seed=0)
    parts, seconds = timed(lambda: base(subject, text.train, work))
    print(f"base: {seconds:.0f} s", flush=True)
    write("stories260K", "before", {"cpu_seconds": seconds, **judged(subject, parts, text.heldout)})
    for name, masks in ARMS.items():
        arm, seconds = timed(lambda m=masks: tuned(subject, parts, text.train, m))
        save_parts(arm, work / name.replace(" ", "_"))
        print(f"{name}: {seconds:.0f} s", flush=True)
        write("stories260K", name, {"cpu_seconds": seconds, **judged(subject, arm, text.heldout)})


def artifact(name: str, spec: str, text: str, folder: Path) -> None:
    """A finished decompilation."""
    subject = load_subject(spec, dtype="float32")
    parts = load_parts(folder / "dictionaries")
    rows = token_rows(subject, text, tokens=DONORS * 128 * 4, context=128, seed=1)
    held_out = torch.cat([rows.heldout, rows.train])
    write("artifacts", name, {"aggregation": aggregated(subject, parts, held_out)})


def plot() -> None:
    """KL of unions over plain KL, by tuning."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    numbers = json.loads((HERE / "numbers.json").read_text("utf-8"))
    shown = {n: f["aggregation"] for n, f in numbers.get("stories260K", {}).items()}
    shown |= {n: f["aggregation"] for n, f in numbers.get("artifacts", {}).items()}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True, sharey=True)
    for panel, donors in zip(panels, ("own", "others"), strict=True):
        for index, (name, found) in enumerate(shown.items()):
            counts = list(found["kl"][donors])
            values = [found["kl"][donors][c][0] / found["plain"][0] for c in counts]
            panel.plot([int(c) for c in counts], values, "o-", color=f"C{index}", label=name, ms=4)
        panel.axhline(2, color="grey", lw=0.8, ls=":")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel("contexts united")
        panel.set_title("its own among them" if donors == "own" else "others only", fontsize=10)
    panels[0].set_ylabel("KL / plain KL")
    panels[0].legend(fontsize=8)
    figure.savefig(HERE / "aggregation.png", dpi=110)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "plot":
        plot()
    elif sys.argv[1] == "tune":
        tune(Path(sys.argv[2]), sys.argv[3])
    else:
        artifact(*sys.argv[2:5], Path(sys.argv[5]))
