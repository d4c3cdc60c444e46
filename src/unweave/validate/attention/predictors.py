"""Ways to say where a block looks without its own queries and keys: features, and their rivals.

    FromFeatures         query and key features (QK transcoder)
    FromReconstruction   what a coder of `attn.in` writes back, through the block's W_Q and W_K
    LowRank              the block's queries and keys from a few directions of each head
    MeanPattern          the mean pattern at each position, whatever is read: a control

Position 0 holds the start token: its key is the block's own for all of them, and it costs nothing.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.attention.qk_block import QKBlock
from unweave.dictionaries.attention.qk_start import singular_directions
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.dictionaries.code import Coder
from unweave.subject.scores import scores
from unweave.training.attention.pattern_kl import log_pattern
from unweave.training.attention.qk_loss import active
from unweave.validate.placed import reconstruct


class Predicted(NamedTuple):
    """What is said of the attention of whole rows of tokens."""

    log: Float[Tensor, "batch heads query key"]
    """Logarithm of the pattern, -inf where a key comes after its query."""
    scores: Float[Tensor, "batch heads query key"] | None
    """The scores behind it, before the mask; None where there are none."""
    l0_Q: float
    """Numbers per token that queries were made of, over all heads; position 0 left out."""
    l0_K: float
    """Numbers per token that keys were made of."""


@runtime_checkable
class PatternPredictor(Protocol):
    """Whatever says where a block looks, from what its attention reads."""

    @property
    def parameters(self) -> int:
        """How many numbers it has learned or kept."""
        ...

    def predict(self, x: Float[Tensor, "batch pos d_in"]) -> Predicted:
        """The patterns of whole rows of `attn.in`, start tokens first; no gradients."""
        ...


def _from_scores(found: Tensor, l0_Q: float, l0_K: float) -> Predicted:
    return Predicted(log_pattern(found), found, l0_Q, l0_K)


class FromFeatures(NamedTuple):
    """Query and key features; exact products, thresholds in the place of batches."""

    transcoder: QKTranscoder
    block: QKBlock

    @property
    def parameters(self) -> int:
        """See `PatternPredictor`."""
        return sum(p.numel() for p in self.transcoder.parameters())

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "batch pos d_in"]) -> Predicted:
        """See `PatternPredictor`."""
        mode = self.transcoder.training
        found = self.transcoder.eval().run(x)
        self.transcoder.train(mode)
        tokens = max(1, len(found.query_side.y))
        l0_Q, l0_K = (
            active(side).sum().item() / tokens for side in (found.query_side, found.key_side)
        )
        return _from_scores(scores(found.q, found.k, self.block.scoring), l0_Q, l0_K)


class FromReconstruction(NamedTuple):
    """A coder of what attention reads: what it writes back goes through W_Q and W_K."""

    coder: Coder
    block: QKBlock

    @property
    def parameters(self) -> int:
        """Two rows a latent: what it reads and what it writes."""
        return 2 * self.coder.directions().numel()

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "batch pos d_in"]) -> Predicted:
        """See `PatternPredictor`."""
        inside = x[:, 1:].flatten(0, 1)
        written = reconstruct(self.coder, inside).to(x.dtype)
        seen = torch.cat([x[:, :1], written.unflatten(0, (len(x), -1))], dim=1)
        l0 = self.coder.encode(inside).l0()
        block = self.block
        return _from_scores(scores(block.queries(seen), block.keys(seen), block.scoring), l0, l0)


class LowRank(NamedTuple):
    """A block's queries and keys from `rank` directions for each query head; see `low_rank`."""

    W_Q: Float[Tensor, "heads d_in d_head"]
    W_K: Float[Tensor, "heads d_in d_head"]
    centre: Float[Tensor, " d_in"]
    rank: int
    block: QKBlock

    @property
    def parameters(self) -> int:
        """Degrees of freedom of its matrices of that rank; those of the block's own at full rank
        (where a key head that several query heads read is counted for each)."""
        heads, d_in, d_head = self.W_Q.shape
        return 2 * heads * self.rank * (d_in + d_head - self.rank)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "batch pos d_in"]) -> Predicted:
        """See `PatternPredictor`."""
        block, numbers = self.block, float(len(self.W_Q) * self.rank)
        q = torch.einsum("bpi,hid->bphd", x - self.centre, self.W_Q) + block.queries(self.centre)
        own = block.keys(self.centre).repeat_interleave(block.group, 0)
        k = torch.einsum("bpi,hid->bphd", x - self.centre, self.W_K) + own
        start = block.keys(x[:, :1]).repeat_interleave(block.group, 2)
        k = torch.cat([start, k[:, 1:]], dim=1)
        return _from_scores(scores(q, k, block.scoring), numbers, numbers)


@torch.no_grad()
def low_rank(
    block: QKBlock, x: Float[Tensor, "rows pos d_in"], rank: int, *, by_data: bool = False
) -> LowRank:
    """Truncate each head's W_Q W_K^T = U S V^T to its `rank` largest singular values.

    Rotary positions stand between the two matrices, so their product is not kept: queries read the
    first singular directions alone (W_Q becomes U_r U_r^T W_Q), keys the others (V_r V_r^T W_K),
    which at distance zero is the truncated product. With `by_data` the product is that of inputs
    as they vary, C^1/2 W_Q W_K^T C^1/2 with C the covariance of x, the better rival. The mean of x
    passes whole in both.
    """
    inside = x[:, 1:].flatten(0, 1)
    centre = inside.mean(0)
    d_in = x.shape[2]
    root = inverse = torch.eye(d_in, dtype=x.dtype, device=x.device)
    if by_data:
        size, turn = torch.linalg.eigh(torch.cov(inside.T))
        size = size.clamp_min(1e-6 * size.max())
        root, inverse = (turn * size.sqrt()) @ turn.T, (turn / size.sqrt()) @ turn.T
    sides: list[list[Tensor]] = [[], []]
    for head, own in enumerate(block.W_Q):
        other = block.W_K[head // block.group]
        for side, (mine, partner) in enumerate(((own, other), (other, own))):
            u, _ = singular_directions(root @ mine, (root @ partner)[None])
            u = u[:, :rank]
            sides[side].append(inverse @ u @ (u.T @ (root @ mine)))
    return LowRank(torch.stack(sides[0]), torch.stack(sides[1]), centre, rank, block)


class MeanPattern(NamedTuple):
    """The mean pattern of each head at each position: what is known without reading anything."""

    log: Float[Tensor, "heads query key"]

    @property
    def parameters(self) -> int:
        """See `PatternPredictor`."""
        heads, pos, _ = self.log.shape
        return heads * pos * (pos + 1) // 2

    def predict(self, x: Float[Tensor, "batch pos d_in"]) -> Predicted:
        """See `PatternPredictor`; rows no longer than those that the mean was taken of."""
        pos = x.shape[1]
        log = self.log[:, :pos, :pos].expand(len(x), -1, -1, -1)
        return Predicted(log, None, 0.0, 0.0)


@torch.no_grad()
def mean_pattern(block: QKBlock, x: Float[Tensor, "rows pos d_in"]) -> MeanPattern:
    """The mean over rows, eight at a time."""
    total = sum(block.pattern(group).double().sum(0) for group in x.split(8))
    assert isinstance(total, Tensor)
    return MeanPattern((total / len(x)).log().to(x.dtype))


@torch.no_grad()
def untrained(transcoder: QKTranscoder, seed: int = 0) -> QKTranscoder:
    """A transcoder of the same spec and lengths whose rows point anywhere: a control."""
    generator = torch.Generator().manual_seed(seed)
    other = QKTranscoder(transcoder.spec)
    other.load_state_dict(transcoder.state_dict())
    for name, parameter in other.named_parameters():
        if name.startswith("W_"):
            rows = torch.randn(parameter.flatten(1).shape, generator=generator)
            length = parameter.flatten(1).norm(dim=1, keepdim=True)
            rows = rows.to(parameter) * length / rows.norm(dim=1, keepdim=True).to(parameter)
            parameter.copy_(rows.view_as(parameter))
    return other
