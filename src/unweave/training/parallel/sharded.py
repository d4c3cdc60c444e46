"""A dictionary of which this process holds every n-th latent.

    y = sum over processes of W_dec_r^T activation(W_enc_r x + b_enc_r)  +  b_dec + W_skip x

Every process sees the same rows and holds its latents' encoder, decoder and Adam moments; `b_dec`
and `W_skip` are the same everywhere. Latents are dealt out in turn, not in blocks, so that nested
prefixes and dictionaries sorted by use load all processes alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec
from unweave.dictionaries.encoder.linear import LinearEncoder
from unweave.dictionaries.shares import ALONE, Shares, shares
from unweave.errors import UserError
from unweave.training.parallel.group import Group, interleaved

PER_LATENT = ("W_enc", "b_enc", "W_dec", "log_threshold")
"""Names of parameters whose first axis is that of latents."""
_ACTIVATIONS = ("topk", "abstopk", "batchtopk", "jumprelu", "relu", "prolu")


class ShardedDictionary(Dictionary):
    """One process's part of `whole`, which says what all of it together is.

    It can only be run within a step that all processes take together; `gathered` makes an ordinary
    dictionary of it.

    Raises:
        UserError: latents that cannot be dealt out: a number that does not divide, an encoder or
            activation whose latents are not independent of each other, a k beyond one share.
    """

    whole = False

    def __init__(self, whole: Dictionary, shards: Group) -> None:
        spec = whole.spec
        _check(spec, shards.size)
        ends = tuple(len(range(shards.rank, end, shards.size)) for end in spec.nesting)
        own = spec.n_latents // shards.size
        super().__init__(spec.model_copy(update={"n_latents": own, "nesting": ends}))
        self.encoder = _Encoder(spec.d_in, own)
        self._shards, self._latents, self._nesting = shards, spec.n_latents, spec.nesting
        self.to(whole.W_dec)
        self.take_(whole)

    @property
    def whole_spec(self) -> DictionarySpec:
        """What the whole dictionary is."""
        changes = {"n_latents": self._latents, "nesting": self._nesting}
        return self.spec.model_copy(update=changes)

    @torch.no_grad()
    def take_(self, whole: Dictionary) -> None:
        """Take one's own latents, and the scales, from a whole dictionary."""
        own = self.state_dict()
        for name, tensor in whole.state_dict().items():
            own[name].copy_(dealt(name, tensor, self._shards))
        sides = whole.spec.reads, whole.spec.writes
        self.rescale_(*([port.scale for port in ports] for ports in sides))

    @torch.no_grad()
    def gathered(self) -> Dictionary:
        """The whole dictionary, in memory and in every process; all must ask for it together."""
        whole = Dictionary(self.whole_spec).to(self.W_dec.dtype)
        into = whole.state_dict()
        for name, tensor in self.state_dict().items():
            mine = per_latent(name)
            into[name].copy_(interleaved(self._shards.gather(tensor)) if mine else tensor)
        return whole.train(self.training)

    def _offset(self, y: Tensor, x: Tensor) -> Tensor:
        return super()._offset(_together().add_up(y), x)

    def _shifted(self, prefixes: Tensor | None, x: Tensor) -> Tensor | None:
        if prefixes is None:
            return None
        return super()._shifted(_together().add_up(prefixes), x)


class _Encoder(LinearEncoder):
    """A linear encoder whose input gets the gradients of all shards."""

    def dense(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
        return super().dense(_together().to_all(x))

    def at(self, x: Float[Tensor, "rows d_in"], *chosen: Any) -> Float[Tensor, " active"]:
        return super().at(_together().to_all(x), *chosen)


def per_latent(name: str) -> bool:
    """Whether a tensor of a state, weight or moment, has one row a latent."""
    parts = name.split(".")
    return parts[0] == "silent" or any(part in PER_LATENT for part in parts)


def dealt(name: str, tensor: Tensor, shards: Group) -> Tensor:
    """This process's part of a tensor of a whole state."""
    mine = per_latent(name) and tensor.ndim > 0
    return tensor[shards.rank :: shards.size].contiguous() if mine else tensor


def joined(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A whole state from those of all shards."""
    return {
        name: interleaved([state[name] for state in states])
        if per_latent(name) and tensor.ndim > 0
        else tensor
        for name, tensor in states[0].items()
    }


def _together() -> Shares:
    answers = shares()
    if answers is ALONE:
        raise UserError("A part of a dictionary says nothing alone: gather the whole one first")
    return answers


def _check(spec: DictionarySpec, shards: int) -> None:
    own, rest = divmod(spec.n_latents, shards)
    if rest:
        raise UserError(
            f"{spec.name}: {spec.n_latents} latents cannot be dealt out to {shards} shards: choose "
            f"a multiple of {shards}"
        )
    if spec.encoder.kind != "linear" or spec.activation.kind not in _ACTIVATIONS:
        raise UserError(
            f"{spec.name}: a {spec.encoder.kind} encoder with {spec.activation.kind} cannot be "
            f"dealt out; shards take a linear encoder with {', '.join(_ACTIVATIONS)}"
        )
    if getattr(spec.activation, "k", 1) > own:
        raise UserError(
            f"{spec.name}: k exceeds the {own} latents of one of {shards} shards: train it in one "
            "process, or with more latents"
        )
