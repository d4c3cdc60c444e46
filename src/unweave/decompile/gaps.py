"""How far a decompiled network's inside is from the subject's, as losses; the start token is out.

Both are differentiable and count every token alike.
"""

import torch
from jaxtyping import Float


def stream_gap(
    original: Float[torch.Tensor, "batch pos d"], mine: Float[torch.Tensor, "batch pos d"]
) -> Float[torch.Tensor, ""]:
    """Squared error of each vector relative to its own square, or the few tokens with massive
    activations would be all that counts."""
    gap = (mine[:, 1:] - original[:, 1:]).float().square().sum(-1)
    return (gap / original[:, 1:].float().square().sum(-1).clamp_min(1e-12)).mean()


def pattern_gap(
    original: Float[torch.Tensor, "batch heads query key"],
    mine: Float[torch.Tensor, "batch heads query key"],
) -> Float[torch.Tensor, ""]:
    """KL of attention patterns per query; the first query has but one key to look at."""
    p, q = (pattern[:, :, 1:].float().clamp_min(1e-12) for pattern in (original, mine))
    return (p * (p.log() - q.log())).sum(-1).mean()


def feature_gap(
    pre: Float[torch.Tensor, "batch pos latents"],
    mine: Float[torch.Tensor, "batch pos features"],
    true: Float[torch.Tensor, "batch pos features"],
) -> Float[torch.Tensor, ""]:
    """Squared error of features relative to their square.

    Codes may have constants behind the latents, which are left out. A latent that should be
    on is held to its value by its pre-activation, whether or not it was chosen.
    """
    n = pre.shape[-1]
    wanted, got = true[:, 1:, :n], mine[:, 1:, :n]
    error = torch.where(wanted > 0, pre[:, 1:], got) - wanted
    return error.square().sum() / wanted.square().sum().clamp_min(1e-12)
