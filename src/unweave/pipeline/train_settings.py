"""What a user can change about training dictionaries at a site."""

from itertools import product
from typing import Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from unweave.activations.window import HarvestSettings
from unweave.dictionaries.initial import DecoderStart
from unweave.training.dead import DeadLatents
from unweave.training.plateau import PlateauSettings
from unweave.training.schedule import Schedule


class Choice(NamedTuple):
    """One dictionary, or set of them, that is trained."""

    name: str
    """What its folder and its lines in the log are called."""
    recipe: str
    """Name of its recipe."""
    k: int | None
    """Latents per token, where asked for."""
    penalty: float | None
    """Weight of its penalty, where asked for."""


class TrainSiteSettings(BaseModel):
    """Dictionaries at one site, or from one to another.

    What may be several is given as a list, or as text with commas between.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    site: tuple[str, ...] = Field(min_length=1)
    """Site read; several are concatenated, or for `clt` one a layer. A `*` stands for every
    layer's number."""
    to: tuple[str, ...] = ()
    """Site written, when it is not the one read."""
    each: bool = False
    """A dictionary of its own for each site, or each pair of one read and one written, instead of
    one for all."""
    recipe: tuple[str, ...] = ("batchtopk",)
    """Recipes, each trained from the same pass of the subject."""
    k: tuple[PositiveInt, ...] = ()
    """Latents per token; every recipe is trained with each."""
    penalty: tuple[PositiveFloat, ...] = ()
    """Weights of the penalty, instead of k; every recipe is trained with each."""
    latents: PositiveInt | None = None
    """Latents of a dictionary; eight times the width written when not given."""
    lr: PositiveFloat | None = None
    """Peak learning rate in place of each recipe's own, which is meant for long runs."""
    start: DecoderStart | None = None
    """Where decoder rows start, in place of each recipe's own: random, uniform, data, subspace,
    clusters or atoms. What fills a part of its width, as attention outputs do, leaves random ones
    dead."""
    schedule: Schedule | None = None
    """How the rate moves, in place of each recipe's own; what is left out takes its default."""
    dead: DeadLatents | None = None
    """What is done for silent latents, in place of each recipe's own."""
    plateau: PlateauSettings | None = None
    """When given, a pass ends early once none of its dictionaries gets better any more."""
    batch: PositiveInt = 512
    """Vectors in a step."""
    epochs: PositiveInt = 1
    """How often the text is gone through."""
    text: str = "self"
    """Text to run the subject on: self, wiki, heldout, a file, a folder or hub:DATASET."""
    tokens: PositiveInt = 400_000
    """Tokens of it, held-out ones included."""
    context: int = Field(default=128, ge=3)
    """Tokens in a row; three at least, as what the start token predicts is not measured."""
    heldout_tokens: PositiveInt = 16_384
    """Held-out tokens on which the result is measured, at most."""
    seed: NonNegativeInt = 0
    """Seed of every random choice."""
    device: str = "cpu"
    """Where the subject runs and dictionaries are trained: cpu, cuda or cuda:1. Chance is the same
    everywhere; sums are not taken in the same order, so that last digits differ."""
    threads: PositiveInt | None = None
    """Single-threaded workers; all cores when not given. The result does not depend on it."""
    shards: PositiveInt = 1
    """Under torchrun: deal out every dictionary's latents to so many processes, for one that is
    too wide for one device; the rest share the rows. It does not change the result but for the
    order of sums."""
    log_every: PositiveInt = 50
    """Steps between two lines of the log."""
    checkpoint_seconds: float = Field(default=120.0, ge=0)
    """Unfinished training is saved this often, and what was done since is lost in a kill."""
    track: Literal["wandb", "trackio"] | None = None
    """A tracker that the log goes to as well, one run of it a pass; the result is the same."""
    harvest: HarvestSettings = HarvestSettings(store="subject")
    """How activations are held."""

    @field_validator("site", "to", "recipe", "k", "penalty", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, int | float) else value

    def choices(self) -> list[Choice]:
        """Every recipe with every k and every penalty, in the order given."""
        return [
            Choice(_name(recipe, k, penalty), recipe, k, penalty)
            for recipe, k, penalty in product(
                dict.fromkeys(self.recipe),
                dict.fromkeys(self.k) or (None,),
                dict.fromkeys(self.penalty) or (None,),
            )
        ]


def _name(recipe: str, k: int | None, penalty: float | None) -> str:
    sparse = "" if k is None else f"-k{k}"
    return recipe + sparse + ("" if penalty is None else f"-penalty{penalty:g}")
