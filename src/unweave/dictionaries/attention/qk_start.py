"""Where a QK transcoder begins: at its block's own queries and keys.

`data`: a feature stands for the query of one token, q_i less the mean query, and no two of them for
the same one (the first block reads the same vector wherever a token stands). Its encoder reads how
far a query lies along q_i, its decoder writes along q_i:

    W_enc ~ W_Q q_i / |q_i|      W_dec ~ q_i / |q_i|      (keys alike)

All decoder rows are then given the one factor that reproduces queries best.

`svd`: W_Q[h] W_K[g]^T = U S V^T, head by head. Two features, of opposite signs, for every singular
direction: the encoder reads u_j, the decoder writes u_j^T W_Q[h] into head h alone. With ReLU and
all of them the block's queries and keys are exact, before any training; what room is left is filled
from data.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.attention.qk_block import QKBlock
from unweave.dictionaries.attention.qk_spec import QKActivation, QKTranscoderSpec
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder, Which
from unweave.dictionaries.start import each_once

QKStart = Literal["data", "svd"]
_FITTED = 4096
"""Vectors that tell how long decoder rows must be."""
Rows = tuple[Tensor, Tensor]
"""Encoder rows [latents, d_in] for raw centred vectors, decoder rows [latents, heads, d_head]."""


@torch.no_grad()
def start_qk(
    block: QKBlock,
    x: Float[Tensor, "rows pos d_in"],
    *,
    site: str,
    n_queries: int,
    n_keys: int,
    query_activation: QKActivation,
    key_activation: QKActivation | None = None,
    start: QKStart = "data",
    seed: int = 0,
) -> QKTranscoder:
    """A transcoder for a block, from rows of what its attention reads, start tokens first."""
    inside = x[:, 1:].flatten(0, 1)
    centre = inside.mean(0)
    scale = inside.shape[1] ** 0.5 / (inside - centre).norm(dim=1).mean().clamp_min(1e-12)
    spec = QKTranscoderSpec(
        site=site,
        d_in=inside.shape[1],
        heads=len(block.W_Q),
        kv_heads=len(block.W_K),
        d_head=block.W_Q.shape[2],
        n_queries=n_queries,
        n_keys=n_keys,
        query_activation=query_activation,
        key_activation=key_activation or query_activation,
        input_scale=scale.item(),
    )
    transcoder = QKTranscoder(spec)
    transcoder.b_in.copy_(centre)
    transcoder.start_key.copy_(block.keys(x[0, 0]))
    transcoder.b_dec_Q.copy_(block.queries(centre))
    transcoder.b_dec_K.copy_(block.keys(centre))
    generator = torch.Generator().manual_seed(seed)
    sides: tuple[tuple[Which, Tensor, int], ...] = (
        ("Q", block.W_Q, n_queries),
        ("K", block.W_K, n_keys),
    )
    for which, W, n in sides:
        encoder, decoder = _rows(block, W, inside - centre, n, start, which, generator)
        length = encoder.norm(dim=1).clamp_min(1e-12)
        W_enc, _, W_dec, _ = transcoder.side(which)
        W_enc.copy_(encoder / length[:, None])
        W_dec.copy_(decoder * (length / spec.input_scale)[:, None, None])
        _fit_length(transcoder, which, inside[:_FITTED], W)
    return transcoder


def _fit_length(transcoder: QKTranscoder, which: Which, x: Tensor, W: Tensor) -> None:
    """Multiply all decoder rows by the one factor that reproduces queries or keys best."""
    transcoder.train()
    _, _, W_dec, b_dec = transcoder.side(which)
    written = transcoder.run_side(transcoder.read(x), which).y - b_dec
    target = torch.einsum("ni,hid->nhd", x - transcoder.b_in, W)
    W_dec *= (written * target).sum() / written.square().sum().clamp_min(1e-12)
    transcoder.eval()
    for buffer in getattr(transcoder, f"activation_{which}").buffers():
        buffer.zero_()  # a threshold of BatchTopK is not to remember this


def _rows(
    block: QKBlock,
    W: Tensor,
    centred: Tensor,
    n: int,
    start: QKStart,
    which: Which,
    generator: torch.Generator,
) -> Rows:
    if start == "data":
        return _from_data(W, centred, n, generator)
    encoder, decoder = _query_svd(block) if which == "Q" else _key_svd(block)
    encoder, decoder = encoder[:n], decoder[:n]
    more = _from_data(W, centred, n - len(encoder), generator)
    return torch.cat([encoder, more[0]]), torch.cat([decoder, more[1]])


def _from_data(W: Tensor, centred: Tensor, n: int, generator: torch.Generator) -> Rows:
    # Every row once; then, where there are few, any of them again.
    drawn = each_once(centred, generator)[:n]
    if len(drawn) < n:
        more = torch.randint(len(centred), (n - len(drawn),), generator=generator)
        drawn = torch.cat([drawn, more.to(drawn.device)])
    written = torch.einsum("ni,hid->nhd", centred[drawn], W)
    unit = written / written.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
    return torch.einsum("nhd,hid->ni", unit, W), unit


def singular_directions(
    W: Float[Tensor, "d_in d_head"], partners: Float[Tensor, "n d_in d_head"]
) -> tuple[Float[Tensor, "d_in d_head"], Float[Tensor, " d_head"]]:
    """Left singular vectors and values of W [P_1^T .. P_n^T], the largest first.

    Only `sum P^T P` of the partners matters, so nothing wider than W is ever taken apart.
    """
    size, turn = torch.linalg.eigh(torch.einsum("nid,nie->de", partners, partners))
    u, s, _ = torch.linalg.svd(W @ (turn * size.clamp_min(0).sqrt()), full_matrices=False)
    return u, s


def _query_svd(block: QKBlock) -> Rows:
    return _svd(block.W_Q, [block.W_K[h // block.group][None] for h in range(len(block.W_Q))])


def _key_svd(block: QKBlock) -> Rows:
    return _svd(block.W_K, list(block.W_Q.split(block.group)))


def _svd(W: Tensor, partners: Sequence[Tensor]) -> Rows:
    """Both signs of every singular direction of all heads, the largest first."""
    heads, _, d_head = W.shape
    directions, sizes, written = [], [], []
    for head, others in enumerate(partners):
        u, s = singular_directions(W[head], others)
        into = W.new_zeros(len(s), heads, d_head)
        into[:, head] = u.T @ W[head]
        directions.append(u.T)
        sizes.append(s)
        written.append(into)
    order = torch.cat(sizes).argsort(descending=True)
    read, write = torch.cat(directions)[order], torch.cat(written)[order]
    return _both_signs(read), _both_signs(write)


def _both_signs(rows: Tensor) -> Tensor:
    return torch.stack([rows, -rows], dim=1).flatten(0, 1)
