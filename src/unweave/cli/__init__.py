"""The command line: one file a command; whatever is heavy is imported inside the commands."""

from unweave.cli.app import main

__all__ = ["main"]
