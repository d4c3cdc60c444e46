"""`unweave convert`: a dictionary from one library's files into another's."""

from pathlib import Path

from unweave.errors import UserError

SAME = 1e-4
"""Largest difference, in shares of the outputs' size, that rounding explains."""


def convert(source: Path, target: Path, /, *, to: str, seed: int = 0) -> None:
    """Write dictionaries in another library's format, and say how far the copy is from them.

    Known formats: saelens, sparsify, dictionary_learning, gemma_scope, circuit_tracer, unweave. The
    source's format is told by its files; no pickle is run.

    Parameters
    ----------
    source
        A folder with a dictionary, or with several below it.
    target
        A new folder.
    to
        The format to write.
    seed
        Of the random vectors that both are compared on.
    """
    from unweave.cli.printable import printable
    from unweave.dictionaries.formats.conversion import convert as run

    done = run(source, target, to, seed=seed)
    for part in done:
        print(printable(f"{part.name}: {part.about}"))
        print(
            f"  largest difference on random vectors: latents {part.latents:.1e}, outputs "
            f"{part.output:.1e} (their size: {part.size:.2g})"
        )
    far = [part.name for part in done if not part.output <= SAME * max(part.size, 1e-12)]
    if far:
        raise UserError(
            f"the copy in {target} does not do what its original does: {', '.join(far[:5])}; do "
            "not use it"
        )
    count = "one dictionary" if len(done) == 1 else f"{len(done)} dictionaries"
    print(printable(f"{count} written to {target} as {to}"))
