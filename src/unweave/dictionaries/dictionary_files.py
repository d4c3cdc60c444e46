"""A dictionary on disk: `spec.json` and `weights.safetensors`, under the field's own names."""

from pathlib import Path

import torch

from unweave.artifact.atomic import write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec

_ROOMS = ("encoder.", "activation.")


def save_dictionary(dictionary: Dictionary, folder: Path) -> None:
    """Write `spec.json` and `weights.safetensors` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {_plain(n): t.detach().contiguous() for n, t in dictionary.state_dict().items()}
    save_tensors(folder / "weights.safetensors", state)
    write_json(folder / "spec.json", dictionary.spec.model_dump(mode="json"))


def load_dictionary(folder: Path) -> Dictionary:
    """Read what `save_dictionary` wrote.

    Raises:
        UserError: a missing file, a spec that is none, a tensor missing, misshapen or not finite.
    """
    spec = spec_in(folder, DictionarySpec, "one dictionary")
    dictionary = Dictionary(spec)
    expect = {
        _plain(name): TensorForm(tuple(tensor.shape), torch.float32)
        for name, tensor in dictionary.state_dict().items()
    }
    tensors = load_tensors(folder / "weights.safetensors", expect)
    names = {_plain(name): name for name in dictionary.state_dict()}
    dictionary.load_state_dict({names[name]: tensor for name, tensor in tensors.items()})
    return dictionary.eval()


def _plain(name: str) -> str:
    for room in _ROOMS:
        name = name.removeprefix(room)
    return name
