"""What a run found, as tables for a terminal."""

from rich.table import Table


def speed_table(name: str, found: dict) -> Table:
    """Times, ratios and shares of the roofs of one workload."""
    roofs = found["roofs_gflops"]
    table = Table(
        title=f"{name}: batch {found['workload']['batch']}, {found['turns']} turns; encoder's "
        f"product {roofs['encoder_bfloat16']:.0f} (bfloat16) and {roofs['encoder_float32']:.0f} "
        f"(float32) GFLOP/s, nominal {roofs['nominal_bfloat16']:.0f} and "
        f"{roofs['nominal_float32']:.0f}",
        title_justify="left",
    )
    table.add_column("")
    for heading in (
        "CPU ms", "wall ms", "vectors / CPU s", "L0", "times ours", "in equal numbers",
        "of bf16 bound", "of nominal",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for who, row in sorted(found["contestants"].items(), key=lambda r: r[1]["cpu_ms"]["median"]):
        table.add_row(
            who,
            _spread(row["cpu_ms"], 0 if row["cpu_ms"]["median"] > 200 else 1),
            f"{row['wall_ms']['median']:.1f}",
            f"{row['vectors_per_cpu_second']:,}",
            f"{row['l0']:.1f}",
            _spread(found["ratios"].get(who), 2),
            _spread(found["ratios_equal_numbers"].get(who), 2),
            f"{row['share_of_encoder_roof']['bfloat16']:.1%}",
            f"{row['share_of_nominal_roof']['bfloat16']:.1%}",
        )
    return table


def quality_table(name: str, found: dict) -> Table:
    """Where everybody ended and when they passed the target."""
    target = found.get("target_fvu")
    title = f"{name}: time to the best peer's final held-out FVU"
    if target is not None:
        title += f", {target:.4f} ({found['best_peer']})"
    for who, share in found.get("share_of_best_peers_time", {}).items():
        title += f"; {who} takes {share:.1%} of that run"
    table = Table(title=title, title_justify="left")
    for heading in ("", "CPU s in all", "final FVU", "L0", "dead", "CPU s to target"):
        table.add_column(heading, justify="right" if heading else "left")
    for who, curve in sorted(found["curves"].items(), key=lambda c: c[1][-1]["fvu"]):
        end, to = curve[-1], found.get("cpu_s_to_target", {}).get(who)
        table.add_row(
            who,
            f"{end['cpu_s']:.1f}",
            f"{end['fvu']:.4f}",
            f"{end['l0']:.1f}",
            f"{end['dead']:.1%}",
            "never" if to is None else f"{to:.1f}",
        )
    return table


def memory_table(name: str, found: dict) -> Table:
    """Peaks over what is needed."""
    table = Table(
        title=f"{name}: weights, optimiser and one batch take {found['needed_mb']:.0f} MB",
        title_justify="left",
    )
    for heading in ("", "imports MB", "training MB", "of what is needed"):
        table.add_column(heading, justify="right" if heading else "left")
    for who, row in sorted(found["contestants"].items(), key=lambda r: r[1]["share"]):
        table.add_row(who, f"{row['base_mb']:.0f}", f"{row['grown_mb']:.0f}", f"{row['share']:.2f}")
    return table


def _spread(found: dict | None, digits: int) -> str:
    if found is None:
        return ""
    low, high = found["low"], found["high"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
