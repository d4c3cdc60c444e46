"""What a dictionary is, apart from its weights: one typed spec instead of a tree of classes.

A paper's variant is an encoder, an activation function, a decoder's normalisation, a nesting or a
pair of sites, composed. Same site to read and write: an autoencoder. Different: a transcoder.
Several to read and write: a crosscoder. One to read, several to write: a layer of a cross-layer
transcoder.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.encoder.glu import GLU
from unweave.dictionaries.encoder.kronecker import Kronecker
from unweave.dictionaries.encoder.linear import Linear
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.dictionaries.encoder.switch import Switch

Activation = Annotated[
    ReLU | TopK | BatchTopK | AbsTopK | JumpReLU | Gated | ProLU, Field(discriminator="kind")
]
Encoder = Annotated[Linear | GLU | Switch | Kronecker | Pursuit, Field(discriminator="kind")]

SPARSE = (TopK, BatchTopK, AbsTopK)
"""Activations that choose their latents instead of computing all of them."""


class Port(BaseModel):
    """A site that a dictionary reads or writes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    site: str
    """Name of the site."""
    width: PositiveInt
    """Width of its vectors."""
    scale: PositiveFloat = 1.0
    """Raw vectors are multiplied by this, so that their typical norm is sqrt(width)."""


class DictionarySpec(BaseModel):
    """A sparse dictionary with everything needed to rebuild it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "dictionary"
    """What logs and files call it."""
    reads: tuple[Port, ...] = Field(min_length=1)
    """Sites read, concatenated in this order."""
    writes: tuple[Port, ...] = Field(min_length=1)
    """Sites written, concatenated in this order."""
    n_latents: PositiveInt
    """Number of latents (F)."""
    activation: Activation
    """From pre-activations to latents."""
    encoder: Encoder = Linear()
    """From the sites read to pre-activations."""
    decoder: Literal["unit", "free", "normalised"] = "unit"
    """Rows of `W_dec`: kept at unit norm between steps, free, or normalised in every pass."""
    norm: Literal["joint", "sum"] = "joint"
    """Length of a latent that writes several sites: of the whole row, or the sites' lengths added
    (L1-of-norms, Lindsey et al. 2024)."""
    nesting: tuple[PositiveInt, ...] = ()
    """Matryoshka: prefixes of the latents that must each reconstruct alone; the last is all."""
    pre_bias: bool = False
    """Whether `b_dec` is taken from what is read before encoding; needs reads = writes."""
    skip: bool = False
    """Whether a dense linear map `W_skip` runs beside the latents (Paulo et al. 2025)."""
    layer_norm: bool = False
    """Each row is centred and scaled to norm sqrt(width) first, and back afterwards (Gao et al.);
    needs reads = writes."""

    @model_validator(mode="after")
    def _agree(self) -> "DictionarySpec":
        same = [p.width for p in self.reads] == [p.width for p in self.writes]
        if (self.pre_bias or self.layer_norm) and not same:
            raise ValueError(f"{self.name}: pre_bias and layer_norm need reads like its writes")
        k = getattr(self.activation, "k", 1)
        if k > self.n_latents:
            raise ValueError(f"{self.name}: k={k} exceeds its {self.n_latents} latents")
        if self.nesting and (
            sorted(set(self.nesting)) != list(self.nesting) or self.nesting[-1] != self.n_latents
        ):
            raise ValueError(f"{self.name}: nesting must ascend to n_latents={self.n_latents}")
        self._check_encoder(same)
        return self

    def _check_encoder(self, same: bool) -> None:
        encoder, n = self.encoder, self.n_latents
        if isinstance(encoder, Switch) and n % encoder.experts:
            raise ValueError(f"{self.name}: {encoder.experts} experts do not share {n} latents")
        if isinstance(encoder, Kronecker) and n % (encoder.left * encoder.right):
            raise ValueError(
                f"{self.name}: {n} latents are no multiple of {encoder.left} x {encoder.right}"
            )
        if isinstance(encoder, Switch) and not isinstance(self.activation, TopK):
            raise ValueError(f"{self.name}: a switch encoder goes with a topk activation")
        if isinstance(encoder, Pursuit):
            if not isinstance(self.activation, TopK) or self.decoder == "free":
                raise ValueError(f"{self.name}: pursuit goes with topk and unit decoder rows")
            if not same or not self.pre_bias:
                raise ValueError(f"{self.name}: pursuit encodes what it decodes: set pre_bias")
        needs_linear = isinstance(self.activation, Gated | ProLU)
        if needs_linear and not isinstance(encoder, Linear):
            raise ValueError(
                f"{self.name}: {self.activation.kind} has a bias of its own and needs a linear "
                "encoder"
            )

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return sum(port.width for port in self.reads)

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return sum(port.width for port in self.writes)

    @property
    def sites(self) -> list[str]:
        """Every site it needs, once each."""
        return list(dict.fromkeys(port.site for port in (*self.reads, *self.writes)))

    @property
    def sparse(self) -> bool:
        """Whether latents are chosen, so that no dense `[rows, latents]` code exists."""
        return isinstance(self.activation, SPARSE)


def autoencoder(
    site: str, width: int, n_latents: int, activation: Activation, **changes: Any
) -> DictionarySpec:
    """A dictionary that reads and writes one site."""
    port = Port(site=site, width=width)
    return DictionarySpec(
        reads=(port,), writes=(port,), n_latents=n_latents, activation=activation, **changes
    )
