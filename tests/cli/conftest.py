"""A sealed tiny artifact for every test that wants one."""

from tiny_artifact import artifact, built_artifact, provenance

__all__ = ["artifact", "built_artifact", "provenance"]
