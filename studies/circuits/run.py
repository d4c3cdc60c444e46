"""Circuits of SmolLM2-135M: MIB's circuit track, and subject-verb agreement at one site.

    OMP_NUM_THREADS=1 python studies/circuits/run.py STORE DATA DICTIONARIES [PART ...]

STORE keeps what is finished. DATA has the folders of public prompts ioi_greaterthan_docstring and
feature_circuits_sva; DICTIONARIES has trained dictionaries of blocks.14.resid_post. Parts: `wren`,
`sva`, `mib`, `docstring` (long prompts, so fewer pairs). `report.py` makes numbers and plots.
"""

import json
import sys
import time
from pathlib import Path

import torch

from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.formats import load_foreign
from unweave.progress import Lines
from unweave.subject import Subject, load_subject
from unweave.validate.placed import Placed, placed
from unweave.validate.protocols.contrast_data import prompt_files, read_prompts, task_of
from unweave.validate.protocols.mib import MibSettings, mib, mib_on
from unweave.validate.protocols.protocol import Bench, Refused
from unweave.validate.protocols.sva import TASKS, SvaSettings, agreement_tasks, sva, sva_on

SITE = "blocks.14.resid_post"
SHORT = ("animal_diet", "greater_than", "ioi")
MIB = MibSettings(attribution=32, evaluation=24, methods=("eap_ig", "eap", "nodes", "weights"))
FEW = MibSettings(attribution=16, evaluation=8, methods=("eap_ig", "eap"))
SVA = SvaSettings(
    train=50, test=25, steps=5, nodes=(1, 3, 10, 30, 100, 300), shown=(10, 100), batch=25
)
DICTIONARIES = {"batchtopk-k32": TASKS, "matryoshka-k32": TASKS[:1], "topk-short-k32": TASKS[:1]}
"""Each with the constructions that it is held to."""


def bench(subject: Subject, store: Path, data: Path, dictionary: Placed) -> Bench:
    return Bench(subject, dictionary, store, data=data, progress=Lines(every=60))


def neurons(subject: Subject, site: str) -> Placed:
    return Placed("neurons", coordinates(subject.d_model), (site,), (site,))


def run_mib(store: Path, data: Path, names: tuple[str, ...], settings: MibSettings) -> None:
    subject = load_subject("smollm2-135m", dtype="float32")
    files = prompt_files(data / "ioi_greaterthan_docstring")
    most = settings.attribution + settings.evaluation
    tasks = [task_of(subject, name, read_prompts(files[name]), most=most) for name in names]
    mib_on(bench(subject, store, data, neurons(subject, SITE)), tasks, settings)


def run_sva(store: Path, data: Path, dictionaries: Path) -> None:
    subject = load_subject("smollm2-135m", dtype="float32")
    for name, constructions in DICTIONARIES.items():
        one = placed(name, load_foreign(dictionaries / name)[name].eval())
        here = bench(subject, store / name, data / "feature_circuits_sva", one)
        tasks = [t for t in agreement_tasks(here, here.data, SVA) if t.name in constructions]
        sva_on(here, [one], tasks, SVA)


def run_wren(store: Path, data: Path) -> None:
    subject, found = load_subject("wren", dtype="float32"), {}
    for name, protocol, folder in (
        ("mib", mib, "ioi_greaterthan_docstring"), ("sva", sva, "feature_circuits_sva"),
    ):  # fmt: skip
        one = neurons(subject, "blocks.2.resid_post")
        try:
            found[name] = protocol(bench(subject, store / "wren", data / folder, one)).numbers
        except Refused as refused:
            found[name] = {"refused": str(refused)}
    (store / "wren.json").write_text(json.dumps(found, indent=1))


def main(store: Path, data: Path, dictionaries: Path, parts: list[str]) -> None:
    torch.set_num_threads(1)
    store.mkdir(parents=True, exist_ok=True)
    for part in parts or ("wren", "sva", "mib", "docstring"):
        began = time.perf_counter()
        if part == "mib":
            run_mib(store, data, SHORT, MIB)
        elif part == "docstring":
            run_mib(store, data, ("docstring",), FEW)
        elif part == "sva":
            run_sva(store, data, dictionaries)
        else:
            run_wren(store, data)
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4:])
