"""What is printed when an artifact is done: how good it is, beside what it must beat."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unweave.artifact.folder import open_artifact
from unweave.artifact.layout import REPORT
from unweave.artifact.scores import Interval, Number, Scores

FIRST = "mean_ablation"
"""The control that stands right under the loss increase."""


def show_summary(folder: Path) -> None:
    """Print the numbers of a finished artifact and where its report lies."""
    scores = open_artifact(folder).scores()
    console = Console(highlight=False)
    console.print(_title(scores), soft_wrap=True)
    console.print(_numbers(scores))
    console.print(f"The artifact: {escape(str(folder))}", soft_wrap=True)
    console.print(f"The report:   {escape(str(folder / REPORT))}", soft_wrap=True)


def _title(scores: Scores) -> str:
    parts, features = len(scores.parts), sum(part.n_latents for part in scores.parts)
    return (
        f"\n[bold]{escape(scores.subject.name)}[/bold] in {features:,} features: {parts} parts, "
        f"{scores.tokens:,} tokens of {escape(scores.text.name)}, {_duration(scores.seconds)}, "
        f"{scores.peak_rss_bytes / 1e9:.1f} GB at most"
    )


def _numbers(scores: Scores) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("name")
    table.add_column("value", justify="right")
    table.add_column("unit and 95% interval", style="dim")
    whole = scores.splice.propagated
    table.add_row("[bold]everything replaced (propagated)[/bold]")
    table.add_row("  loss increase", _plain(whole.ce_increase), _span(whole.ce_increase, "nats"))
    for name, control in sorted(scores.controls.items(), key=lambda item: item[0] != FIRST):
        loss = control.ce_increase
        table.add_row(f"  by {escape(name.replace('_', ' '))}", _plain(loss), "nats, a control")
    for name, baseline in scores.baselines.items():
        loss = baseline.math_accuracy
        table.add_row(f"  by {escape(name)}, as many active", _plain(loss), "nats, a baseline")
    original = scores.ce_original
    table.add_row("  the original's loss", _plain(original), _span(original, "nats"))
    table.add_row("  KL from the original", _plain(whole.kl), _span(whole.kl, "nats"))
    table.add_row("  same top token", _plain(whole.top1_agreement), _span(whole.top1_agreement, ""))
    single = scores.splice.single.ce_increase
    table.add_row("one part replaced, loss increase", _plain(single), "nats, mean over parts")
    active = f"{scores.active_features_per_token:,.1f}"
    table.add_row("active features per token", active, f"{scores.alive_fraction:.1%} ever fire")
    table.add_row("[bold]the four numbers[/bold]")
    for name in type(scores.four_numbers).model_fields:
        number: Number = getattr(scores.four_numbers, name)
        label = name.replace("_", " ").removesuffix(" bits")
        table.add_row(f"  {label}", _plain(number), _span(number, escape(number.unit)))
    return table


def _plain(number: Interval) -> str:
    return f"{number.value:,.3f}" if abs(number.value) < 1000 else f"{number.value:,.0f}"


def _span(number: Interval, unit: str) -> str:
    if number.low is None or number.high is None:
        return unit
    form = ",.3f" if max(abs(number.low), abs(number.high)) < 1000 else ",.0f"
    return f"{unit} ({number.low:{form}} to {number.high:{form}})".lstrip()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
