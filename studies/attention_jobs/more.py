"""What goes with the jobs of wren: pictures, and values told by key features.

    OMP_NUM_THREADS=1 python studies/attention_jobs/more.py OUT draw LAYER QK_TRANSCODER
    OMP_NUM_THREADS=1 python studies/attention_jobs/more.py OUT values LAYER QK_TRANSCODER

Needs the masks of `run.py` in OUT. `draw` writes a picture of the heaviest jobs over held-out text
beside this file; `values` adds to numbers.json.
"""

import sys
from pathlib import Path

import torch
from measure import read
from run import note, wren_rows
from safetensors.torch import load_file

from unweave.dictionaries.attention.feature_basis import FeatureReader, importance, reader_of
from unweave.dictionaries.attention.jobs import JobSettings, find_jobs, shares
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.dictionaries.attention.value_gating import (
    fit_linear,
    move,
    random_gating,
    unexplained,
)
from unweave.report.draw.jobs import job_pattern
from unweave.subject import Subject, load_subject
from unweave.subject.scores import scoring
from unweave.training.attention.value_gating import GatingSettings, learn_gating
from unweave.validate.attention.jobs import patterns_without

HERE = Path(__file__).parent
DRAWN, TOKENS = 5, 24


def draw(subject: Subject, reader: FeatureReader, x: torch.Tensor, mask: torch.Tensor) -> None:
    layer = reader.transcoder.spec.layer
    tensor = mask * importance(reader.code(x[:40]), reader.basis)
    jobs = find_jobs(tensor, seed=0, settings=JobSettings(jobs=16, rounds=60, starts=1))
    parts = shares(tensor, jobs)
    tokens = wren_rows(subject).test[3:4, :TOKENS]
    pieces = subject.tokenizer.pieces(tokens[0].tolist()) if subject.tokenizer else []
    for job in range(DRAWN):
        seen = patterns_without(subject, reader, tokens, mask * parts[job])
        moved = torch.einsum("hqk,h->qk", (seen.whole - seen.without)[0], jobs.heads[job])
        title = f"wren, block {layer}, job {job}: attention that it moves"
        drawing = job_pattern(title, pieces, moved.tolist(), jobs.heads[job].tolist())
        (HERE / f"wren-{layer}-job{job}.svg").write_text(drawing + "\n")


def values(subject: Subject, reader: FeatureReader) -> dict:
    """FVU of what heads bring, from values told by key features, on held-out text."""
    layer, rows = reader.transcoder.spec.layer, wren_rows(subject)
    found = {}
    for name, tokens in (("train", rows.train), ("test", rows.test)):
        x, _, own = read(subject, layer, tokens)
        sites = [f"blocks.{layer}.attn.v", f"blocks.{layer}.attn.z"]
        v, z = (subject.run(tokens, capture=sites, logits=False).sites[s] for s in sites)
        keys = reader.code(x).keys
        found[name] = (keys, own, v, z.unflatten(-1, (subject.n_heads, subject.d_head)))
    keys, own, v, z = found["train"]
    tests = found["test"]
    gating = random_gating(keys.shape[-1], 512, v[:, 1:].flatten(0, 1), seed=0)
    learn_gating(gating, keys, own, z, seed=0, settings=GatingSettings(steps=150))
    chance = random_gating(keys.shape[-1], 512, v[:, 1:].flatten(0, 1), seed=0)
    mixed = keys[:, torch.randperm(keys.shape[1], generator=torch.Generator().manual_seed(0))]
    learn_gating(chance, mixed, own, z, seed=0, settings=GatingSettings(steps=150))
    weights, offset = fit_linear(keys.flatten(0, 1), v.flatten(0, 1))
    with torch.no_grad():
        linear = torch.einsum("rsb,bhd->rshd", tests[0], weights) + offset
        u = gating.features(tests[0])
        mean = v.mean((0, 1)).expand_as(tests[2])
        made = {
            "gated": gating.values(tests[0]),
            "linear": linear,
            "keys of other positions": chance.values(tests[0]),
            "mean value": mean,
        }
        fvu = {n: round(unexplained(move(tests[1], m), tests[3]), 4) for n, m in made.items()}
    return fvu | {"active value features": round(float((u > 0).float().sum(-1).mean()), 1)}


def main(out: Path, what: str, layer: int, folder: Path) -> None:
    torch.set_num_threads(1)
    subject = load_subject("wren", dtype="float32")
    x, _, _ = read(subject, layer, wren_rows(subject).train)
    transcoder = QKTranscoder.load(folder)
    reader = reader_of(transcoder, scoring(subject, layer, x.shape[1]), x, least=3e-3)
    if what == "values":
        found = values(subject, reader)
        print(found)
        note(f"wren/{layer}/values", found)
    else:
        masks = load_file(out / f"wren_masks{layer}.safetensors")
        draw(subject, reader, x, masks["03"])


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[2] not in ("draw", "values"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
