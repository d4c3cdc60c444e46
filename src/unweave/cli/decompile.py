"""`unweave decompile`: the main job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unweave.cli.counts import Count

if TYPE_CHECKING:
    from unweave.pipeline.settings import DecompileSettings


def decompile(
    subject: str,
    /,
    *,
    out: Path,
    text: str | None = None,
    tokens: Count | None = None,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    config: Annotated[Path | None, Parameter(name="--config")] = None,
) -> None:
    """Take a language model apart, all stages, into an artifact; resumes if interrupted.

    Parameters
    ----------
    subject
        A name that `unweave subjects` lists, a Hugging Face folder, a GGUF file or a hub id.
    out
        The artifact's folder: new, finished earlier, or left by an interrupted run.
    text
        A name that `unweave texts` lists, a file, a folder or hub:NAME of a data set.
    tokens
        Tokens to train on, such as 400k or 2M.
    seed
        The seed of every random choice.
    device
        Where to run and train: cpu, cuda or cuda:1 (default: cpu).
    threads
        Processor threads to use.
    config
        A TOML file of settings; the flags above win over it.
    """
    from unweave.cli.summary import show_summary
    from unweave.pipeline import decompile as run
    from unweave.progress import watching
    from unweave.subject import keep_freed_memory

    keep_freed_memory()
    flags = {
        "text": text, "tokens": tokens, "seed": seed, "device": device, "threads": threads,
    }  # fmt: skip
    settings = resolve({name: value for name, value in flags.items() if value is not None}, config)
    folder = run(subject, settings=settings, out=out, progress=watching())
    show_summary(folder)


def resolve(flags: dict[str, str | int], config: Path | None) -> "DecompileSettings":
    """The settings of a run: what the file says, flags over it, defaults for the rest."""
    from unweave.cli.config import configured
    from unweave.pipeline.settings import DecompileSettings

    return configured(DecompileSettings, flags, config)
