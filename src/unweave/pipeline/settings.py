"""What a user can change about the main job. Each stage's own settings stand with the stage."""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from unweave.activations.window import HarvestSettings
from unweave.decompile.edges import EdgeSettings
from unweave.describe.describe import DescribeSettings
from unweave.subject import Subject
from unweave.training.joint import JointSettings
from unweave.training.local import LocalSettings

_NARROW = 256
_JOINT_FLOPS = 4e13
"""What joint tuning may cost when not told: some five minutes of two cores."""


class EvidenceSettings(BaseModel):
    """Text on which features are looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    firings: PositiveInt = 40_000_000
    """About this many firings are kept, over all parts; more parts, fewer tokens."""
    most_tokens: PositiveInt = 131_072
    """Never more tokens than this, explaining and held-out ones together."""
    heldout_share: float = Field(default=0.33, gt=0, lt=1)
    """Share of them that explainers do not see: held-out documents, for scoring."""
    promoted_features: PositiveInt = 1024
    """Features per part, the strongest, whose effect on the logits is read."""


class MeasureSettings(BaseModel):
    """Held-out text on which the network's predictions are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: PositiveInt = 8192
    """For the splice modes, baselines and controls."""
    single_tokens: PositiveInt = 32_768
    """For one part at a time, shared out over the parts: each gets this many / parts, at least
    four rows."""
    samples: NonNegativeInt = 6
    """Prompts continued by both networks."""
    sample_tokens: PositiveInt = 40
    """Tokens written after each prompt."""
    drawn_samples: NonNegativeInt = 2
    """The first prompts, continued once more by chance: the same for both networks."""
    temperature: float = Field(default=0.8, gt=0)
    """What logits are divided by where chance decides."""


class DecompileSettings(BaseModel):
    """The main job."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    text: str = "self"
    """Text to run the subject on: self, wiki, heldout, a file, a folder or hub:DATASET."""
    tokens: PositiveInt = 400_000
    """Tokens of it, held-out ones included."""
    context: int = Field(default=128, ge=3)
    """Tokens in a row; three at least, as what the start token predicts is not measured."""
    seed: NonNegativeInt = 0
    """Seed of every random choice."""
    device: str = "cpu"
    """Where the subject runs and parts are trained: cpu, cuda or cuda:1. Chance is the same
    everywhere; sums are not taken in the same order, so that last digits differ."""
    threads: PositiveInt | None = None
    """Single-threaded workers; all cores when not given. The result does not depend on it."""
    latents: PositiveInt = 8
    """Latents of a part, as a multiple of the residual stream's width."""
    k_mlp: PositiveInt | None = None
    """Latents active per token in an MLP part; when not given, 16 for a stream of up to 256 and
    32 for a wider one."""
    k_attention: PositiveInt | None = None
    """Latents active per token in an attention part; when not given, as for MLPs."""
    k_query: NonNegativeInt | None = None
    """Latents active per token in a part for queries; 0 leaves queries as the subject computes
    them, and with those of keys too, patterns are exact. When not given, 16 for a stream of up to
    256 and 0 for a wider one, where features in place of patterns still cost too much."""
    k_key: NonNegativeInt | None = None
    """Latents active per token in a part for keys, likewise."""
    gated: bool = False
    """Give MLP parts gated latents, silu(g.x) relu(u.x), as the network's own neurons are where
    they are gated by SiLU: twice the encoder, and twice the virtual weights into it."""
    skip: bool = False
    """Give MLP parts a dense linear map beside their latents: more accurate, but not sparse."""
    checkpoint_seconds: float = Field(default=180.0, ge=0)
    """Unfinished training is saved this often, and what was done since is lost in a kill."""
    harvest: HarvestSettings = HarvestSettings()
    """How activations are held."""
    local: LocalSettings | None = None
    """How parts are fitted to their blocks; when not given, as suits the subject's width."""
    joint: JointSettings | None = None
    """How parts are tuned together; when not given, as suits the subject's size."""
    evidence: EvidenceSettings = EvidenceSettings()
    """Text on which features are looked at."""
    describe: DescribeSettings = DescribeSettings()
    """How features are described."""
    edges: EdgeSettings = EdgeSettings()
    """How much of the interaction graph is kept."""
    measure: MeasureSettings = MeasureSettings()
    """How much text the predictions are compared on."""

    def resolved(self, subject: Subject) -> "ResolvedSettings":
        """Fill in what was left open, by the subject's size.

        Joint tuning gets as many tokens as `_JOINT_FLOPS` pay for, the text's own number at most:
        a token costs the original's forward pass, the spliced one's, and a backward pass through
        what is not sparse, about six multiply-adds a parameter.
        """
        narrow = subject.d_model <= _NARROW
        k = 16 if narrow else 32
        joint = JointSettings(
            tokens=min(self.tokens, int(_JOINT_FLOPS / (6 * subject.parameters))),
            micro_rows=8 if narrow else 4,
            lr=1.5e-3 if narrow else 3e-4,
        )
        chosen = {
            "k_mlp": self.k_mlp or k,
            "k_attention": self.k_attention or k,
            "k_query": k * narrow if self.k_query is None else self.k_query,
            "k_key": k * narrow if self.k_key is None else self.k_key,
            "local": self.local
            or (LocalSettings(lr=5e-3) if narrow else LocalSettings(lr=4e-3, pattern_lr=1e-3)),
            "joint": self.joint or joint,
        }
        return ResolvedSettings.model_validate({**dict(self), **chosen})


class ResolvedSettings(DecompileSettings):
    """The main job with nothing left open: what the manifest records."""

    k_mlp: PositiveInt
    k_attention: PositiveInt
    k_query: NonNegativeInt
    k_key: NonNegativeInt
    local: LocalSettings
    joint: JointSettings
