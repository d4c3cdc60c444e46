"""The dictionary that must come out bad: random directions with everything else the same.

As many latents, as many of them active in each row, encoder and decoder rows of the same norms;
what it reads and what it writes point the same way at random, so that it is no straw man. Its
decoder rows have norm one and its encoder's the product of both norms: which latents are chosen
depends on the units that they are counted in, and a control must not.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.validate.placed import Placed
from unweave.validate.protocols.pooling import tokenised
from unweave.validate.protocols.protocol import Bench

APART = 7_919_000
"""Added to seeds: a dictionary trained from the same seed began with these very directions else."""


@torch.no_grad()
def random_twin(
    one: Placed,
    x: Float[Tensor, "rows d_in"],
    y: Float[Tensor, "rows d_out"],
    *,
    seed: int,
) -> Placed:
    """A random dictionary of the sizes, the number of latents and the L0 of `one` at its place.

    `x` and `y` are vectors of what it reads and writes: a few hundred give the L0 and the offset.
    """
    coder, generator = one.coder, torch.Generator().manual_seed(APART + seed)
    directions, code = coder.directions().float(), coder.encode(x)
    k = max(1, min(round(code.l0()), coder.n_latents))
    same = one.autoencodes and x.shape[1] == directions.shape[1]
    written = _rows(directions.shape, generator)
    read = written if same else _rows((coder.n_latents, x.shape[1]), generator)
    reads, writes = (_ports(*side) for side in ((one.reads, x), (one.writes, y)))
    if same:
        writes = reads
    spec = DictionarySpec(
        name=f"{one.name}-random", reads=reads, writes=writes, n_latents=coder.n_latents,
        activation=TopK(k=k), decoder="free", pre_bias=same,
    )  # fmt: skip
    twin = Dictionary(spec).requires_grad_(False)
    twin.encoder.W_enc.copy_(_norms(one) * read)
    twin.W_dec.copy_(written)
    twin.b_dec.copy_(y.float().mean(0))
    return Placed(spec.name, twin.to(directions.device).eval(), one.reads, one.writes)


@torch.no_grad()
def twin_at(bench: Bench, texts: Sequence[str]) -> Placed:
    """The random twin of a bench's dictionary, from what the subject makes of a few texts."""
    one, subject = bench.dictionary, bench.subject
    flat = {site: [] for site in (*one.reads, *one.writes)}  # type: dict[str, list[Tensor]]
    for row in tokenised(subject, texts, 128):
        found = subject.run(torch.tensor([row]), capture=list(flat), logits=False).sites
        for site, parts in flat.items():
            parts.append(found[site][0, 1:].flatten(1).float())
    x, y = (torch.cat([torch.cat(flat[s]) for s in side], 1) for side in (one.reads, one.writes))
    return random_twin(one, x, y, seed=bench.seed)


def _rows(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    rows = torch.randn(shape, generator=generator)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _norms(one: Placed) -> Float[Tensor, "latents 1"]:
    """How much a latent writes for what it reads: its encoder row's norm times its decoder row's,
    in raw units; one where there is no encoder's matrix, as if it wrote back what it reads.
    """
    coder = one.coder
    weight = getattr(getattr(coder, "encoder", None), "W_enc", None)
    if not isinstance(coder, Dictionary) or weight is None or weight.ndim != 2:
        return torch.ones(coder.n_latents, 1)
    read = (weight * coder.input_scale).norm(dim=1, keepdim=True)
    return (read * coder.directions().norm(dim=1, keepdim=True)).float().cpu()


def _ports(sites: tuple[str, ...], vectors: Tensor) -> tuple[Port, ...]:
    widths = [part.shape[1] for part in vectors[:1].tensor_split(len(sites), dim=1)]
    return tuple(Port(site=site, width=width) for site, width in zip(sites, widths, strict=True))
