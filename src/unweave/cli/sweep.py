"""`unweave sweep`: many settings on one site, the law they follow and the best of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unweave.cli.counts import Count
from unweave.errors import UserError

if TYPE_CHECKING:
    from unweave.training.trial import Outcome

CONTEXT = 128
"""Tokens of one row."""
Several = Parameter(consume_multiple=True)


def sweep(
    subject: str,
    /,
    *,
    site: str,
    tokens: Count,
    out: Path,
    widths: Annotated[tuple[int, ...], Several] = (256, 512, 1024),
    k: Annotated[tuple[int, ...], Several] = (4, 8, 16, 32),
    rates: Annotated[tuple[float, ...], Several] = (4e-3, 8e-3, 1.6e-2),
    guided: int | None = None,
    text: str | None = None,
    ray: str | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> None:
    """Train a grid of dictionaries in one pass of the subject; resumes if interrupted.

    Parameters
    ----------
    subject
        A name that `unweave subjects` lists, a Hugging Face folder, a GGUF file or a hub id.
    site
        The site to decompose, such as blocks.2.resid_post.
    tokens
        Tokens to train every dictionary on, such as 400k or 2M.
    out
        Folder of the outcomes, the fitted law and the picture; the same command goes on there.
    widths
        Numbers of latents.
    k
        Active latents per token.
    rates
        Learning rates.
    guided
        Let Optuna choose so many settings instead of training the whole grid.
    text
        A name that `unweave texts` lists, a file, a folder or hub:NAME of a data set.
    ray
        Address of a Ray cluster to spread the passes over; auto for the one at hand.
    seed
        The seed of every random choice.
    threads
        Processor threads to use.
    """
    from unweave.activations.gather import gather
    from unweave.activations.workers import Workers
    from unweave.cli.validation import validated
    from unweave.progress import watching
    from unweave.subject import load_subject, token_rows
    from unweave.training.fanout.cluster import ray_executor
    from unweave.training.pareto import draw_pareto
    from unweave.training.sweep import PLOT, SweepSettings
    from unweave.training.sweep import sweep as run

    fields = {"n_latents": widths, "k": k, "lr": rates, "guided": guided, "seeds": (seed,)}
    fields["tokens"] = (tokens,)
    settings = validated(SweepSettings, fields, flags={"n_latents": "widths", "lr": "rates"})
    executor = None if ray is None else ray_executor(ray)
    network, progress = load_subject(subject), watching()
    source = text or ("heldout" if network.name == "wren" else "self")
    context = min(CONTEXT, network.context)
    rows = token_rows(network, source, tokens=tokens, context=context, seed=seed, progress=progress)
    with Workers(threads) as workers:
        train, heldout = (
            gather(network, part, site, workers=workers, seed=seed)
            for part in (rows.train, rows.heldout)
        )
        outcomes = run(
            settings,
            train,
            heldout,
            folder=out,
            executor=executor,
            workers=None if executor else workers,
            progress=progress,
        )
    draw_pareto(outcomes, out / PLOT)
    _show(outcomes)
    _law(outcomes, out)
    print(f"Outcomes and picture: {out}")


def _show(outcomes: "list[Outcome]") -> None:
    from rich.console import Console
    from rich.table import Table

    from unweave.training.pareto import code_bits, pareto_front

    table = Table(box=None, pad_edge=False)
    for title in ("latents", "L0", "rate", "FVU", "dead", "bits"):
        table.add_column(title, justify="right")
    for o in pareto_front(outcomes):
        table.add_row(
            f"{o.trial.n_latents:,}",
            f"{o.l0:.1f}",
            f"{o.trial.lr:.2g}",
            f"{o.fvu:.4f}",
            f"{o.dead:.1%}",
            f"{code_bits(o):.0f}",
        )
    console = Console(highlight=False)
    console.print(f"Of {len(outcomes)} dictionaries, those that nothing beats in bits and FVU:")
    console.print(table)


def _law(outcomes: "list[Outcome]", out: Path) -> None:
    from unweave.artifact.atomic import write_text
    from unweave.training.sweep import refit

    try:
        law = refit(outcomes)
    except UserError as error:
        print(f"No law: {error}")
        return
    write_text(out / "law.json", law.model_dump_json(indent=1) + "\n")
    spread = [(name, law.spread(name)) for name in ("b_n", "b_k")]
    said = ", ".join(f"{name} {s.value:.2f} ({s.low:.2f} to {s.high:.2f})" for name, s in spread)
    print(f"The law refitted to them: {said}; all of it in law.json")
