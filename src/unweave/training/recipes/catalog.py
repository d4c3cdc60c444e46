"""The recipes by name."""

import difflib
from collections.abc import Callable
from inspect import getdoc
from typing import NamedTuple

from unweave.errors import UserError
from unweave.training.recipes import between, choosing, penalised
from unweave.training.recipes.ask import Ask, Built

Recipe = Callable[[Ask], Built]

RECIPES: dict[str, Recipe] = {
    "anthropic-2024-04": penalised.anthropic_2024_04,
    "jumprelu-2024": penalised.jumprelu_2024,
    "jumprelu-2025-01": penalised.jumprelu_2025_01,
    "topk-gao": choosing.topk_gao,
    "topk-short": choosing.topk_short,
    "batchtopk": choosing.batchtopk,
    "matryoshka": choosing.matryoshka,
    "gated": penalised.gated,
    "l1-bricken": penalised.l1_bricken,
    "p-anneal": penalised.p_anneal,
    "e2e-braun": between.e2e_braun,
    "e2e-ds-braun": between.e2e_ds_braun,
    "transcoder": between.transcoder,
    "skip-transcoder": between.skip_transcoder,
    "clt": between.clt,
    "mp-sae": choosing.mp_sae,
    "switch": choosing.switch,
    "kron": choosing.kron,
}
"""Every recipe by the name a person gives."""


class Listed(NamedTuple):
    """One line of the list."""

    name: str
    """What to ask for it by."""
    about: str
    """What it is, and its source."""


def list_recipes() -> list[Listed]:
    """Every recipe with the first line of its docstring, which states the source."""
    return [Listed(name, (getdoc(made) or "").splitlines()[0]) for name, made in RECIPES.items()]


def recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        UserError: there is none of that name; the nearest are named.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4) or list(RECIPES)
        raise UserError(f"There is no recipe {name}; nearest: {', '.join(near)}")
    return RECIPES[name]
