"""What a QK transcoder is, apart from its weights."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK

QKActivation = Annotated[ReLU | TopK | BatchTopK | JumpReLU, Field(discriminator="kind")]


class QKTranscoderSpec(BaseModel):
    """Query features and key features of one block; tensors lie beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["qk_transcoder"] = "qk_transcoder"
    """What the folder holds."""
    site: str
    """Where both encoders read: a block's `attn.in`, behind the norm and its gain."""
    d_in: PositiveInt
    """Width of what is read."""
    heads: PositiveInt
    """Query heads."""
    kv_heads: PositiveInt
    """Key heads; each serves `heads / kv_heads` query heads that follow one another."""
    d_head: PositiveInt
    """Width of one query or key."""
    n_queries: PositiveInt
    """Number of query features (F_Q)."""
    n_keys: PositiveInt
    """Number of key features (F_K)."""
    query_activation: QKActivation
    """From pre-activations of query features to their values."""
    key_activation: QKActivation
    """The same for key features."""
    input_scale: PositiveFloat = 1.0
    """What is read, less its mean, is multiplied by this, so that its norm is about sqrt(d_in)."""

    @model_validator(mode="after")
    def _agree(self) -> "QKTranscoderSpec":
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.site}: {self.kv_heads} key heads do not share {self.heads}")
        sides = (("query", self.query_activation, self.n_queries),
                 ("key", self.key_activation, self.n_keys))  # fmt: skip
        for name, activation, latents in sides:
            if (k := getattr(activation, "k", 1)) > latents:
                raise ValueError(f"{self.site}: k={k} exceeds its {latents} {name} features")
        return self

    @property
    def layer(self) -> int:
        """Number of the block, from the site's name."""
        return int(self.site.split(".")[1])
