"""What goes with the jobs: pictures, and values of wren told by key features.

    OMP_NUM_THREADS=1 python studies/attention_jobs/more.py OUT matching
    OMP_NUM_THREADS=1 python studies/attention_jobs/more.py OUT draw LAYER QK_TRANSCODER
    OMP_NUM_THREADS=1 python studies/attention_jobs/more.py OUT values LAYER QK_TRANSCODER

Needs what `run.py` left in OUT. `draw` writes pictures of the heaviest jobs of a block of wren over
held-out text beside this file, `matching` one of the copying network's matching job; `values` adds
to numbers.json.
"""

import sys
from pathlib import Path

import torch
from measure import QUICK, affordable, learned_masks, read
from run import (
    REPEATS,
    WREN_MASKS,
    note,
    repeats_subject,
    repeats_transcoder,
    wren_rows,
)
from torch import Tensor

from unweave.dictionaries.attention.feature_basis import FeatureReader, importance, reader_of
from unweave.dictionaries.attention.jobs import JobSettings, find_jobs, shares
from unweave.dictionaries.attention.matching_jobs import find_matching, interaction
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
from unweave.training.attention.mask import MaskText
from unweave.training.attention.value_gating import GatingSettings, learn_gating
from unweave.validate.attention.jobs import patterns_without
from unweave.validate.worlds.repeats import draw_repeats

HERE = Path(__file__).parent
DRAWN, TOKENS = 5, 24


def draw(out: Path, subject: Subject, reader: FeatureReader, x: Tensor, own: Tensor) -> None:
    layer, text = reader.transcoder.spec.layer, MaskText(reader.code(x), own)
    path = out / f"wren_masks{layer}.safetensors"
    learned = learned_masks(reader, text, path, WREN_MASKS)
    mask = affordable(learned, text.chosen(torch.arange(40)), reader)
    tensor = mask * importance(text.codes, reader.basis)
    jobs = find_jobs(tensor, seed=0, settings=JobSettings(jobs=16, **QUICK))
    parts = shares(tensor, jobs)
    tokens = wren_rows(subject).test[3:4, :TOKENS]
    for job in range(DRAWN):
        title = f"wren, block {layer}, job {job}: attention that it moves"
        one = picture(title, subject, reader, tokens, mask * parts[job], jobs.heads[job])
        (HERE / f"wren-{layer}-job{job}.svg").write_text(one + "\n")


def picture(
    title: str, subject: Subject, reader: FeatureReader, tokens: Tensor, mask: Tensor, heads: Tensor
) -> str:
    seen = patterns_without(subject, reader, tokens, mask)
    moved = torch.einsum("hqk,h->qk", (seen.whole - seen.without)[0], heads)
    ids, known = tokens[0].tolist(), subject.tokenizer
    pieces = known.pieces(ids) if known else [str(i) for i in ids]
    return job_pattern(title, pieces, moved.tolist(), heads.tolist())


def draw_matching(out: Path) -> None:
    subject = repeats_subject(out)
    x, _, _ = read(subject, 1, draw_repeats(REPEATS, 300, seed=901)[0])
    transcoder = repeats_transcoder(subject, 1, out, 128, 2)
    reader = reader_of(transcoder, scoring(subject, 1, x.shape[1]), x, least=1e-3)
    job = find_matching(interaction(reader.code(x), reader.basis))
    tokens = draw_repeats(REPEATS, 1, seed=905)[0][:, :TOKENS]
    title = "Copying network, block 1, matching job: attention that it moves"
    drawing = picture(title, subject, reader, tokens, job.mask(), job.heads)
    (HERE / "repeats-1-matching.svg").write_text(drawing + "\n")


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
    x, _, own = read(subject, layer, wren_rows(subject).train)
    transcoder = QKTranscoder.load(folder)
    reader = reader_of(transcoder, scoring(subject, layer, x.shape[1]), x, least=3e-3)
    if what == "values":
        found = values(subject, reader)
        print(found)
        note(f"wren/{layer}/values", found)
    else:
        draw(out, subject, reader, x, own)


if __name__ == "__main__":
    if sys.argv[2:] == ["matching"]:
        torch.set_num_threads(1)
        draw_matching(Path(sys.argv[1]))
        sys.exit()
    if len(sys.argv) != 5 or sys.argv[2] not in ("draw", "values"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
