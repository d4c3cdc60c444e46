"""`unweave generate`: a prompt, continued by the original and by its decompilation."""

from pathlib import Path


def generate(
    artifact: Path,
    prompt: str,
    /,
    *,
    new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    subject: str | None = None,
    explicit: bool = False,
    threads: int = 1,
) -> None:
    """Continue a prompt with the original network and with its decompilation, side by side.

    Parameters
    ----------
    artifact
        The artifact: what decompile wrote.
    prompt
        The beginning of the text.
    new_tokens
        Tokens written at most.
    temperature
        0 takes the likeliest token each time; above 0 all draw with the same chance.
    seed
        The seed of that chance.
    subject
        The network, where the artifact's own name for it is no longer where it is.
    explicit
        Run the decompiled network on virtual weights alone, too.
    threads
        Processor threads to use; for small networks one is faster than two.
    """
    import torch

    from unweave.cli.printable import printable
    from unweave.cli.validation import validated
    from unweave.pipeline.continuing import ContinueSettings, continue_prompt

    torch.set_num_threads(threads)
    given: dict[str, object] = {
        "new_tokens": new_tokens,
        "temperature": temperature,
        "seed": seed,
        "subject": subject,
        "explicit": explicit,
    }
    found = continue_prompt(artifact, prompt, validated(ContinueSettings, given))
    for name, words in found._asdict().items():
        if words is not None:
            lines = (f"{prompt}{words}").split("\n")
            print(f"{name:<10}  " + "\n            ".join(printable(line) for line in lines))
