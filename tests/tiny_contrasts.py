"""Random pairs of prompts for tiny random subjects."""

import torch
from tiny_subject import START

from unweave.circuits.contrasts import Contrast


def contrasts(count: int, vocab: int, *, longest: int = 8, seed: int = 0) -> list[Contrast]:
    """Pairs that differ at two places; every third is a token shorter, every other third two."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(size: int) -> list[int]:
        return torch.randint(3, vocab, (size,), generator=generator).tolist()

    found = []
    for at in range(count):
        clean = [START, *drawn(longest - 1 - at % 3)]
        corrupt = list(clean)
        corrupt[2], corrupt[4] = drawn(2)
        found.append(Contrast(tuple(clean), tuple(corrupt), (5,), (6, 7)))
    return found
