"""Varied first words for sampled stories.

Left alone, the stories model starts nearly every story with the same little girl in the same
park. These openings, all written for this project, spread the stories over more names,
animals, places and things, so that a model trained on them meets more of the language.
"""

from __future__ import annotations

import torch


def words(text: str) -> tuple[str, ...]:
    """A word list written as one string."""
    return tuple(text.split())


NAMES = words(
    "Lily Ben Tom Mia Anna Sam Max Lucy Sara Tim Jack Amy Bob Mary John Jane Sue Emma Leo Jill "
    "Fred Joe Kim Mark Nina Peter Rose Billy Daisy Molly Jimmy Sally Timmy Spot Bella Lola Fluffy "
    "Ella Dan Kate Nick Grace Bobby Johnny Susie Annie Ava Jake Zoe Henry Alice Charlie Ruby Oscar"
)
ANIMALS = words(
    "dog cat bird bear rabbit fish fox frog duck mouse lion elephant monkey turtle bunny squirrel "
    "bee butterfly horse cow pig sheep goat owl snake dragon tiger deer wolf spider whale dolphin"
)
KINDS = words(
    "little big old young brave shy happy sad clever silly kind lazy curious tiny hungry lonely "
    "grumpy proud careful strong gentle busy quiet naughty rich poor friendly fat wise playful"
)
PEOPLE = words(
    "boy girl man woman king queen princess prince farmer baker doctor teacher sailor witch "
    "grandma grandpa family child fisherman policeman fairy knight pirate cook painter nurse"
)
THINGS = words(
    "ball car boat tree flower box book hat kite cake train doll house rock star key bell drum "
    "truck spoon chair lamp balloon apple cookie bicycle basket letter mirror ring map ladder"
)
PLACES = words(
    "park forest garden house farm beach river school kitchen zoo lake mountain store village "
    "castle sea yard field city pond hill bedroom market library cave ship bakery bridge"
)
FORMS = (
    "Once upon a time, there was a {kind} {person} named {name}.",
    "Once upon a time, there was a {kind} {animal} who lived in the {place}.",
    "Once upon a time, in a {kind} {place}, there lived a {animal} named {name}.",
    "Once upon a time, a {animal} and a {animal2} were good friends.",
    "Once upon a time, there was a {kind} {thing}.",
    "One day, a {kind} {person} found a {thing} in the {place}.",
    "One day, {name} and {name2} went to the {place}.",
    "One day, {name} saw a {kind} {animal}.",
    "One day, the {animal} was very {kind}.",
    "One morning, {name} woke up and",
    "One night, a {kind} {animal}",
    "{name} was a {kind} {animal}. He lived",
    "{name} was a {kind} {person}. She",
    "{name} and {name2} were",
    "{name} and {name2} like to play with the {thing}.",
    "{name} had a {thing}. It was very",
    "{name} wanted a {thing}.",
    "{name} loved to",
    "There was a {kind} {person} who",
    "A {kind} {animal} lived near the {place}.",
    "A {person} and a {animal} walked to the {place}.",
    "The {person} had a {kind} {animal}.",
    "In the {place}, there was a {thing}.",
    "{name}'s mom",
    "{name}'s dad said,",
    '"Look at the {animal}!" said {name}.',
)
WORDS = {
    "name": NAMES,
    "name2": NAMES,
    "animal": ANIMALS,
    "animal2": ANIMALS,
    "kind": KINDS,
    "person": PEOPLE,
    "thing": THINGS,
    "place": PLACES,
}


def pick(g: torch.Generator, items: tuple[str, ...]) -> str:
    """One item, uniformly."""
    return items[int(torch.randint(len(items), (1,), generator=g))]


def opening(g: torch.Generator, share: float) -> str:
    """An opening, or with probability 1 - share none at all."""
    if float(torch.rand(1, generator=g)) >= share:
        return ""
    chosen = {slot: pick(g, items) for slot, items in WORDS.items()}
    text = pick(g, FORMS).format(**chosen)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text
