"""Dictionaries of other libraries, read and written; one file a format, nothing unpickled.

| format | files of one dictionary |
|---|---|
| saelens | cfg.json, sae_weights.safetensors |
| sparsify | cfg.json, sae.safetensors |
| dictionary_learning | config.json, ae.pt |
| gemma_scope | params.npz, or params.safetensors and config.json |
| circuit_tracer | config.yaml and files for every layer |
| unweave | spec.json, weights.safetensors |
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from unweave.artifact.atomic import new_folder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.formats import (
    circuit_tracer,
    circuit_tracer_writing,
    dictionary_learning,
    gemma_scope,
    part_folder,
    saelens,
    sparsify,
)
from unweave.errors import UserError

_OURS = "spec.json"
_READ: dict[str, Callable[[Path, str], Dictionary]] = {
    saelens.MARK: saelens.read,
    sparsify.MARK: sparsify.read,
    dictionary_learning.MARK: dictionary_learning.read,
    gemma_scope.MARK: gemma_scope.read,
    gemma_scope.MARK_2: gemma_scope.read,
    _OURS: part_folder.read,
}
"""By the file that tells a format."""
_WRITE: dict[str, Callable[[Dictionary, Path], None]] = {
    "saelens": saelens.write,
    "sparsify": sparsify.write,
    "dictionary_learning": dictionary_learning.write,
    "gemma_scope": gemma_scope.write,
    "unweave": save_dictionary,
}
FORMATS = (*_WRITE, "circuit_tracer")
"""Names of the formats."""


def load_foreign(path: Path) -> dict[str, Dictionary]:
    """The dictionaries in a folder of any known format, ours and an artifact's parts among them.

    A folder that holds one gives one, named after the folder. Otherwise all folders below are
    searched and the names are paths from here; a circuit-tracer set gives `L0.mlp`, `L1.mlp`, ...
    A file stands for its folder. Where a format does not say which site a dictionary belongs to,
    its site is `unknown`.

    Raises:
        UserError: nothing known there, a file missing or damaged, a kind that cannot be
            reproduced, a pickle that asks for anything but tensors.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"there is no {path}: give the folder of a dictionary")
    if (folder / circuit_tracer.MARK).is_file():
        return circuit_tracer.read(folder, folder.name)
    here = _mark_in(folder)
    if here is not None:
        name = folder.absolute().name
        return {name: _READ[here](folder, name)}
    found = {}
    for below in sorted(p for p in folder.rglob("*") if p.is_dir()):
        mark = _mark_in(below)
        if mark is not None:
            name = below.relative_to(folder).as_posix()
            found[name] = _READ[mark](below, name)
    if not found:
        raise UserError(
            f"no dictionary in {path} or below: known by their files are "
            f"{', '.join([*_READ, circuit_tracer.MARK])}"
        )
    return found


def save_foreign(
    dictionaries: Dictionary | Mapping[str, Dictionary], path: Path, format_name: str
) -> None:
    """Write one dictionary into the folder `path`, or several into folders below by their names.

    Whole or not at all. A circuit-tracer set is one folder for all its layers.

    Raises:
        UserError: an unknown format, a dictionary that it cannot hold, something there already.
    """
    if format_name not in FORMATS:
        raise UserError(f"there is no format {format_name}: known are {', '.join(FORMATS)}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already: name a new folder")
    several = isinstance(dictionaries, Mapping)
    parts = dictionaries if isinstance(dictionaries, Mapping) else {path.name: dictionaries}
    with new_folder(path) as folder:
        if format_name == "circuit_tracer":
            circuit_tracer_writing.write(parts, folder)
            return
        for name, dictionary in parts.items():
            place = folder / name if several else folder
            place.mkdir(parents=True, exist_ok=True)
            _WRITE[format_name](dictionary, place)


def _mark_in(folder: Path) -> str | None:
    return next((mark for mark in _READ if (folder / mark).is_file()), None)
