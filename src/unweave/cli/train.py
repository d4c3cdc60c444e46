"""`unweave train`: dictionaries at a site, by a recipe."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unweave.cli.counts import Count


def train(
    subject: str,
    /,
    *,
    out: Path,
    site: str | None = None,
    to: str | None = None,
    each: bool | None = None,
    recipe: str | None = None,
    k: str | None = None,
    penalty: str | None = None,
    latents: Count | None = None,
    lr: float | None = None,
    start: str | None = None,
    batch: Count | None = None,
    text: str | None = None,
    tokens: Count | None = None,
    context: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    shards: int | None = None,
    threads: int | None = None,
    track: str | None = None,
    config: Annotated[Path | None, Parameter(name="--config")] = None,
) -> None:
    """Train sparse dictionaries at a site, several in one pass of the subject; resumes if cut off.

    Under `torchrun --nproc-per-node N -m unweave.cli train ...` N processes share the work.

    Parameters
    ----------
    subject
        A name that `unweave subjects` lists, a Hugging Face folder, a GGUF file or a hub id.
    out
        The folder for the result: new, finished earlier, or left by an interrupted run.
    site
        Where vectors are read, such as blocks.2.resid_post; several with commas between them, or
        those of all layers with a * for the number.
    to
        Where they are written, for a transcoder; the site read when not given.
    each
        A dictionary of its own for each of several sites, instead of one for all.
    recipe
        A name that `unweave recipes` lists, or several with commas (default: batchtopk).
    k
        Latents per token, or several with commas: each recipe is trained with each.
    penalty
        Weight of the penalty instead of k, or several with commas.
    latents
        Latents of a dictionary (default: eight times the width).
    lr
        Learning rate in place of the recipe's own, which is meant for long runs.
    start
        Where decoder rows start: random, uniform, data, subspace, clusters or atoms, in place of
        the recipe's own. For attention outputs: subspace.
    batch
        Vectors in a step (default: 512).
    text
        A name that `unweave texts` lists, a file, a folder or hub:NAME of a data set.
    tokens
        Tokens to train on, such as 400k or 2M, held-out ones included.
    context
        Tokens in a row (default: 128).
    seed
        The seed of every random choice.
    device
        Where to run and train: cpu, cuda or cuda:1 (default: cpu).
    shards
        Under torchrun: processes that each hold a part of every dictionary; the others share rows.
    threads
        Processor threads to use.
    track
        Send the log to wandb or trackio as well.
    config
        A TOML file of settings, these and others (schedule, dead, plateau, epochs, harvest, ...);
        the flags above win over it.
    """
    from unweave.cli.config import configured
    from unweave.pipeline.train import train_site
    from unweave.pipeline.train_settings import TrainSiteSettings
    from unweave.progress import watching
    from unweave.subject import keep_freed_memory
    from unweave.training.parallel.grid import speaks

    keep_freed_memory()
    flags = {
        "site": site, "to": to, "each": each, "recipe": recipe, "k": k, "penalty": penalty,
        "latents": latents, "lr": lr, "start": start, "batch": batch, "text": text,
        "tokens": tokens, "context": context, "seed": seed, "device": device, "shards": shards,
        "threads": threads, "track": track,
    }  # fmt: skip
    given = {name: value for name, value in flags.items() if value is not None}
    settings = configured(TrainSiteSettings, given, config)
    folder = train_site(subject, settings, out=out, progress=watching())
    if speaks():
        _show(folder)


def _show(folder: Path) -> None:
    """One line a dictionary: how sparse, how true, and what it costs the network."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False)
    table.add_column("dictionary")
    for title in ("L0", "FVU", "alive", "CE rise (nats)", "KL (nats)"):
        table.add_column(title, justify="right")
    for name, found in scores["trained"].items():
        for member, fidelity in found["dictionaries"].items():
            shown = [fidelity["l0"], fidelity["fvu"], fidelity["alive"]]
            shown += [found["ce_increase"]["value"], found["kl"]["value"]]
            cells = ("-" if number is None else f"{number:.4g}" for number in shown)
            many = len(found["dictionaries"]) > 1
            table.add_row(escape(f"{name}/{member}" if many else name), *cells)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"On {scores['tokens']:,} held-out tokens. All of it: {folder}", markup=False)
