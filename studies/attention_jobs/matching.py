"""A block's matching job: what it is, and what happens without it."""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from unweave.dictionaries.attention.feature_basis import FeatureReader, importance
from unweave.dictionaries.attention.matching_jobs import (
    MatchingJob,
    find_matching,
    interaction,
    reindexed,
)
from unweave.subject import Subject
from unweave.validate.attention.jobs import (
    job_effect,
    label_job,
    loss_without,
    other_entries,
    patterns_without,
)
from unweave.validate.attention.pair_kinds import pair_kinds
from unweave.validate.bootstrap import Interval

DEALT = 2
"""Times that key features are dealt at random."""


def matching(
    subject: Subject,
    reader: FeatureReader,
    texts: tuple[Tensor, Tensor, Tensor],
    inputs: Tensor,
    where: Callable[[Tensor, Tensor], dict],
    heads: Tensor | None = None,
) -> dict:
    """Found on `inputs`, what attention reads of the first text; labelled on the second; judged on
    the third, beside the same relation with key features dealt at random, and beside entries of any
    kind that contribute as much to scores."""
    _, label_rows, test = texts
    codes = reader.code(inputs)
    job = find_matching(interaction(codes, reader.basis), heads=heads)
    dealt = [reindexed(job, reader.basis.key_ids >= 0, seed=seed) for seed in range(DEALT)]
    kinds = pair_kinds(subject)
    seen = patterns_without(subject, reader, label_rows, job.mask())
    label, scored = label_job(seen, kinds, label_rows, job.heads)
    weight, everything = importance(codes, reader.basis), torch.ones(reader.basis.shape)
    heavy = [other_entries(weight, everything, job.mask(), seed=seed) for seed in range(DEALT)]
    masks = [job.mask(), *(one.mask() for one in dealt), *heavy]
    mine, *random = (patterns_without(subject, reader, test, mask) for mask in masks)
    effect = job_effect(mine, random[:DEALT], kinds[label], test, job.heads)
    weighty = job_effect(mine, random[DEALT:], kinds[label], test, job.heads)
    plain = loss_without(subject, reader, test, None)
    rises = [loss_without(subject, reader, test, seen) - plain for seen in (mine, *random)]
    line = size(job) | {
        "label": label,
        "label score": round(scored[label], 3),
        "attention": round(effect.attention, 4),
        "fall": rounded(effect.fall),
        "matched": rounded(effect.matched_fall),
        "dealt": rounded(effect.other_fall),
        "others": rounded(weighty.other_fall),
        "holds": effect.holds and weighty.holds,
        "loss": where(rises[0], test),
        "loss, dealt": where(torch.stack(rises[1 : 1 + DEALT]).mean(0), test),
        "loss, others": where(torch.stack(rises[1 + DEALT :]).mean(0), test),
    }
    print(json.dumps(line), flush=True)
    return line


def size(job: MatchingJob) -> dict:
    """How many pairs and features it has, and how much of the interaction they hold."""
    return {
        "entries": int(job.mask().sum()),
        "query features": int(job.partners.any(1).sum()),
        "key features": int(job.partners.any(0).sum()),
        "pairs": int(job.partners.sum()),
        "of pairs": job.partners.numel(),
        "heads": [round(float(x), 4) for x in job.heads],
        "share": round(job.share, 4),
    }


def rounded(found: Interval) -> list[float]:
    """Value, low, high."""
    return [round(float(x), 5) for x in found]
