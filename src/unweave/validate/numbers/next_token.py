"""Whether what latents promote is what really comes next.

A latent's direct effect on the logits is W_U d; in any network, trained or not, ablating it does
what that says. Only in one that knows its text does the effect favour the token that follows:

    score = mean over firings, by strength, of the z-score of the next token's entry in W_U d

over the vocabulary. Zero is chance; it cannot be had from the statistics of the input alone.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.bootstrap import BootstrapSettings, Interval, ratio_interval
from unweave.validate.placed import Placed


@torch.no_grad()
def next_token_score(
    subject: Subject,
    part: Placed,
    code: SparseCode,
    rows: Int[Tensor, "rows pos"],
    settings: BootstrapSettings | None = None,
) -> Interval:
    """The score of a coder that writes to the stream; `code` is that of all places but position 0.

    Raises:
        UserError: what it writes has not the stream's width.
    """
    directions = part.coder.directions().float()
    if directions.shape[1] != subject.d_model:
        raise UserError(
            f"{part.name} writes vectors of {directions.shape[1]} numbers, not into the stream of "
            f"{subject.d_model}: it has no direct effect on the logits"
        )
    follows = torch.cat([rows[:, 2:], rows.new_full((len(rows), 1), -1)], dim=1).flatten()
    latent, row, value = code.support.latent, code.support.row, code.value
    kept = (follows[row] >= 0) & (value > 0)
    latent, row, value = latent[kept], row[kept], value[kept].double()
    score = _z_scores(subject, directions)[latent, follows[row]].double()
    text = row // (rows.shape[1] - 1)
    total, weight = (
        torch.bincount(text, weights=w, minlength=len(rows)).numpy() for w in (score * value, value)
    )
    return ratio_interval(total, weight, settings)


def _z_scores(
    subject: Subject, directions: Float[Tensor, "latents d_model"]
) -> Float[Tensor, "latents vocab"]:
    effect = directions @ subject.unembed().float().T
    effect -= effect.mean(1, keepdim=True)
    return effect / effect.std(1, keepdim=True).clamp_min(1e-12)
