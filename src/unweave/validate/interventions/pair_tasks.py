"""Variables that are exchanged between prompts, each at the places where it may be read.

    country_capital   which country is asked after; at its name, and at the prompt's end
    ioi_name          who else was there ("Ann and Ben went home. Ben gave a book to"); at the only
                      mention of the name, and at the end
    ioi_position      whether the one who is not repeated came first or second, names apart; at the
                      second mention of the other, and at the end
    animal_diet       which animal eats; only where the public file lies in the folder

The source of `ioi_name` has the same order and other names, that of `ioi_position` other names too
but the other order: exchanging the position alone must give the base's own repeated name.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from unweave.validate.interventions.pairs import Pair, from_contrasts, read_mapping, read_pairs
from unweave.validate.protocols.contrast_data import FILES, read_prompts


class PairTask(NamedTuple):
    """A variable at one place."""

    name: str
    """What it is called in results, such as `ioi_name.end`."""
    pairs: tuple[Pair, ...]
    """More than are used: those that the subject cannot answer are left out."""


CAPITAL = (
    "The capital of {} is the city of",
    "Q: What is the capital of {}? A: The capital is",
)
"""Prompts about capitals."""

_NAMES = (
    "Adam Alice Amy Andrew Anna Anthony Ben Brian Carl Charles Chris Claire Daniel David Diana"
    " Edward Emily Emma Eric Frank George Grace Helen Henry Jack James Jane Jason John Julia Karen"
    " Kate Kevin Laura Linda Lisa Lucy Mark Martin Mary Michael Nick Oliver Paul Peter Rachel"
    " Robert Rose Ruth Sam Sarah Simon Steven Susan Thomas Tom Victoria William"
)
NAMES = tuple(_NAMES.split())
"""People, each a word of its own."""
PLACES = ("garden", "hospital", "house", "office", "park", "school", "shop", "station", "store")
THINGS = ("bag", "ball", "book", "drink", "key", "letter", "present", "ring", "snack", "ticket")

IOI = (
    "Then, {A} and {B} went to the {place}. {S} gave a {thing} to",
    "When {A} and {B} got a {thing} at the {place}, {S} decided to give it to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S} gave a {thing} to",
    "After {A} and {B} went to the {place}, {S} gave a {thing} to",
    "While {A} and {B} were working at the {place}, {S} gave a {thing} to",
)
"""Two people, of whom one, S, is named again."""


def our_tasks(count: int, *, seed: int) -> list[PairTask]:
    """Capitals and indirect objects, `count` pairs of each."""
    path = Path(__file__).parent / "country_capitals.json"
    return [
        *capitals(json.loads(path.read_text("utf-8")), count, seed=seed),
        *ioi_names(count, seed=seed),
        *ioi_positions(count, seed=seed),
    ]


def tasks_in(folder: Path, count: int, *, seed: int) -> list[PairTask]:
    """Those of the files in a folder or one of its folders: one's own pairs, and public sets.

    Raises:
        UserError: a file that is not of its form.
    """
    found = [
        PairTask(path.name.removesuffix("_pairs.jsonl"), tuple(read_pairs(path)))
        for path in _files(folder, "*_pairs.jsonl")
    ]
    for path in _files(folder, "*country-capital.json")[:1]:
        found += capitals(read_mapping(path), count, seed=seed)
    for path in _files(folder, FILES["animal_diet"])[:1]:
        found += _everywhere("animal_diet", "animal", from_contrasts(read_prompts(path)))
    return found


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])


def _everywhere(name: str, place: str, pairs: list[Pair]) -> list[PairTask]:
    """The same pairs where they say, and at the end."""
    end = [pair.model_copy(update={"base_at": "", "source_at": ""}) for pair in pairs]
    return [PairTask(f"{name}.{place}", tuple(pairs)), PairTask(f"{name}.end", tuple(end))]


def capitals(facts: Mapping[str, str], count: int, *, seed: int) -> list[PairTask]:
    """Two countries in the same prompt."""
    draw, pairs = random.Random(f"capitals {seed}"), []
    for _ in range(count):
        base, source = draw.sample(sorted(facts), 2)
        prompt = draw.choice(CAPITAL)
        pairs.append(
            Pair(
                base=prompt.format(base), source=prompt.format(source),
                base_answer=f" {facts[base]}", source_answer=f" {facts[source]}",
                expected=f" {facts[source]}", base_at=base, source_at=source,
            )
        )  # fmt: skip
    return _everywhere("country_capital", "country", pairs)


def ioi_names(count: int, *, seed: int) -> list[PairTask]:
    """Base and source in the same words and order, with other names."""
    draw = random.Random(f"names {seed}")
    pairs = []
    for _ in range(count):
        who, how = draw.sample(NAMES, 4), _scene(draw)
        first = draw.random() < 0.5
        base, source = _told(how, who[0], who[1], first), _told(how, who[2], who[3], first)
        pairs.append(
            Pair(
                base=base, source=source, base_answer=f" {who[0]}", source_answer=f" {who[2]}",
                expected=f" {who[2]}", base_at=who[0], source_at=who[2],
            )
        )  # fmt: skip
    return _everywhere("ioi_name", "mention", pairs)


def ioi_positions(count: int, *, seed: int) -> list[PairTask]:
    """Base and source in the same words, with other names and in the other order."""
    draw = random.Random(f"positions {seed}")
    pairs = []
    for _ in range(count):
        who, how = draw.sample(NAMES, 4), _scene(draw)
        first = draw.random() < 0.5
        base, source = _told(how, who[0], who[1], first), _told(how, who[2], who[3], not first)
        pairs.append(
            Pair(
                base=base, source=source, base_answer=f" {who[0]}", source_answer=f" {who[2]}",
                expected=f" {who[1]}", base_at=who[1], source_at=who[3],
            )
        )  # fmt: skip
    return _everywhere("ioi_position", "repeated", pairs)


def _scene(draw: random.Random) -> dict[str, str]:
    return {
        "prompt": draw.choice(IOI), "place": draw.choice(PLACES), "thing": draw.choice(THINGS),
    }  # fmt: skip


def _told(how: Mapping[str, str], other: str, repeated: str, first: bool) -> str:
    """`first`: whether the one who is named once comes first."""
    a, b = (other, repeated) if first else (repeated, other)
    return how["prompt"].format(A=a, B=b, S=repeated, place=how["place"], thing=how["thing"])
