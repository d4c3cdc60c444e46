"""Local, end-to-end and end-to-end + downstream dictionaries at one site (Braun et al. 2024).

    python studies/e2e/run.py SUBJECT LAYER SEED

Trains every cell of `cells.CELLS` on the same rows in the same order, splices each into the
network on held-out rows and appends one JSON line per cell to studies/e2e/results.jsonl. Cells
that have their line are left alone. `table.py` turns the lines into README.md and the pictures.
"""

import json
import sys
import time
from pathlib import Path

import torch
from cells import CELLS, PLANS, Cell, Plan

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.initial import Start
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.batches import ArraySource, TokenSource, VectorBatch
from unweave.training.dead import DeadLatents
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.objectives.local import Local
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.schedule import Schedule
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.validate.splice_dictionary import site_means, splice_reports

RESULTS = Path(__file__).parent / "results.jsonl"


def main(name: str, layer: int, seed: int) -> None:
    plan = PLANS[name]
    cells = [cell for cell in CELLS[name] if seed == 0 or cell.every_seed]
    wanted = [cell for cell in cells if key(name, layer, seed, cell) not in done()]
    if not wanted:
        return
    torch.manual_seed(0)
    subject = load_subject(name, dtype="bfloat16")
    # Its backward pass is twice as fast on a processor as the fused one's.
    subject.model.set_attn_implementation("eager")
    text = token_rows(subject, plan.text, tokens=plan.tokens, context=plan.context)
    site = f"blocks.{layer}.resid_pre"
    later = tuple(f"blocks.{i}.resid_pre" for i in range(layer + 1, subject.n_layers))
    later = later or (f"blocks.{layer}.resid_post",)
    judge = load_subject(name, dtype=plan.judge)
    held = text.heldout[: plan.held_rows]
    means = site_means(judge, [site], text.train[: plan.held_rows])
    trainees = {cell: trainee(cell, plan, site, later, seed, subject.d_model) for cell in wanted}
    spent = fit(trainees, plan, subject, text.train, site, later, seed)
    sets = {one.name: one.dictionaries for one in trainees.values()}
    reports = splice_reports(judge, sets, held, means=means, downstream_sites=later, rows_at_once=4)
    for cell, one in trainees.items():
        report = reports[one.name]
        line = {
            "subject": name, "layer": layer, "seed": seed, "kind": cell.kind,
            "activation": cell.activation, "weight": cell.weight, "times": cell.times,
            "cpu_seconds": spent[cell],
            "tokens": plan.steps * cell.times * plan.rows * (plan.context - 1),
        } | flat(report, subject.d_model)  # fmt: skip
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print({k: line[k] for k in ("kind", "activation", "weight", "l0", "ce_increase", "alive")})


def key(name: str, layer: int, seed: int, cell: Cell) -> tuple:
    return name, layer, seed, cell.kind, cell.activation, cell.weight, cell.times


def done() -> set[tuple]:
    if not RESULTS.exists():
        return set()
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    fields = ("subject", "layer", "seed", "kind", "activation", "weight", "times")
    return {tuple(line[field] for field in fields) for line in lines}


def flat(report, width: int) -> dict:
    """The report's numbers, intervals as value with its two ends."""
    inside = report.inside["d"]
    found = {
        name: getattr(report, name).value
        for name in (
            "ce_original", "ce_increase", "kl", "top1_agreement", "ce_increase_zero",
            "ce_increase_mean", "recovered_zero", "recovered_mean",
        )
    }  # fmt: skip
    found["ce_increase_ends"] = list(report.ce_increase[1:])
    for name in ("l0", "fvu", "l2_ratio", "gamma", "alive", "cosine"):
        found[name] = getattr(inside.fidelity, name)
    found["fvu_normalised"] = inside.fvu_normalised
    found["downstream"] = list(report.downstream.values())
    return {
        k: [round(x, 5) for x in v] if isinstance(v, list) else round(v, 5)
        for k, v in found.items()
    }


def trainee(
    cell: Cell, plan: Plan, site: str, later: tuple[str, ...], seed: int, width: int
) -> Trainee:
    activation = cell.build_activation()
    dictionary = Dictionary(
        autoencoder(site, width, plan.latents, activation, decoder="normalised")
    )
    steps = round(plan.steps * (cell.local_share or 1)) * cell.times
    return Trainee(
        {"d": dictionary},
        settings(cell, plan, later),
        steps=steps,
        batch=plan.rows * (plan.context - 1),
        seed=1000 + seed,
        name=f"{cell.kind} {cell.activation} {cell.weight} x{cell.times}",
    )


def settings(cell: Cell, plan: Plan, later: tuple[str, ...]) -> TraineeSettings:
    local = cell.local_share > 0 or cell.kind == "random"
    objective = Local() if local else end_to_end(cell.kind.removeprefix("e2e+"), plan, later)
    penalty = Penalty(form=L1(), weight=cell.weight)
    return TraineeSettings(
        objective=objective,
        penalties=(penalty,) if cell.activation == "relu" else (),
        lr=plan.lr,
        schedule=Schedule(shape="cosine", warmup=0.05, decay_from=0.05, rest=0.1),
        dead=DeadLatents(auxk=None),
        # So that a short run does not spend itself on closing latents that start half open.
        start=Start(fires=0.05 if cell.activation == "relu" else None),
    )


def end_to_end(kind: str, plan: Plan, later: tuple[str, ...]) -> EndToEnd:
    """`e2e` is KL alone, `ds` half of it and the later sites beside it."""
    if kind == "e2e":
        return EndToEnd(downstream_sites=later)
    return EndToEnd(kl=0.5, downstream=plan.downstream, downstream_sites=later)


def fit(
    trainees: dict[Cell, Trainee],
    plan: Plan,
    subject: Subject,
    rows: torch.Tensor,
    site: str,
    later: tuple[str, ...],
    seed: int,
) -> dict[Cell, float]:
    """Train all cells, the same rows for all; processor seconds of each, the original's included
    as far as the cell needs it."""
    capture = (site, *later)
    source = TokenSource(
        subject, rows, rows=plan.rows, steps=plan.steps, capture=capture, seed=seed
    )
    begin = vectors(subject, rows[:32], site)
    for one in trainees.values():
        one.begin(VectorBatch({site: begin}))
    spent = dict.fromkeys(trainees, 0.0)
    together = {
        cell: one for cell, one in trainees.items() if cell.times == 1 and cell.kind != "random"
    }
    for step in range(plan.steps if together else 0):
        start = time.process_time()
        batch = source.at(step)
        original = time.process_time() - start
        here = VectorBatch({site: batch.original.sites[site][:, 1:].flatten(0, 1).float()})
        for cell, one in together.items():
            start = time.process_time()
            local = step < round(cell.local_share * plan.steps)
            if step and step == round(cell.local_share * plan.steps):
                one = together[cell] = tuned(one, cell, plan, later)
            one.step(here if local else batch)
            spent[cell] += time.process_time() - start + (0.0 if local else original)
        if step % 50 == 0:
            print(step, {t.name: round(spent[c], 1) for c, t in together.items()}, flush=True)
    longer = {cell: one for cell, one in trainees.items() if cell.times > 1}
    again = rows[: plan.local_rows].split(16) if longer else []
    held = [vectors(subject, group, site) for group in again]
    for cell, one in longer.items():
        start = time.process_time()
        fit_longer(one, cell, plan, subject, rows, torch.cat(held), later, seed)
        spent[cell] = time.process_time() - start
        print(cell, round(spent[cell], 1), flush=True)
    return spent


def tuned(one: Trainee, cell: Cell, plan: Plan, later: tuple[str, ...]) -> Trainee:
    """The same dictionary, to be trained end to end for the rest, with a schedule of its own."""
    steps = plan.steps * cell.times - one.steps
    objective = end_to_end(cell.kind.partition(" ")[0].removeprefix("local>"), plan, later)
    return Trainee(
        one.dictionaries, one.settings.model_copy(update={"objective": objective}),
        steps=steps, batch=one._batch, name=one.name,
    )  # fmt: skip


def fit_longer(
    one: Trainee,
    cell: Cell,
    plan: Plan,
    subject: Subject,
    rows: torch.Tensor,
    held: torch.Tensor,
    later: tuple[str, ...],
    seed: int,
) -> None:
    """A dictionary for more steps: local ones on vectors held in memory."""
    if cell.local_share:
        site = one.dictionaries["d"].spec.reads[0].site
        source = ArraySource({site: held}, batch=one._batch, steps=one.steps, seed=seed)
        for step in range(one.steps):
            one.step(source.at(step))
    if cell.local_share == 1:
        return
    rest = tuned(one, cell, plan, later) if cell.local_share else one
    text = TokenSource(
        subject, rows, rows=plan.rows, steps=rest.steps, capture=later, seed=seed + 500
    )
    for step in range(rest.steps):
        rest.step(text.at(step))
        if step % 250 == 0:
            print(cell, step, flush=True)


@torch.no_grad()
def vectors(subject: Subject, rows: torch.Tensor, site: str) -> torch.Tensor:
    found = subject.run(rows, capture=[site], logits=False).sites[site]
    return found[:, 1:].flatten(0, 1).float()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
