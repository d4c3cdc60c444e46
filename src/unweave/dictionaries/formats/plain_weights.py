"""A dictionary's numbers with everything folded in: what all foreign formats have in common.

In raw units, without scales, with the decoder rows as they are used:

    pre = W_enc (x - b_dec if pre_bias else x) + b_enc
    y = W_dec^T activation(pre) + b_dec + W_skip x
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec
from unweave.errors import UserError

SMALLEST = 1e-30
"""The threshold that stands for zero or less: a JumpReLU's are kept as logarithms."""
SETTLED = 1e6
"""Batches that a threshold from elsewhere counts for, so that more training moves it slowly."""


@dataclass(frozen=True)
class PlainWeights:
    """The tensors of one dictionary, float32."""

    W_enc: Float[Tensor, "latents d_in"]
    b_enc: Float[Tensor, " latents"]
    W_dec: Float[Tensor, "latents d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    pre_bias: bool = False
    """Whether `b_dec` is taken from the input first."""
    own: Mapping[str, Tensor] = field(default_factory=dict)
    """The activation's: `threshold` [latents] or [] (JumpReLU, BatchTopK); `r_mag`, `b_mag`
    [latents] (Gated, whose gate has `b_enc`)."""

    def with_pre_bias(self, wanted: bool) -> "PlainWeights":
        """The same function, with or without `b_dec` taken from the input."""
        if wanted == self.pre_bias:
            return self
        shift = self.W_enc @ self.b_dec * (1 if wanted else -1)
        own = dict(self.own)
        if "b_mag" in own:
            own["b_mag"] = own["b_mag"] + own["r_mag"].exp() * shift
        return replace(self, b_enc=self.b_enc + shift, own=own, pre_bias=wanted)

    def between_scales(self, read: float | Tensor, write: float | Tensor) -> "PlainWeights":
        """What these weights become when `read x` comes in and `write y` is to come out.

        With a `pre_bias` the two must be equal.
        """
        skip, out = self.W_skip, torch.as_tensor(write).view(-1, 1)
        return replace(
            self,
            W_enc=self.W_enc * read,
            W_dec=self.W_dec / write,
            b_dec=self.b_dec / write,
            W_skip=None if skip is None else skip * read / out,
        )

    def with_unit_rows(self) -> "PlainWeights":
        """The same function with decoder rows of unit norm: pre-activations in their units.

        Exact for latents that scale with their pre-activation (ReLU, and TopK trained this way).
        """
        length = self.W_dec.norm(dim=1).clamp_min(SMALLEST)
        return replace(
            self,
            W_enc=self.W_enc * length[:, None],
            b_enc=self.b_enc * length,
            W_dec=self.W_dec / length[:, None],
        )


def dictionary_of(spec: DictionarySpec, weights: PlainWeights) -> Dictionary:
    """The dictionary that `spec` describes, with these weights in the units of its ports."""
    dictionary = Dictionary(spec)
    state = {
        "encoder.W_enc": weights.W_enc,
        "encoder.b_enc": weights.b_enc,
        "W_dec": weights.W_dec,
        "b_dec": weights.b_dec,
    }
    if weights.W_skip is not None:
        state["W_skip"] = weights.W_skip
    threshold = weights.own.get("threshold")
    if spec.activation.kind == "jumprelu":
        assert threshold is not None
        thresholds = threshold.expand(spec.n_latents).clamp_min(SMALLEST)
        state["activation.log_threshold"] = thresholds.log()
    elif spec.activation.kind == "batchtopk":
        assert threshold is not None
        state["activation.threshold"] = threshold.clamp_min(0)
        state["activation.batches"] = torch.tensor(SETTLED)
    elif spec.activation.kind == "gated":
        state |= {f"activation.{name}": weights.own[name] for name in ("r_mag", "b_mag")}
    dictionary.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return dictionary.eval()


@torch.no_grad()
def plain_weights(dictionary: Dictionary) -> PlainWeights:
    """The weights with the ports' scales and a normalised decoder folded in.

    Raises:
        UserError: an encoder or an activation that no foreign format knows.
    """
    spec = dictionary.spec
    if spec.encoder.kind != "linear" or spec.activation.kind == "prolu":
        odd = spec.encoder.kind if spec.encoder.kind != "linear" else "prolu"
        raise UserError(f"{spec.name} is of kind {odd}, which no foreign format can hold")
    weights = PlainWeights(
        dictionary.W_enc.detach(),
        dictionary.b_enc.detach(),
        dictionary.decoder().detach(),
        dictionary.b_dec.detach(),
        None if dictionary.W_skip is None else dictionary.W_skip.detach(),
        spec.pre_bias,
        _own(dictionary),
    )
    read, write = dictionary.input_scale, dictionary.output_scale
    if not torch.equal(read, write):
        if spec.layer_norm:
            raise UserError(f"{spec.name} has a layer norm between unequal scales: train it again")
        weights = weights.with_pre_bias(False)
    if spec.layer_norm:  # which takes out one common scale by itself
        return weights
    return weights.between_scales(read, write)


def _own(dictionary: Dictionary) -> dict[str, Tensor]:
    activation, kind = dictionary.activation, dictionary.spec.activation.kind
    if kind in ("jumprelu", "batchtopk"):
        return {"threshold": activation.threshold.detach()}
    if kind == "gated":
        return {name: getattr(activation, name).detach() for name in ("r_mag", "b_mag")}
    return {}
