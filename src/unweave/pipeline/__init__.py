"""The main job: every stage once, in order."""

from unweave.pipeline.decompile import decompile
from unweave.pipeline.settings import DecompileSettings

__all__ = ["DecompileSettings", "decompile"]
