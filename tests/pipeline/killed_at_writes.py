"""Do a tiny job in processes that die at one write after another; print what came of it.

A process of its own, so that it can fork: `os._exit` in the child is as sudden as a kill, and falls
exactly on a write. Odd attempts die with the file written but not yet in place, even ones just
after. What is printed is one JSON object.
"""

import json
import os
import sys
from pathlib import Path

from test_pipeline_families import TINY, reading
from tiny_subject import tiny_llama

from unweave.artifact.manifest import read_manifest
from unweave.pipeline import decompile


def dying(at_write: int, *, before: bool) -> None:
    """Make this process die at the n-th file or folder that it puts in its place."""
    left = at_write

    def wrap(move):
        def moved(*args, **rest):
            nonlocal left
            left -= 1
            if left == 0 and before:
                os._exit(9)
            move(*args, **rest)
            if left == 0:
                os._exit(9)

        return moved

    os.replace, os.rename = wrap(os.replace), wrap(os.rename)


def main(text: str, folder: Path) -> None:
    subject = reading(tiny_llama())
    settings = TINY.model_copy(update={"text": text, "checkpoint_seconds": 0.0})

    def run(out: Path, at_write: int, *, before: bool = True) -> int:
        child = os.fork()
        if child == 0:
            try:
                dying(at_write, before=before)
                decompile(subject, settings=settings, out=out)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    whole, cut = folder / "whole", folder / "cut"
    codes = [run(whole, -1)]
    attempt = 0
    while codes[-1] in (0, 9) and not cut.exists() and attempt < 60:
        codes.append(run(cut, 5 + 3 * attempt, before=attempt % 2 == 0))
        attempt += 1
    codes.append(run(cut, -1))  # a death right after the last write leaves something to clear
    files = [
        {name: file.sha256 for name, file in read_manifest(out).files.items()}
        for out in (whole, cut)
    ]
    print(
        json.dumps(
            {
                "codes": codes,
                "identities": [read_manifest(out).identity for out in (whole, cut)],
                "differing": sorted(n for n in files[0] if files[0][n] != files[1].get(n)),
                "left": sorted(path.name for path in folder.iterdir()),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
