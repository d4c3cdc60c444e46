"""`unweave pareto`: accuracy against length, of dictionaries, artifacts and classical baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unweave.cli.counts import Count

if TYPE_CHECKING:
    from unweave.artifact.measurements import Measurement

NONE = "none"
"""What stands for no baselines at all."""
Several = Parameter(consume_multiple=True)


def pareto(
    *runs: Path,
    out: Path,
    subject: str | None = None,
    site: str | None = None,
    baselines: str = "neurons,pca,svd,ica,nmf,clusters,polytopes,random",
    k: Annotated[tuple[int, ...], Several] = (4, 16, 64),
    clusters: Annotated[tuple[int, ...], Several] = (64, 512),
    text: str | None = None,
    tokens: Count | None = None,
    rows: int = 256,
    seed: int | None = None,
    threads: int | None = None,
) -> None:
    """Draw both Pareto fronts of methods at one place, measured together; resumes if interrupted.

    Parameters
    ----------
    runs
        Folders of unweave train, dictionaries of ours or of other libraries, artifacts, or
        measurements.json files made before.
    out
        Folder of the numbers, the fronts and the pictures; the same command goes on there.
    subject
        The network, where the runs do not say which (dictionaries of other libraries).
    site
        Compare only dictionaries that write here, where a run has several places.
    baselines
        Families with commas between, or none; the random control is always measured.
    k
        Latents per token of the baselines that choose them.
    clusters
        Numbers of clusters.
    text
        A name that unweave texts lists, a file or a folder (default: what the runs were made on,
        of which their held-out part is measured).
    tokens
        Tokens of the text, held-out ones included (default: as the runs).
    rows
        Training rows that baselines are fitted on and descriptions are made from.
    seed
        The seed of the text's order (default: as the runs).
    threads
        Processor threads to use.
    """
    from unweave.cli.validation import validated
    from unweave.errors import UserError
    from unweave.pipeline.pareto import ParetoSettings
    from unweave.pipeline.pareto import pareto as run
    from unweave.progress import watching
    from unweave.subject import keep_freed_memory
    from unweave.validate.rivals.families import RivalSettings

    if not runs:
        raise UserError("Nothing to compare: name a folder that unweave train made, or an artifact")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    keep_freed_memory()
    rivals = validated(RivalSettings, {"k": k, "clusters": clusters})
    names = () if baselines == NONE else tuple(name.strip() for name in baselines.split(","))
    fields = {
        "subject": subject, "site": site, "baselines": names, "rivals": rivals, "text": text,
        "tokens": tokens, "explain_rows": rows, "seed": seed,
    }  # fmt: skip
    settings = validated(ParetoSettings, fields, flags={"explain_rows": "rows"})
    _show(run(runs, settings, out=out, progress=watching()))


def _show(folder: Path) -> None:
    """One line a method, those on a front marked, and what all of them have conquered."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from unweave.artifact.measurements import read_measurements

    fronts = json.loads((folder / "fronts.json").read_text(encoding="utf-8"))["fronts"]
    mathematical, semantic = fronts["mathematical"], fronts["semantic"]
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    for title in ("kind", "bits", "KL bits", "bits per nat", "words bits", "KL bits"):
        table.add_column(title, justify="right")
    found = read_measurements(folder / "measurements.json")
    for method in sorted(found.methods, key=lambda m: m.math_length.value):
        bits = mathematical["bits_per_nat"].get(method.name)
        table.add_row(
            escape(method.name), method.kind, *_pair(method, mathematical["front"]),
            "-" if bits is None else f"{bits:.0f}", *_pair(method, semantic["front"], words=True),
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    console.print("*: nothing here is as short and as true. Bits per token; controls cannot win.")
    for which, front in fronts.items():
        volume = front["hypervolume"]
        console.print(
            f"Hypervolume, {which}: {volume['value']:.3f} ({volume['low']:.3f} to "
            f"{volume['high']:.3f}) of {front['shortest']:g} to {front['reference_length']:,.0f} "
            f"bits (log) by mean ablation's {front['reference_loss']:.2f}"
        )
        if front["unbeaten_controls"]:
            names = ", ".join(front["unbeaten_controls"])
            console.print(f"  no method beats the controls {names}", markup=False)
    console.print(
        f"On {found.text.heldout_tokens:,} held-out tokens. All of it: {folder}", markup=False
    )


def _pair(method: "Measurement", front: list[str], *, words: bool = False) -> list[str]:
    length = method.semantic_length if words else method.math_length
    loss = method.semantic_loss if words else method.math_loss
    star = "*" if method.name in front else " "
    return [f"{length.value:,.2f}" if words else f"{length.value:,.1f}", f"{loss.value:.3f}{star}"]
