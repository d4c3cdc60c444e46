"""`unweave suggest`: settings for a dictionary without a sweep."""

from typing import TYPE_CHECKING

from unweave.cli.counts import Count

if TYPE_CHECKING:
    from unweave.training.suggest import Predicted, Suggestion

CONTEXT = 128
"""Tokens of one row."""
LOOKED_AT = 65_536
"""Tokens that are run through the subject for the statistics and the probe."""
JUDGED_ROWS = 32
"""Rows on which the cost of an error is measured."""


def suggest(
    subject: str,
    /,
    *,
    site: str,
    tokens: Count,
    budget: str | None = None,
    text: str | None = None,
    k: int | None = None,
    fvu: float | None = None,
    form: str = "topk",
    probe: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> None:
    """Suggest width, k or penalty, learning rate, batch and warm-up, with what to expect of them.

    Nothing is trained, except three tiny dictionaries with --probe, which narrow the intervals.

    Parameters
    ----------
    subject
        A name that `unweave subjects` lists, a Hugging Face folder, a GGUF file or a hub id.
    site
        The site to decompose, such as blocks.2.resid_post.
    tokens
        Tokens the dictionary will be trained on, such as 400k or 2M.
    budget
        The most it may take: 90s, 20m or 3h, or floating-point operations such as 5e13.
    text
        A name that `unweave texts` lists, a file, a folder or hub:NAME of a data set.
    k
        Active latents per token; chosen if left out.
    fvu
        Choose the smallest k that should reach this fraction of variance unexplained.
    form
        topk, or l1 for ReLU with an L1 penalty.
    probe
        Train three tiny dictionaries first.
    seed
        The seed of every random choice.
    threads
        Processor threads to use.
    """
    from unweave.activations.gather import gather
    from unweave.activations.workers import Workers
    from unweave.cli.budget import read_budget
    from unweave.cli.validation import validated
    from unweave.progress import watching
    from unweave.subject import load_subject, token_rows
    from unweave.training.laws.spliced import relation
    from unweave.training.suggest import SuggestSettings
    from unweave.training.suggest import suggest as run

    flags = {"k": k, "fvu": fvu, "form": form, "probe": probe, "seed": seed}
    flags |= read_budget(budget)
    settings = validated(SuggestSettings, {n: v for n, v in flags.items() if v is not None})
    network, progress = load_subject(subject), watching()
    source = text or ("heldout" if network.name == "wren" else "self")
    context = min(CONTEXT, network.context)
    rows = token_rows(
        network,
        source,
        tokens=min(tokens, LOOKED_AT),
        context=context,
        seed=seed,
        progress=progress,
    )
    with Workers(threads) as workers:
        vectors = gather(network, rows.train, site, workers=workers, seed=seed)
        judged = rows.heldout[:JUDGED_ROWS]
        found = run(
            vectors,
            tokens=tokens,
            settings=settings,
            text=rows.train,
            relation=relation(network, judged, site, vectors, seed=seed),
            workers=workers,
        )
    _show(found)


def _show(found: "Suggestion") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    trial, console = found.trial, Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    chosen = f"{trial.k} (TopK)" if trial.k is not None else f"about {found.l0:.0f} (ReLU)"
    for name, value in (
        ("latents", f"{trial.n_latents:,}"),
        ("active per token", chosen),
        *([("L1 weight", f"{trial.l1:.3g}")] if trial.l1 is not None else []),
        ("learning rate", f"{trial.lr:.2g}"),
        ("batch", f"{trial.batch}, {trial.steps:,} steps"),
        ("warm-up", f"{trial.warmup:.0%} of the run"),
        ("FVU", _interval(found.fvu)),
        ("CE increase", _interval(found.ce_increase, " nats") if found.ce_increase else "unknown"),
        ("dead latents", _interval(found.dead)),
        ("cost", f"{found.flops:.2g} operations, about {found.seconds:,.0f} s on one core"),
    ):
        table.add_row(name, escape(value))
    console.print(table)
    console.print("Expected values with 90 % intervals. Why:")
    for line in found.law:
        console.print("- " + escape(line), soft_wrap=True)


def _interval(found: "Predicted", unit: str = "") -> str:
    return f"{found.value:.3f}{unit} ({found.low:.3f} to {found.high:.3f})"
