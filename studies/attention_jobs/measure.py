"""The numbers of one block: masks, jobs, and what taking entries of the job tensor out does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matching import matching
from safetensors.torch import load_file, save_file
from torch import Tensor

from unweave.dictionaries.attention.feature_basis import FeatureReader, importance, reader_of
from unweave.dictionaries.attention.jobs import (
    Jobs,
    JobSettings,
    accounted,
    count_jobs,
    find_jobs,
    shares,
    shuffled,
)
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.progress import Lines
from unweave.subject import Subject
from unweave.subject.scores import scores, scoring
from unweave.training.attention.mask import Learned, MaskSettings, MaskText, learn_masks, mask_kl
from unweave.validate.attention.jobs import (
    job_effect,
    label_job,
    loss_without,
    other_entries,
    patterns_without,
    score_share,
)
from unweave.validate.attention.pair_kinds import pair_kinds
from unweave.validate.bootstrap import Interval, mean_interval

SHOWN = 5
"""Jobs of a block that are tested one by one."""
OTHERS = 2
"""Random choices of entries that each is held against."""
DEARER = 0.05
"""KL in nats that the mask may add: the sparsest such mask of the path is taken apart."""
ALIKE = 0.5
"""Cosine of what two features say of tokens from which on they are of the same tokens."""
QUICK = {"rounds": 60, "starts": 1}


class Rows(NamedTuple):
    """Three texts, none twice."""

    train: Tensor
    """Masks and jobs are of these."""
    label: Tensor
    """Labels are."""
    test: Tensor
    """Everything is measured on these."""


class Block(NamedTuple):
    """A block as it is measured."""

    subject: Subject
    reader: FeatureReader
    rows: Rows
    where: Callable[[Tensor, Tensor], dict]
    """Splits a rise of the loss into places where copying helps and others."""
    size: Tensor
    """Mean absolute contribution of each entry."""
    mask: Tensor
    """The mask that is taken apart."""


def read(subject: Subject, layer: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What attention reads, its scores and its pattern."""
    names = [f"blocks.{layer}.attn.{part}" for part in ("in", "q", "k", "pattern")]
    found = subject.run(rows, capture=names, logits=False).sites
    x, q, k, own = (found[name] for name in names)
    return x, scores(q, k, scoring(subject, layer, rows.shape[1])), own


def measure(
    subject: Subject,
    transcoder: QKTranscoder,
    rows: Rows,
    where: Callable[[Tensor, Tensor], dict],
    *,
    path: Path,
    masks: MaskSettings,
    least: float,
    n_jobs: int,
) -> dict:
    """All numbers of one block."""
    layer = transcoder.spec.layer
    x, _, own = read(subject, layer, rows.train)
    reader = reader_of(transcoder, scoring(subject, layer, x.shape[1]), x, least=least)
    text = MaskText(reader.code(x), own)
    y, true, theirs = read(subject, layer, rows.test)
    held = MaskText(reader.code(y), theirs)
    everything = torch.ones(reader.basis.shape)
    found: dict = {
        "features kept": list(reader.basis.shape),
        "kl of all pairs": kl(held, reader, everything),
        "score share of all pairs": round(score_share(reader, y, true, everything), 4),
    }
    size = importance(text.codes, reader.basis)
    learned = learned_masks(reader, text, path, masks)
    found["curve"] = curve(learned, size, held, reader)
    mask = affordable(learned, text.chosen(torch.arange(40)), reader)
    found["entries of the chosen mask"] = int((mask > 0).sum())
    found["score share of the chosen mask"] = round(score_share(reader, y, true, mask), 4)
    one = Block(subject, reader, rows, where, size, mask)
    found["jobs"] = by_number(one, held, y, true)
    count, mine, chance = count_jobs(
        mask * size, seed=0, settings=JobSettings(jobs=n_jobs, **QUICK), controls=1
    )
    found["count"] = {"jobs": count, "mass": few(mine), "shuffled": few(chance)}
    jobs = find_jobs(mask * size, seed=0, settings=JobSettings(jobs=n_jobs, **QUICK))
    found["tested"] = tested(one, jobs)
    found["by token"] = by_token(one)
    found["matching"] = matching(subject, reader, rows, x, where)
    return found


def affordable(learned: list[Learned], text: MaskText, reader: FeatureReader) -> Tensor:
    """The sparsest mask that costs little more than all pairs do."""
    everything = torch.ones(reader.basis.shape)
    limit = float(mask_kl(text, reader.basis, everything).mean()) + DEARER
    cheap = [m for m in learned if float(mask_kl(text, reader.basis, m.mask).mean()) <= limit]
    return (cheap[-1] if cheap else learned[0]).mask


def largest(size: Tensor, count: int) -> Tensor:
    """Ones at the entries that contribute most."""
    flat = torch.zeros(size.numel())
    flat[size.flatten().argsort(descending=True)[:count]] = 1
    return flat.view_as(size)


def learned_masks(
    reader: FeatureReader, text: MaskText, path: Path, settings: MaskSettings
) -> list[Learned]:
    """The path of masks, learned once."""
    if not path.exists():
        found = learn_masks(text, reader.basis, seed=0, settings=settings, progress=Lines())
        save_file({f"{i:02}": one.mask for i, one in enumerate(found)}, path)
    masks = load_file(path)
    return [Learned(penalty, masks[f"{i:02}"]) for i, penalty in enumerate(settings.penalties)]


def curve(masks: list[Learned], size: Tensor, held: MaskText, reader: FeatureReader) -> list[dict]:
    """KL on held-out text by how many entries are let through, four ways to choose them."""
    chance = torch.rand(size.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for one in masks:
        choices = {"learned": one.mask, "learned, rounded up": (one.mask > 0).float()}
        choices |= {"largest": largest(size, one.size), "random": largest(chance, one.size)}
        line = {"penalty": one.penalty, "entries": one.size}
        rows.append(line | {name: kl(held, reader, mask) for name, mask in choices.items()})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def by_number(one: Block, held: MaskText, x: Tensor, true: Tensor) -> list[dict]:
    """Share of scores and KL by number of jobs, beside jobs of a shuffled tensor."""
    tensor, rows = one.mask * one.size, []
    for count in (1, 4, 16):
        settings = JobSettings(jobs=count, **QUICK)
        line: dict = {"jobs": count}
        for name, source in (("real", tensor), ("shuffled", shuffled(tensor, seed=1))):
            part = shares(tensor, find_jobs(source, seed=0, settings=settings)).sum(0).clamp_max(1)
            kept = one.mask * part
            line[name] = {
                "mass": round(float((tensor * part).sum() / tensor.sum()), 4),
                "score share": round(score_share(one.reader, x, true, kept), 4),
                "kl": kl(held, one.reader, kept),
            }
        print(json.dumps(line), flush=True)
        rows.append(line)
    return rows


def tested(one: Block, jobs: Jobs) -> list[dict]:
    """The heaviest jobs one by one, then all of them that have a label in common, together."""
    tensor = one.mask * one.size
    parts, mass = shares(tensor, jobs), accounted(tensor, jobs)
    codes = one.reader.code(read(one.subject, one.reader.transcoder.spec.layer, one.rows.label)[0])
    found, alike = [], {}
    for number in range(min(SHOWN, len(jobs))):
        job = one.mask * parts[number]
        line = {"job": number, "mass": round(float(mass[number]), 4)}
        line |= {"sizes": jobs.sizes()[number]} | taken_out(one, job, jobs.heads[number])
        alike.setdefault(line["label"], []).append(number)
        basis, tokens = one.reader.basis, one.rows.label
        for side, ids, loads, code in (
            ("queries", basis.query_ids, jobs.queries, codes.queries),
            ("keys", basis.key_ids, jobs.keys, codes.keys),
        ):
            line[side] = examples(ids, loads[number], code, tokens, one.subject)
        found.append(line)
    for label, numbers in alike.items():
        if len(numbers) > 1:
            job = one.mask * parts[numbers].sum(0)
            heads = (jobs.heads[numbers] * mass[numbers, None]).sum(0) / mass[numbers].sum()
            found.append({"jobs": numbers} | taken_out(one, job, heads, label))
    return found


def taken_out(one: Block, job: Tensor, heads: Tensor, label: str | None = None) -> dict:
    """What taking some entries out does to pairs of their label, and to the loss."""
    subject, reader, test = one.subject, one.reader, one.rows.test
    kinds = pair_kinds(subject)
    seen = patterns_without(subject, reader, one.rows.label, job)
    best, scored = label_job(seen, kinds, one.rows.label, heads)
    label = label or best
    others = [other_entries(one.size * one.mask, one.mask, job, seed=s) for s in range(OTHERS)]
    mine, *random = (patterns_without(subject, reader, test, mask) for mask in (job, *others))
    effect = job_effect(mine, random, kinds[label], test, heads)
    plain = loss_without(subject, reader, test, None)
    rises = [loss_without(subject, reader, test, seen) - plain for seen in (mine, *random)]
    line = {
        "label": label,
        "label score": round(scored[label], 3),
        "entries": int((job > 0).sum()),
        "heads": few(heads),
        "attention": round(effect.attention, 4),
        "fall": interval(effect.fall),
        "matched": interval(effect.matched_fall),
        "others": interval(effect.other_fall),
        "holds": effect.holds,
        "loss": one.where(rises[0], test),
        "loss, others": one.where(torch.stack(rises[1:]).mean(0), test),
    }
    print(json.dumps(line), flush=True)
    return line


def by_token(one: Block) -> dict:
    """The entries between features of a token and keys that come after it, or that are it."""
    layer, rows = one.reader.transcoder.spec.layer, one.rows.train
    codes = one.reader.code(read(one.subject, layer, rows)[0])
    queries = said(codes.queries[:, 1:], rows[:, 1:], one.subject.vocab_size)
    found = {}
    for label, tokens in (("induction", rows[:, :-1]), ("duplicate", rows[:, 1:])):
        keys = said(codes.keys[:, 1:], tokens, one.subject.vocab_size)
        job = one.mask * (queries @ keys.T > ALIKE)[..., None]
        if not job.any():
            continue
        worth = (job * one.size).sum((0, 1))
        found[label] = {"mass": round(float(worth.sum() / (one.mask * one.size).sum()), 4)}
        found[label] |= taken_out(one, job, worth / worth.sum(), label)
    return found


def said(codes: Tensor, tokens: Tensor, vocab: int) -> Tensor:
    """By feature, how strong it is on average at each token, less its mean, of length 1."""
    flat = codes.flatten(0, 1)
    total = torch.zeros(vocab, flat.shape[1]).index_add(0, tokens.flatten(), flat)
    count = torch.bincount(tokens.flatten(), minlength=vocab).clamp_min(1)
    mean = (total / count[:, None] - flat.mean(0)) * (count[:, None] > 1)
    return (mean / mean.norm(dim=0).clamp_min(1e-9)).T


def examples(
    ids: Tensor, loads: Tensor, strengths: Tensor, tokens: Tensor, subject: Subject
) -> list[dict]:
    """The features that load most, each with the tokens that hold most of its strength."""
    found = []
    for at in loads.argsort(descending=True)[:6].tolist():
        number = int(ids[at])
        line: dict = {"feature": {-1: "bias", -2: "start"}.get(number, number)}
        line["load"] = round(float(loads[at]), 3)
        if number >= 0:
            total = torch.zeros(subject.vocab_size)
            total.index_add_(0, tokens.flatten(), strengths[..., at].flatten())
            top = total.argsort(descending=True)[:5].tolist()
            known = subject.tokenizer
            line["tokens"] = [known.piece(t) if known else str(t) for t in top]
            line["share"] = round(float(total[top].sum() / total.sum().clamp_min(1e-9)), 2)
        if loads[at] > 0:
            found.append(line)
    return found


def kl(text: MaskText, reader: FeatureReader, mask: Tensor) -> list[float]:
    """Mean over rows, with its interval."""
    return interval(mean_interval(mask_kl(text, reader.basis, mask).double().numpy()))


def interval(found: Interval) -> list[float]:
    """Value, low, high."""
    return [round(float(x), 5) for x in found]


def few(numbers: Tensor) -> list[float]:
    """Short."""
    return [round(float(x), 4) for x in numbers]
