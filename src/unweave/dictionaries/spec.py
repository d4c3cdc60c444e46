"""What a part is, apart from its weights."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class PartSpec(BaseModel):
    """A TopK dictionary from one site to another, with everything needed to rebuild it.

    Same site twice: an autoencoder. Two sites: a transcoder. The weights lie beside it as
    `W_enc`, `b_enc`, `W_dec`, `b_dec`, `start_output` and, if asked for, `W_skip` or `W_gate` and
    `b_gate`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["topk"] = "topk"
    """The activation function: the k largest positive pre-activations of a row, or products where
    latents are `gated`."""
    name: str
    """The part's name, such as `L7.mlp`."""
    input_site: str
    """Where it reads."""
    output_site: str
    """Where it writes."""
    d_in: PositiveInt
    """Width of the input site."""
    d_out: PositiveInt
    """Width of the output site."""
    n_latents: PositiveInt
    """Number of latents (F)."""
    k: PositiveInt
    """Latents active per token (L0)."""
    heads: PositiveInt = 1
    """1: a latent reads the whole input. H: latent i reads the slice of head i * H // n_latents."""
    gated: bool = False
    """Whether a latent is silu(g.x) relu(u.x), the shape of a gated MLP's neuron, with weights
    `W_gate` and `b_gate` for g beside `W_enc` and `b_enc` for u. The k largest in size are active;
    behind a shut gate an activation is slightly negative."""
    skip: bool = False
    """Whether a dense linear map `W_skip` runs beside the latents (Paulo et al. 2025)."""
    input_scale: float = Field(default=1.0, gt=0)
    """The input is multiplied by this before the encoder, so that its rows have norm sqrt(d_in)."""
    output_scale: float = Field(default=1.0, gt=0)
    """The sum of the latents is divided by this: the targets had rows of norm sqrt(d_out)."""

    @model_validator(mode="after")
    def _shapes_agree(self) -> "PartSpec":
        if self.k > self.n_latents:
            raise ValueError(f"{self.name}: k={self.k} exceeds its {self.n_latents} latents")
        if self.d_in % self.heads or self.n_latents % self.heads:
            raise ValueError(
                f"{self.name}: {self.heads} heads divide neither d_in={self.d_in} "
                f"nor n_latents={self.n_latents} evenly"
            )
        if self.gated and (self.skip or self.heads > 1):
            raise ValueError(f"{self.name}: gated latents read one whole input, without a skip")
        return self

    @property
    def d_read(self) -> int:
        """How many inputs one latent reads."""
        return self.d_in // self.heads
