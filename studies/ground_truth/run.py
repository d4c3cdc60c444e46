"""Known networks decompiled: linear ones, compiled programs, modular addition.

    OMP_NUM_THREADS=1 python studies/ground_truth/run.py WORK [TRACR_FOLDER]
    OMP_NUM_THREADS=1 python studies/ground_truth/run.py plot

WORK keeps what is done, a file a network, so that a second run goes on. TRACR_FOLDER holds the
cases of InterpBench as plain arrays. Writes numbers.json beside this file, and ground_truth.png.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from unweave.artifact.atomic import write_json
from unweave.decompile.network import DecompiledNetwork
from unweave.training.joint import kl_per_token
from unweave.validate.circuit_truth import item_auroc
from unweave.validate.truth.decompiled.edges import decompiled_edges
from unweave.validate.truth.decompiled.features import features_found
from unweave.validate.truth.decompiled.known import (
    Known,
    known_program,
    known_tracr,
    with_random_weights,
)
from unweave.validate.truth.decompiled.linear import LinearSettings, linear_found, linear_network
from unweave.validate.truth.decompiled.modular import fit_modular, modular_found
from unweave.validate.truth.decompiled.parts import KnownFitSettings, fit_known
from unweave.validate.worlds.modular import (
    ModularSettings,
    exact_modular,
    train_modular,
    untrained_modular,
)
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.edge_scores import random_edges, weight_edges
from unweave.validate.worlds.programs.library import program
from unweave.validate.worlds.tracr import load_tracr, tracr_cases

HERE = Path(__file__).parent
PROGRAMS = ("previous token",)
SEEDS, TRACR_CASES = (0, 1, 2), 2
STARTS = ("weights", "data", "untrained")
LINEAR_K = (3, 6, 12)
CIRCUIT_FIT = KnownFitSettings(steps=400, joint_steps=60)


def linear(seed: int) -> list[dict]:
    """One linear network, by start and latents active."""
    known = linear_network(LinearSettings(), seed=seed)
    rows, found = known.draw(300, 15, seed=100 + seed), []
    for start in STARTS:
        for k in LINEAR_K:
            fit = KnownFitSettings(k=k, latents=2, joint_steps=0)
            parts = fit_known(
                known.subject, rows, start=start, seed=seed, settings=fit, kinds=("mlp",)
            )
            part = parts["L0.mlp"]
            found.append({"start": start, "k": k, **linear_found(known, part)._asdict()})
    return found


def modular(seed: int) -> list[dict]:
    """Networks for addition mod 59, trained and controls, by start."""
    nets = {
        "trained": train_modular(ModularSettings(), seed=seed),
        "random answers": train_modular(ModularSettings(labels="random"), seed=seed),
        "untrained network": untrained_modular(ModularSettings(), seed=seed),
        "hand-set, quadratic": exact_modular(59, (3 + seed, 7, 11, 20)),
    }
    found = []
    for name, net in nets.items():
        for start in STARTS:
            if name == "hand-set, quadratic" and start == "weights":
                continue  # its neurons are no relu neurons
            fit = KnownFitSettings(k=16, steps=1500)
            part = fit_modular(net, start=start, latents=256, seed=seed, settings=fit)
            found.append({"network": name, "start": start, **modular_found(net, part)._asdict()})
    return found


def circuit(known: Known, seed: int) -> list[dict]:
    """One compiled network, by start, and its control with random weights."""
    rows, held_out = known.draw(600, seed), known.draw(150, 1000 + seed)
    found = [judged(known, rows, held_out, start, seed) for start in STARTS]
    found.append(judged(with_random_weights(known, seed=seed), rows, held_out, "weights", seed))
    found[-1]["start"] = "random network"
    weights = item_auroc(weight_edges(known.subject), known.edges)
    chance = item_auroc(random_edges(known.subject, seed=seed), known.edges)
    return [one | {"weight_norms": weights, "random_edges": chance} for one in found]


@torch.no_grad()
def _logits(known: Known, parts: dict, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    own = known.subject.run(rows).logits
    assert own is not None
    return own[:, 1:], DecompiledNetwork(known.subject, parts)(rows)[:, 1:]


def judged(known: Known, rows: torch.Tensor, held_out: torch.Tensor, start: str, seed: int) -> dict:
    """Everything that is asked of one decompilation."""
    parts = fit_known(known.subject, rows, start=start, seed=seed, settings=CIRCUIT_FIT)
    own, made = _logits(known, parts, held_out)
    edges = decompiled_edges(known.subject, parts, held_out)
    return {
        "start": start,
        "kl": kl_per_token(own, made).mean().item(),
        "top1": (own.argmax(-1) == made.argmax(-1)).float().mean().item(),
        "pairs_auroc": item_auroc(edges.pairs, known.edges),
        "net_auroc": item_auroc(edges.net, known.edges),
        "edges": len(edges.net), "true_edges": len(known.edges),
        **{f"feature_{n}": v for n, v in features_found(known, parts, held_out)._asdict().items()},
    }  # fmt: skip


def kept(work: Path, name: str, find: Callable[[], list[dict]]) -> list[dict]:
    """What was found before, or is found now; the seconds are the processor's."""
    path = work / f"{name.replace(' ', '_')}.json"
    if not path.is_file():
        before = time.process_time()
        found = find()
        write_json(path, {"found": found, "cpu_seconds": time.process_time() - before})
        print(f"{name}: {time.process_time() - before:.0f} s")
    return json.loads(path.read_text("utf-8"))["found"]


def main(work: Path, tracr: Path | None) -> None:
    """All networks."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, dict[str, list[dict]]] = {"linear": {}, "modular": {}, "programs": {}}
    for seed in SEEDS:
        numbers["linear"][str(seed)] = kept(work, f"linear {seed}", lambda s=seed: linear(s))
    for seed in SEEDS[:2]:
        numbers["modular"][str(seed)] = kept(work, f"modular {seed}", lambda s=seed: modular(s))
    for name in PROGRAMS:
        turned = compile_program(program(name), settings=CompileSettings(rotation=0))
        known = known_program(turned)
        numbers["programs"][name] = kept(work, name, lambda k=known: circuit(k, 0))
    for name in tracr_cases(tracr)[:TRACR_CASES] if tracr else ():
        known = known_tracr(load_tracr(tracr, name))
        numbers["programs"][name] = kept(work, name, lambda k=known: circuit(k, 0))
    write_json(HERE / "numbers.json", numbers)


def plot() -> None:
    """Edges and features by start, a point a network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    numbers = json.loads((HERE / "numbers.json").read_text("utf-8"))
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), constrained_layout=True)
    shown = (("net_auroc", "edges, AUROC"), ("feature_cosine", "features, cosine"), ("kl", "KL"))
    starts = (*STARTS, "random network")
    for panel, (key, title) in zip(panels, shown, strict=True):
        for place, start in enumerate(starts):
            values = [
                one[key] for found in numbers["programs"].values() for one in found
                if one["start"] == start
            ]  # fmt: skip
            spread = torch.linspace(-0.18, 0.18, len(values)).tolist()
            panel.plot([place + s for s in spread], values, ".", color=f"C{place}")
        panel.set_xticks(range(len(starts)), [s.replace(" ", "\n") for s in starts], fontsize=8)
        panel.set_title(title, fontsize=10)
    panels[2].set_yscale("symlog", linthresh=1e-4)
    figure.savefig(HERE / "ground_truth.png", dpi=110)


if __name__ == "__main__":
    if sys.argv[1] == "plot":
        plot()
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
