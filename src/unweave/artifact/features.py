"""The table of one part's features: statistics, histograms, examples, promoted tokens.

Its size depends on the number of latents, not on the length of the text.
"""

from pathlib import Path

import torch
from torch import Tensor

from unweave.artifact.tensors import TensorForm, load_tensors
from unweave.errors import UserError

BINS = 32
"""Bins of a histogram of activations, logarithmic, shared by a part's latents."""
PROMOTED = 10
"""Tokens listed that a latent raises most, and that it lowers most."""


def feature_forms(n_latents: int, n_examples: int) -> dict[str, TensorForm]:
    """The tensors of `features/<part>.safetensors`, by name.

    count: firings; frequency: share of tokens; mean_active, max_active: where it fires. histogram:
    firings per bin between histogram_edges. example_position: flat index into `firings/tokens.npy`,
    -1 for none; example_value; example_band of each example column: 0 top, 1.. quantiles downwards.
    promoted_*, suppressed_*: token ids and direct effects on their logits, strongest first.
    """
    n, i32, i64, f32 = n_latents, torch.int32, torch.int64, torch.float32
    return {
        "count": TensorForm((n,), i64),
        "frequency": TensorForm((n,), f32),
        "mean_active": TensorForm((n,), f32),
        "max_active": TensorForm((n,), f32),
        "histogram": TensorForm((n, BINS), i32),
        "histogram_edges": TensorForm((BINS + 1,), f32),
        "example_position": TensorForm((n, n_examples), i64),
        "example_value": TensorForm((n, n_examples), f32),
        "example_band": TensorForm((n_examples,), torch.int8),
        "promoted_token": TensorForm((n, PROMOTED), i32),
        "promoted_logit": TensorForm((n, PROMOTED), f32),
        "suppressed_token": TensorForm((n, PROMOTED), i32),
        "suppressed_logit": TensorForm((n, PROMOTED), f32),
    }


def load_features(path: Path) -> dict[str, Tensor]:
    """Read a part's table; UserError unless its tensors are those of `feature_forms`."""
    tensors = load_tensors(path)
    if "example_position" not in tensors or tensors["example_position"].ndim != 2:
        raise UserError(f"{path} lacks the tensor 'example_position' [latents, examples]")
    n_latents, n_examples = tensors["example_position"].shape
    return load_tensors(path, feature_forms(n_latents, n_examples))
