"""Interchange of a compiled program's variables: what should follow is worked out, not guessed.

A variable at one place of a base row gets the value that it has there in a source row; the program
is interpreted with that value held, and its answer at the end of the row is what the network should
say. Only pairs in which that answer is not the base's own are kept, so an exchange that does
nothing scores nothing.
"""

import random

import torch

from unweave.dictionaries.baselines.linear import Coefficients
from unweave.errors import UserError
from unweave.validate.interventions.interchange import Counterfactual, Move, along
from unweave.validate.worlds.programs.compiled import Compiled
from unweave.validate.worlds.programs.interpreter import interpret
from unweave.validate.worlds.programs.layout import Variable

TRIES = 50
"""Draws for each wanted pair before it is given up."""


def variable_named(compiled: Compiled, name: str) -> Variable:
    """One of a program's variables.

    Raises:
        UserError: there is none of that name.
    """
    for variable in compiled.variables:
        if variable.name == name:
            return variable
    there = ", ".join(variable.name for variable in compiled.variables)
    raise UserError(f"{compiled.program.name} has no variable {name!r}; it has {there}")


def written_at(variable: Variable) -> str:
    """The first site of the stream that holds a variable, which nothing has read yet."""
    if variable.slot < 0:
        return "blocks.0.resid_pre"
    return f"blocks.{variable.slot // 2}.resid_{'post' if variable.slot % 2 else 'mid'}"


def exchange_variable(compiled: Compiled, variable: Variable) -> Move:
    """The exchange of one variable and of nothing else, in a network that is not compressed."""
    return along(compiled.directions[variable.span].T)


def true_latents(compiled: Compiled, site: str) -> Coefficients:
    """The dictionary that knows everything: a latent for each direction that a site holds."""
    directions = compiled.directions[compiled.directions_at(site)]
    return Coefficients(lambda x: x @ directions.T, directions)


def variable_pairs(
    compiled: Compiled, variable: Variable, pairs: int, *, length: int, seed: int
) -> list[Counterfactual]:
    """Random rows with a variable exchanged at a random place, to be answered at the end.

    A variable that the program needs at the end alone is exchanged only there, as elsewhere it
    changes no answer; rows that the language does not allow with the value held are left out.

    Raises:
        UserError: hardly any exchange changes the answer.
    """
    program, draw = compiled.program, random.Random(seed)
    rows = program.draw(2 * pairs * TRIES, length=length, seed=seed)
    found: list[Counterfactual] = []
    for base, source in rows.view(-1, 2, rows.shape[1]):
        place = draw.randrange(length)
        words, others = program.decode(torch.stack([base, source]))
        given = program.values(others, variable.operator)[variable.operator][place]
        own, theirs = program.answers(torch.stack([base, source]))[:, -1].tolist()
        try:
            values = interpret(
                program.output, words=words, causal=program.causal,
                held={(variable.operator, place): given},
            )  # fmt: skip
        except UserError:
            continue
        expected = program.answer_ids[values[program.output][-1]]
        if expected != own:
            ids = tuple(base.tolist()), tuple(source.tolist())
            found.append(Counterfactual(*ids, place + 1, place + 1, own, theirs, expected))
        if len(found) == pairs:
            return found
    raise UserError(
        f"Exchanging {variable.name} changes the answer of {program.name} in {len(found)} of"
        f" {len(rows) // 2} pairs of rows, so there are no {pairs} pairs to be had"
    )
