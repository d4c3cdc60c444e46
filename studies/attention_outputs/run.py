"""What dictionaries on concatenated heads hold, and what heads do: wren and SmolLM2-135M.

    OMP_NUM_THREADS=1 python studies/attention_outputs/train.py SUBJECT DICTIONARIES
    OMP_NUM_THREADS=1 python studies/attention_outputs/run.py DICTIONARIES [SUBJECT ...]

SUBJECT is wren, wren-shuffled or smollm2. Writes numbers.json beside this file after every cell and
skips cells that are there already; the pictures of single latents go beside it as well.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from train import PLANS, loaded, text_of

from unweave.circuits.attention.behaviour import head_scores, induction_by_prefix
from unweave.circuits.attention.direct import DirectAttribution, direct_attribution, mean_values
from unweave.circuits.attention.head_weights import active_shares, agreement, weight_shares
from unweave.circuits.attention.polysemanticity import Polysemanticity, polysemanticity
from unweave.circuits.attention.reading import Places, codes_at, strongest_places
from unweave.circuits.attention.recursive import recursive_attribution
from unweave.circuits.attention.sources import FAMILIES, KINDS, families, source_shares
from unweave.describe.explain import explain_part, explained_claims
from unweave.describe.subject_tokens import vocabulary_of
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import load_dictionary
from unweave.pipeline.train_scores import heldout_scores
from unweave.progress import QUIET
from unweave.report.draw.attention_sources import attention_sources
from unweave.subject import Subject
from unweave.validate.attention.described import described_classes
from unweave.validate.numbers.collecting import evidence_of

HERE = Path(__file__).parent
LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12)
SITES = ("attn.z", "attn.out", "mlp.out", "resid_post")
ROWS = {"wren": 150, "wren-shuffled": 78, "smollm2": 96}
"""Held-out rows of 128 tokens on which latents are looked at."""
PER_LATENT, LEAST = 16, 4
"""Strongest firings of a latent, and the fewest with which it counts."""


class Looked(NamedTuple):
    """One dictionary on held-out rows."""

    subject: Subject
    site: str
    dictionary: Dictionary
    rows: Tensor
    code: SparseCode
    places: Places
    plain: DirectAttribution
    centred: DirectAttribution


def cells(name: str, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    plan = PLANS[name]
    yield f"heads/{name}", lambda: heads(loaded(name, "float32"))
    yield f"dimensions/{name}", lambda: dimensions(name)
    yield f"fidelity/{name}", lambda: fidelity(name, folder)
    for layer in plan.layers:
        yield f"latents/{name}/{layer}", lambda layer=layer: latents(name, folder, layer)


def heads(subject: Subject) -> dict:
    """Scores of all heads, and attention after prefixes of several lengths."""
    scores = head_scores(subject, rows=16)
    prefix = induction_by_prefix(subject, LENGTHS, rows=48)
    return {
        "scores": {k: rounded(v) for k, v in scores._asdict().items()},
        "lengths": LENGTHS,
        "prefix": rounded(prefix),
    }


def dimensions(name: str) -> dict:
    """Share of a site's dimensions that hold 99 % of its variance around the mean."""
    plan, subject, rows = PLANS[name], loaded(name), text_of(name).train[: ROWS[name]]
    found = {}
    sites = [f"blocks.{layer}.{site}" for layer in plan.layers for site in SITES]
    seen = {site: [] for site in sites}
    for group in rows.split(16):
        run = subject.run(group, capture=sites, logits=False).sites
        for site in sites:
            seen[site].append(run[site][:, 1:].flatten(2).flatten(0, 1).float())
    for site in sites:
        variance = principal_directions(torch.cat(seen[site]).double()).variance
        held = variance.cumsum(0) / variance.sum()
        found[site] = (int((held < 0.99).sum()) + 1) / len(variance)
    return {"vectors": rows[:, 1:].numel(), "share": found}


def fidelity(name: str, folder: Path) -> dict:
    """Every arm in the network, one block at a time, on held-out rows; and the dead on more."""
    plan, subject, text = PLANS[name], loaded(name), text_of(name)
    sets = {
        f"{arm}/{layer}": {"dictionary": load_dictionary(path_of(folder, name, arm, layer))}
        for arm in plan.arms
        for layer in plan.layers
    }
    rows = text.heldout[: 64 if name == "smollm2" else 128]
    scores = heldout_scores(subject, sets, rows, text.train, progress=QUIET)
    keep = ("ce_increase", "recovered_zero", "recovered_mean", "ce_increase_zero", "kl")
    found = {}
    for key, report in scores["trained"].items():
        inside = report["dictionaries"]["dictionary"]
        found[key] = {k: inside[k] for k in ("l0", "fvu")} | {k: report[k] for k in keep}
        found[key]["dead_on_heldout"] = 1 - inside["alive"]
    for layer in plan.layers:
        site, fired = f"blocks.{layer}.attn.z", {}
        for group in text.train[:256].split(16):
            x = subject.run(group, capture=[site], logits=False).sites[site]
            x = x[:, 1:].flatten(0, 1).float()
            for arm in plan.arms:
                mine = sets[f"{arm}/{layer}"]["dictionary"].encode(x).fired() > 0
                fired[arm] = fired.get(arm, mine) | mine
        for arm, mine in fired.items():
            found[f"{arm}/{layer}"]["dead"] = 1 - mine.double().mean().item()
    return {
        "tokens": rows.numel(),
        "dead_tokens": text.train[:256].numel(),
        "trained": found,
        "ce_original": scores["trained"][next(iter(sets))]["ce_original"],
    }


def path_of(folder: Path, name: str, arm: str, layer: int) -> Path:
    return folder / name / f"{arm}-blocks.{layer}.attn.z"


def looked(name: str, folder: Path, layer: int) -> Looked:
    subject, site = loaded(name, "float32"), f"blocks.{layer}.attn.z"
    dictionary = load_dictionary(path_of(folder, name, "subspace", layer))
    rows = text_of(name).heldout[: ROWS[name]]
    code = codes_at(subject, site, dictionary, rows)
    places = strongest_places(code, rows.shape[1] - 1, PER_LATENT)
    given = (subject, site, dictionary, rows, places)
    plain = direct_attribution(*given)
    centred = direct_attribution(*given, means=mean_values(subject, site, rows))
    return Looked(subject, site, dictionary, rows, code, places, plain, centred)


def latents(name: str, folder: Path, layer: int) -> dict:
    """Families, heads and kinds of one block's latents, with examples."""
    seen = looked(name, folder, layer)
    subject, dictionary, places = seen.subject, seen.dictionary, seen.places
    count, heads = dictionary.n_latents, subject.n_heads
    sources = source_shares(seen.centred, places, seen.rows, count)
    enough = (sources.places >= LEAST) & sources.seen
    family = families(sources)
    weights = weight_shares(dictionary, heads)
    active = active_shares(seen.centred, places, count)
    published = active_shares(seen.plain, places, count)
    kinds = sources.shares.argmax(1).where(enough, -1)
    claims = claims_of(seen)
    told = described_classes(claims, vocabulary_of(subject))
    error = (seen.plain.total - pre_of(seen)).abs().max().item()
    found = {
        "latents": count,
        "seen": int(enough.sum()),
        "worst_sum": error,
        "families": shares_of([FAMILIES[f] for f in family[enough].tolist()]),
        "kinds": dict(zip(KINDS, rounded(sources.shares[enough].mean(0)), strict=True)),
        "chance": dict(zip(KINDS, rounded(sources.chance[enough].mean(0)), strict=True)),
        "families_published": shares_of(
            [
                FAMILIES[f]
                for f in families(source_shares(seen.plain, places, seen.rows, count))[
                    enough
                ].tolist()
            ]
        ),
        "agreement": agreement(weights, active, among=enough)._asdict(),
        "agreement_published": agreement(weights, published, among=enough)._asdict(),
        "largest_share": float(weights[enough].amax(1).mean()),
        "polysemantic_sources": spread(polysemanticity(weights, kinds, among=enough)),
        "polysemantic_words": spread(polysemanticity(weights, told.classes, among=enough)),
        "classes": Counter(
            told.names[c] for c in told.classes[enough].tolist() if c >= 0
        ).most_common(8),
        "unexplained": float((told.classes[enough] < 0).double().mean()),
        "examples": examples(seen, family, enough),
    }
    if (name, layer) in (("smollm2", 18), ("wren", 1)):
        draw(seen, family, enough, HERE / f"{name}-{layer}.svg")
    if layer > 0:
        found["upstream"] = upstream(seen, family, enough)
    return found


def claims_of(seen: Looked) -> list:
    evidence = evidence_of(
        seen.site, seen.code, seen.rows, len(seen.rows), vocabulary_of(seen.subject)
    )
    return explained_claims(explain_part(evidence), evidence)


def pre_of(seen: Looked) -> Tensor:
    """Pre-activations as the dictionary computes them: its values where latents fire."""
    return seen.code.dense()[
        seen.places.row * (seen.rows.shape[1] - 1) + seen.places.position - 1, seen.places.latent
    ]


def spread(found: Polysemanticity) -> dict:
    return {
        "share": found.share,
        "commonest": float(found.commonest.mean()),
        "classes": float(found.classes.mean()),
        "dealt_share": found.dealt_share,
        "dealt_commonest": found.dealt_commonest,
        "dealt_classes": found.dealt_classes,
        "by_head": rounded(found.commonest),
    }


def chosen(seen: Looked, family: Tensor, enough: Tensor, count: int) -> Iterator[tuple[str, int]]:
    """Of each family the places whose attribution is most concentrated, a latent each."""
    top = seen.centred.by_source.amax(1) / seen.centred.by_source.clamp_min(0).sum(1)
    for index, name in enumerate(FAMILIES):
        mine = (family[seen.places.latent] == index) & enough[seen.places.latent]
        first = torch.ones_like(mine)
        first[1:] = seen.places.latent[1:] != seen.places.latent[:-1]  # its strongest firing
        order = top.masked_fill(~(mine & first), -1.0).argsort(descending=True)
        yield from ((name, int(i)) for i in order[: min(count, int((mine & first).sum()))])


def examples(seen: Looked, family: Tensor, enough: Tensor) -> list[dict]:
    """A few latents of each family: the strongest source and head at their strongest firing."""
    found = []
    tokenizer = seen.subject.tokenizer
    assert tokenizer is not None
    for name, at in chosen(seen, family, enough, 2):
        row, position, latent = (int(part[at]) for part in seen.places)
        source = int(seen.centred.by_source[at].argmax())
        head = int(seen.centred.by_head[at].argmax())
        tokens = seen.rows[row].tolist()
        found.append(
            {
                "family": name,
                "latent": latent,
                "head": head,
                "head_share": round(
                    float(seen.centred.by_head[at, head] / seen.centred.by_head[at].sum()), 3
                ),
                "back": position - source,
                "at": tokenizer.piece(tokens[position]),
                "source": tokenizer.piece(tokens[source]),
                "before_source": tokenizer.piece(tokens[source - 1]) if source else "",
                "text": tokenizer.decode(tokens[max(position - 12, 1) : position + 1]),
            }
        )
    return found


def draw(seen: Looked, family: Tensor, enough: Tensor, path: Path) -> None:
    """The clearest induction latent of the block, or the clearest of the longest range."""
    picked = dict(reversed([(name, at) for name, at in chosen(seen, family, enough, 1)]))
    name = next(f for f in ("induction", "duplicate", "long range", "short range") if f in picked)
    at, tokenizer = picked[name], seen.subject.tokenizer
    assert tokenizer is not None
    row, position, latent = (int(part[at]) for part in seen.places)
    drawing = attention_sources(
        f"{seen.subject.name}, {seen.site}, latent {latent} ({name})",
        tokenizer.pieces(seen.rows[row].tolist()),
        seen.centred.by_source[at].tolist(),
        seen.centred.by_head[at].tolist(),
        position=position,
    )
    path.write_text(drawing + "\n", encoding="utf-8")


def upstream(seen: Looked, family: Tensor, enough: Tensor) -> dict:
    """Who wrote what latents of each family read: shares of all that arrives, in absolute value."""
    found: dict[str, dict] = {}
    for index, name in enumerate(FAMILIES):
        mine = ((family[seen.places.latent] == index) & enough[seen.places.latent]).nonzero()[:, 0]
        if not len(mine):
            continue
        g = torch.Generator().manual_seed(0)
        parts, worst = [], 0.0
        for at in mine[torch.randperm(len(mine), generator=g)[:24]].tolist():
            row, position, latent = (part[at : at + 1] for part in seen.places)
            one = recursive_attribution(
                seen.subject, seen.site, seen.dictionary, seen.rows[int(row)], position, latent
            )
            worst = max(worst, float((one.total - seen.plain.total[at]).abs()))
            parts.append([one.embed.abs().sum(), one.mlps.abs().sum(), one.heads.abs().sum()])
        sums = torch.tensor(parts)
        share = (sums / sums.sum(1, keepdim=True)).mean(0)
        found[name] = dict(zip(("embed", "mlps", "heads"), rounded(share), strict=True)) | {
            "places": len(parts), "worst_sum": worst,
        }  # fmt: skip
    return found


def shares_of(names: list[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: round(counts[name] / max(len(names), 1), 4) for name in FAMILIES}


def rounded(values: Tensor) -> list:
    return json.loads(json.dumps(values.double().mul(1e4).round().div(1e4).tolist()))


def written(found: dict) -> str:
    """JSON with lists of numbers on one line each."""
    text = json.dumps(found, indent=1, sort_keys=True)
    return re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text) + "\n"


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    out = HERE / "numbers.json"
    found = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        for key, cell in cells(name, folder):
            if key in found:
                continue
            start = time.time()
            found[key] = cell()
            out.write_text(written(found))
            print(key, round(time.time() - start, 1), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or list(PLANS))
