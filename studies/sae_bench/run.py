"""Our side of the comparison with the public implementation, and its table.

    python studies/sae_bench/run.py inputs OUT --dictionaries FOLDER --files PUBLIC_FILES
    ENV/bin/python studies/sae_bench/public.py OUT MODEL NAME --out OUT/public-NAME.json
    python studies/sae_bench/run.py ours OUT NAME --dictionaries FOLDER
    python studies/sae_bench/run.py table OUT NAME...

FOLDER holds dictionaries as `unweave train` writes them; PUBLIC_FILES the public data sets as
`unweave.validate.public_files` names them. Everything in float32 on one thread.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from inputs import CONTEXT, write_inputs

from unweave.dictionaries.formats import load_foreign
from unweave.progress import Lines
from unweave.subject import Subject, load_subject
from unweave.validate.labelled import load_sets
from unweave.validate.placed import Placed, placed
from unweave.validate.protocols import controls, pooling, scr, sparse_probing, tpp
from unweave.validate.protocols.ablation import AblationSettings
from unweave.validate.protocols.core import CoreSettings, core_on
from unweave.validate.protocols.data_sets import Chosen, averaged
from unweave.validate.protocols.pooling import Pooled
from unweave.validate.protocols.protocol import Bench, Outcome
from unweave.validate.protocols.sparse_probing import SparseProbingSettings

SIZES = {
    "context": CONTEXT, "probe": [440, 200], "tpp": [400, 160], "scr": [320, 160],
    "n": [2, 5, 10, 20, 50, 100, 500],
}  # fmt: skip
"""Texts of one probe (train, test) by protocol; numbers of latents taken out."""
SUBJECT = "smollm2-135m"
SEEDS = range(5)
SETS = {
    "sparse_probing": ("ag_news", "sst2"),
    "scr": ("bios", "reviews"),
    "tpp": ("wiki_topics", "ag_news"),
}
CROSSED = {
    "bios": ((("professor", "nurse"),), ("male", "female")),
    "reviews": ((("negative", "positive"),), ("sentence", "review")),
}
"""Labels and cues as public.py pairs them."""


def inputs(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    found = load_foreign(args.dictionaries)
    named = {name.split("/")[-1]: dictionary for name, dictionary in found.items()}
    write_inputs(args.out, load_subject(SUBJECT, dtype="float32"), args.files, named)
    (args.out / "sizes.json").write_text(json.dumps(SIZES, indent=1))
    print(sorted(named))


def once_through_the_model() -> None:
    """Equal texts go through the subject once, and one random twin serves all seeds."""
    theirs, known, twins = pooling.pool, {}, {}

    def pool(
        subject: Subject,
        coders: Sequence[Placed],
        texts: Sequence[str],
        *,
        context: int,
        padded: bool,
        advance: object = None,
    ) -> list[Pooled]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            made = theirs(subject, coders, new, context=context, padded=True, advance=advance)
            for place, text in enumerate(new):
                known[text] = [one.rows(torch.tensor([place])) for one in made]
        rows = [known[text] for text in texts]
        found = [pooling._joined([row[i] for row in rows]) for i in range(len(coders))]
        return [one._replace(padding=one.padding * padded) for one in found]

    def twin_at(bench: Bench, texts: Sequence[str]) -> Placed:
        if not twins:
            twins[0] = controls.twin_at(bench, texts)
        return twins[0]

    for module in (sparse_probing, scr, tpp):
        module.pool, module.twin_at = pool, twin_at


def ours(args: argparse.Namespace) -> None:
    (dictionary,) = load_foreign(args.dictionaries / args.name).values()
    subject = load_subject(SUBJECT, dtype="float32")
    path = args.out / f"ours-{args.name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    bench = Bench(subject, placed(args.name, dictionary), args.out / "store", progress=Lines())
    if "core" not in found:
        rows = torch.from_numpy(np.load(args.out / "rows.npy"))
        done = core_on(bench, rows, CoreSettings())
        numbers = done.numbers | done.controls
        found["core"] = {name: number.value for name, number in numbers.items()}
        path.write_text(json.dumps(found, indent=1))
    if "pooled" not in found:
        found["pooled"] = pooled(bench, args.out, args.name)
        path.write_text(json.dumps(found, indent=1))
    once_through_the_model()
    sets = {one.name: one for one in load_sets(args.out / "data")}
    for name, names in SETS.items():
        if name in found:
            continue
        chosen = [
            Chosen(sets[n], tuple(sets[n].labels), *CROSSED.get(n, ((), None))) for n in names
        ]
        found[name] = [by_seed(bench, name, chosen, seed, args.out) for seed in SEEDS]
        path.write_text(json.dumps(found, indent=1))


def pooled(bench: Bench, out: Path, name: str) -> dict[str, float]:
    """Largest difference from the public means of a few texts, over their largest entry."""
    theirs = np.load(out / f"public-{name}.npz")
    lines = (out / "data" / "sst2" / "test.jsonl").read_text().splitlines()[: len(theirs["site"])]
    texts = [json.loads(line)["text"] for line in lines]
    (mine,) = pooling.pool(bench.subject, [bench.dictionary], texts, context=CONTEXT)
    unit = pooling.unit_directions(bench.dictionary.coder)
    got = {
        "site": mine.site, "latents": mine.latents,
        "without": mine.without(torch.arange(50), unit),
    }  # fmt: skip
    return {
        key: float(np.abs(got[key].numpy() - theirs[key]).max() / np.abs(theirs[key]).max())
        for key in got
    }


def by_seed(bench: Bench, name: str, chosen: list[Chosen], seed: int, out: Path) -> dict:
    start, n = time.time(), tuple(SIZES["n"])
    again = Bench(
        bench.subject, bench.dictionary, out / "store" / f"{bench.dictionary.name}-{seed}",
        seed=seed, progress=bench.progress,
    )  # fmt: skip
    module = {"sparse_probing": sparse_probing, "scr": scr, "tpp": tpp}[name]
    module.chosen_sets = lambda *_, **__: chosen
    if name == "sparse_probing":
        train, test = SIZES["probe"]
        done = sparse_probing.sparse_probing(
            again, SparseProbingSettings(train=train, test=test, context=CONTEXT)
        )
    else:
        train, test = SIZES[name]
        settings = AblationSettings(train=train, test=test, context=CONTEXT, n=n, told=0.0)
        done = getattr(module, name)(again, settings)
    print(f"OURS {name} seed {seed}: {time.time() - start:.0f} s", flush=True)
    return {
        "mean": {k: v.value for k, v in (done.numbers | done.controls).items()},
        "sets": sets_of(done),
    }


def sets_of(done: Outcome) -> dict[str, dict[str, float]]:
    if done.protocol == "tpp":
        return done.details["by_set"]
    key = "by_set_and_class" if done.protocol == "sparse_probing" else "by_set_and_pair"
    return {name: averaged(list(parts.values())) for name, parts in done.details[key].items()}


def table(args: argparse.Namespace) -> None:
    """Markdown of both sides, and results.json with every number of every seed."""
    kept = {}
    for name in args.names:
        theirs = json.loads((args.out / f"public-{name}.json").read_text())
        mine = json.loads((args.out / f"ours-{name}.json").read_text())
        kept[name] = {"public": theirs, "ours": mine}
        print(f"\n## {name}\n\n| core | public | ours | difference |\n|---|---|---|---|")
        flat = {k: v for group in theirs["core"].values() for k, v in group.items()}
        for key, value in flat.items():
            known = f"{key}_as_published" if f"{key}_as_published" in mine["core"] else key
            if known in mine["core"]:
                other = mine["core"][known]
                print(f"| {known} | {value:.6g} | {other:.6g} | {other - value:+.1e} |")
        print("\nLargest difference of means, over the largest mean:", mine["pooled"])
        for part, sets in SETS.items():
            found = [list(run["sets"].values()) for run in theirs.get(part, [])]
            for place, data in enumerate(sets):
                public = [run[place] for run in found if place < len(run)]
                if public:
                    by_set(part, data, public, [run["sets"][data] for run in mine[part]])
    (Path(__file__).parent / "results.json").write_text(json.dumps(kept, indent=1) + "\n")


def by_set(part: str, data: str, theirs: list[dict], mine: list[dict]) -> None:
    print(f"\n| {part}, {data} | public mean | sd | ours mean | sd | in public sds |")
    print("|---|---|---|---|---|---|")
    inside = total = 0
    for key in theirs[0]:
        a, b = ([run[key] for run in side if key in run] for side in (theirs, mine))
        if len(a) < 2 or len(b) < 2:
            continue
        sd, gap = statistics.stdev(a), statistics.mean(b) - statistics.mean(a)
        close = abs(gap) <= 2 * sd + 1e-9
        inside, total = inside + close, total + 1
        if part == "sparse_probing" or "metric" in key or not close:
            away = f"{gap / sd:+.1f}" if sd else "-"
            print(
                f"| {key} | {statistics.mean(a):.4f} | {sd:.4f} | {statistics.mean(b):.4f} |"
                f" {statistics.stdev(b):.4f} | {away} |"
            )
    print(f"\n{inside} of {total} numbers within two standard deviations of {len(theirs)} seeds.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parts = parser.add_subparsers(required=True)
    for work in (inputs, ours, table):
        one = parts.add_parser(work.__name__)
        one.add_argument("out", type=Path)
        if work is ours:
            one.add_argument("name")
        if work is table:
            one.add_argument("names", nargs="+")
        if work is not table:
            one.add_argument("--dictionaries", type=Path, required=True)
        if work is inputs:
            one.add_argument("--files", type=Path, required=True)
        one.set_defaults(run=work)
    given = parser.parse_args()
    given.run(given)
