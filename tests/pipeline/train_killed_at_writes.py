"""Train in processes that die at one write after another; print what came of it.

As `killed_at_writes`, for dictionaries at a site.
"""

import json
import os
import sys
from pathlib import Path

from killed_at_writes import dying
from test_pipeline_families import reading
from tiny_subject import tiny_llama

from unweave.activations.window import HarvestSettings
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings


def main(text: str, folder: Path) -> None:
    subject = reading(tiny_llama(max_position_embeddings=16))
    settings = TrainSiteSettings(
        site=("blocks.0.mlp.out",), recipe=("batchtopk", "jumprelu-2025-01", "e2e-ds-braun"),
        k=(4,), latents=64, lr=1e-2, batch=96, text=text, tokens=1600, context=16, threads=1,
        log_every=4, checkpoint_seconds=0, harvest=HarvestSettings(window_tokens=512),
    )  # fmt: skip

    def run(out: Path, at_write: int, *, before: bool = True) -> int:
        child = os.fork()
        if child == 0:
            try:
                dying(at_write, before=before)
                train_site(subject, settings, out=out)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    whole, cut = folder / "whole", folder / "cut"
    codes = [run(whole, -1)]
    attempt = 0
    while codes[-1] in (0, 9) and not cut.exists() and attempt < 40:
        codes.append(run(cut, 3 + 4 * attempt, before=attempt % 2 == 0))
        attempt += 1
    codes.append(run(cut, -1))
    found = [json.loads((out / "run.json").read_text()) for out in (whole, cut)]
    for record in found:
        del record["code"]  # others may commit meanwhile
    left = sorted(path.name for path in folder.iterdir())
    print(json.dumps({"codes": codes, "equal": found[0] == found[1], "left": left}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
