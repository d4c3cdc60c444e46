"""Take a trained network apart into parts a person can read, and check what is said of them.

The names below are what most work needs; each is loaded when it is first used, so that
`import unweave` costs nothing. Everything else lies in the rooms, in the order in which data flows:
subject, activations, dictionaries, training, decompile, describe, validate, report, pipeline.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from unweave._version import __version__

if TYPE_CHECKING:
    from unweave.activations.window import Harvester, HarvestSettings
    from unweave.activations.workers import Workers
    from unweave.artifact.folder import Artifact, open_artifact
    from unweave.decompile.network import DecompiledNetwork
    from unweave.dictionaries.dictionary import Dictionary
    from unweave.dictionaries.dictionary_files import load_dictionary, save_dictionary
    from unweave.dictionaries.dictionary_spec import DictionarySpec, autoencoder
    from unweave.dictionaries.part import Part
    from unweave.dictionaries.spec import PartSpec
    from unweave.errors import UserError
    from unweave.pipeline.decompile import decompile
    from unweave.pipeline.fitting import part_specs
    from unweave.pipeline.settings import DecompileSettings
    from unweave.pipeline.train import train_site
    from unweave.pipeline.train_settings import TrainSiteSettings
    from unweave.subject.loading import load_subject, wrap_module
    from unweave.subject.rows import token_rows
    from unweave.training.fit import fit_parts
    from unweave.training.joint import JointSettings, tune_jointly
    from unweave.training.local import LocalSettings
    from unweave.training.trainee import Trainee, TraineeSettings
    from unweave.training.trainer import train as train_dictionaries
    from unweave.validate.splice import splice_scores

_WHERE = {
    "Artifact": "artifact.folder",
    "DecompileSettings": "pipeline.settings",
    "DecompiledNetwork": "decompile.network",
    "Dictionary": "dictionaries.dictionary",
    "DictionarySpec": "dictionaries.dictionary_spec",
    "HarvestSettings": "activations.window",
    "Harvester": "activations.window",
    "JointSettings": "training.joint",
    "LocalSettings": "training.local",
    "Part": "dictionaries.part",
    "PartSpec": "dictionaries.spec",
    "TrainSiteSettings": "pipeline.train_settings",
    "Trainee": "training.trainee",
    "TraineeSettings": "training.trainee",
    "UserError": "errors",
    "Workers": "activations.workers",
    "autoencoder": "dictionaries.dictionary_spec",
    "decompile": "pipeline.decompile",
    "fit_parts": "training.fit",
    "load_dictionary": "dictionaries.dictionary_files",
    "load_subject": "subject.loading",
    "open_artifact": "artifact.folder",
    "part_specs": "pipeline.fitting",
    "save_dictionary": "dictionaries.dictionary_files",
    "splice_scores": "validate.splice",
    "token_rows": "subject.rows",
    "train_dictionaries": "training.trainer:train",
    "train_site": "pipeline.train",
    "tune_jointly": "training.joint",
    "wrap_module": "subject.loading",
}

__all__ = [
    "Artifact",
    "DecompileSettings",
    "DecompiledNetwork",
    "Dictionary",
    "DictionarySpec",
    "HarvestSettings",
    "Harvester",
    "JointSettings",
    "LocalSettings",
    "Part",
    "PartSpec",
    "TrainSiteSettings",
    "Trainee",
    "TraineeSettings",
    "UserError",
    "Workers",
    "__version__",
    "autoencoder",
    "decompile",
    "fit_parts",
    "load_dictionary",
    "load_subject",
    "open_artifact",
    "part_specs",
    "save_dictionary",
    "splice_scores",
    "token_rows",
    "train_dictionaries",
    "train_site",
    "tune_jointly",
    "wrap_module",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'unweave' has no attribute {name!r}")
    room, _, there = _WHERE[name].partition(":")
    return getattr(import_module(f"unweave.{room}"), there or name)


def __dir__() -> list[str]:
    return sorted(__all__)
