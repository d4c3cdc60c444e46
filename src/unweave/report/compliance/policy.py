"""What can be required of an artifact.

The defaults are a proposal, not a standard: what is enough depends on what the model is used for,
and whoever requires it writes the numbers into a TOML file of their own.
"""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt


class Policy(BaseModel):
    """Thresholds; see `docs/artifact.md` for why each is there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_ce_increase: NonNegativeFloat = 0.15
    """Rise of the next-token loss with everything replaced, propagated, nats per token; the upper
    end of its interval has to stay below."""
    max_share_of_ablation: float = Field(default=0.1, gt=0, le=1)
    """The same as a share of what replacing every part by its mean costs: a loss means nothing
    without what there was to lose."""
    min_top1: float = Field(default=0.8, ge=0, le=1)
    """Share of positions whose most likely next token stays the same; lower end."""
    max_mode_ratio: float = Field(default=2.0, ge=1)
    """Propagated loss over clean loss: parts that only work on the original's inputs do not make
    a network."""
    min_held_out_tokens: NonNegativeInt = 2000
    """Tokens of held-out documents that the numbers come from."""
    beat_baselines: bool = True
    """Whether every baseline with as many active units must lose more."""
    min_auroc: float = Field(default=0.7, ge=0, le=1)
    """Mean AUROC of descriptions on held-out text; lower end, and beyond the shuffled control's
    upper end."""
    min_described: float = Field(default=0.5, ge=0, le=1)
    """Share of the features that ever fire which have a description."""
    attention_in_features: bool = True
    """Whether attention patterns, too, must come from sparse features."""
    clean_code: bool = True
    """Whether the code that made it must be a release or a commit without changes."""
