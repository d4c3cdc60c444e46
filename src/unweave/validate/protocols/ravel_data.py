"""Entities with attributes for RAVEL (Huang et al. 2024, 2402.17700), and what a subject knows.

Ships with 196 cities of ours (country, continent, language); reads the public sets too, which
are, for each class of entities, the files

    ravel_CLASS_entity_attributes.json       {entity: {attribute: label}}
    ravel_CLASS_attribute_to_prompts.json    {attribute: [template with one %s]}
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError

from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.prompts import prompt_rows
from unweave.validate.protocols.asking import answers

PUBLIC = "hub:adamkarvonen/ravel_prompts"
"""Where SAEBench takes its sets from."""


class Entities(NamedTuple):
    """A class of entities."""

    name: str
    """`city`, `nobel_prize_winner` ..."""
    attributes: Mapping[str, Mapping[str, str]]
    """Label by entity and attribute."""
    templates: Mapping[str, Sequence[str]]
    """By attribute; `%s` is where the entity stands."""

    def only(self, attributes: Sequence[str]) -> "Entities":
        """With templates of these attributes alone, as far as there are any."""
        kept = {name: self.templates[name] for name in attributes if name in self.templates}
        return self._replace(templates=kept)


class Prompt(NamedTuple):
    """One prompt that the subject answers correctly."""

    entity: str
    attribute: str
    label: str
    row: tuple[int, ...]
    """Token ids, start token included."""
    position: int
    """Of the entity's last token."""
    answer: int
    """The token that the subject says next."""


class Asked(NamedTuple):
    """What came of asking everything."""

    prompts: list[Prompt]
    """Those answered correctly."""
    asked: dict[str, int]
    """Prompts by attribute."""
    right: dict[str, int]
    """How many of them are answered correctly."""


class AskSettings(BaseModel):
    """Settings of the asking; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    top_entities: PositiveInt = 500
    """The entities of most correct answers are kept."""
    batch: PositiveInt = 32
    """Prompts run together, without influence on the numbers."""


_LABELS = TypeAdapter(dict[str, dict[str, str]])
_TEMPLATES = TypeAdapter(dict[str, list[str]])


def our_cities() -> Entities:
    """The cities that ship with unweave."""
    found = json.loads((Path(__file__).parent / "ravel_cities.json").read_text("utf-8"))
    return Entities("city", found["entities"], found["templates"])


def load_entities(folder: Path, name: str) -> Entities:
    """A class of entities in the public form.

    Raises:
        UserError: a file is missing or is not of that form.
    """
    return Entities(
        name,
        _read(folder / f"ravel_{name}_entity_attributes.json", _LABELS),
        _read(folder / f"ravel_{name}_attribute_to_prompts.json", _TEMPLATES),
    )


def load_all_entities(folder: Path) -> list[Entities]:
    """Every class of entities in a folder, by name."""
    ending = "_entity_attributes.json"
    names = sorted(p.name[len("ravel_") : -len(ending)] for p in folder.glob(f"ravel_*{ending}"))
    if not names:
        raise UserError(f"{folder} has no RAVEL set: it needs ravel_CLASS{ending} and templates")
    return [load_entities(folder, name) for name in names]


def fetch_entities(name: str, source: str = PUBLIC) -> Entities:
    """A class of entities from the hub's data set.

    Raises:
        UserError: the hub did not give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        for kind in ("entity_attributes", "attribute_to_prompts"):
            path = hf_hub_download(
                source.removeprefix("hub:"), f"ravel_{name}_{kind}.json", repo_type="dataset"
            )
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the hub did not give the RAVEL set {name}: {reason}") from error
    return load_entities(Path(path).parent, name)


def _read(path: Path, form: TypeAdapter) -> Any:
    if not path.is_file():
        raise UserError(f"No file {path}: a RAVEL set has labels and templates, in a file each")
    try:
        return form.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is no RAVEL file: {first['msg']} at {first['loc']}") from error


def ask_entities(subject: Subject, entities: Entities, settings: AskSettings) -> Asked:
    """Put every template with every entity to the subject.

    An answer is right if the token said next is the first of the label's, so that what is scored
    later is what was asked. Templates that do not hold one `%s`, and prompts in which the end of
    the entity cannot be told from what follows, are left out.
    """
    made = all_prompts(subject, entities)
    said = [0] * len(made)
    for which, logits in answers(subject, [list(p.row) for p in made], batch=settings.batch):
        for at, token in zip(which.tolist(), logits.argmax(1).tolist(), strict=True):
            said[at] = token
    right = [p for p, token in zip(made, said, strict=True) if token == p.answer]
    known = Counter(p.entity for p in right)
    top = {entity for entity, _ in known.most_common(settings.top_entities)}
    return Asked(
        [p for p in right if p.entity in top],
        dict(Counter(p.attribute for p in made)),
        {name: sum(p.attribute == name for p in right) for name in entities.templates},
    )


def all_prompts(subject: Subject, entities: Entities) -> list[Prompt]:
    """Every template with every entity, whatever the subject says to it."""
    assert subject.tokenizer is not None
    wanted = [
        (entity, attribute, labels[attribute], template)
        for entity, labels in entities.attributes.items()
        for attribute, templates in entities.templates.items()
        for template in templates
        if template.count("%s") == 1 and labels.get(attribute)
    ]
    encode = subject.tokenizer.encode_many
    rows = prompt_rows(subject, [template.replace("%s", e) for e, _, _, template in wanted])
    rests = encode([template.split("%s")[1] for _, _, _, template in wanted])
    labels = encode([" " + label for _, _, label, _ in wanted])
    made = []
    for (entity, attribute, label, _), row, rest, answer in zip(
        wanted, rows, rests, labels, strict=True
    ):
        if rest and row[-len(rest) :] == rest:
            position = len(row) - len(rest) - 1
            made.append(Prompt(entity, attribute, label, tuple(row), position, answer[0]))
    return made
