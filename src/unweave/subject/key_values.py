"""A key-value cache with room set aside: a step writes its keys and values, and copies no others.

Laying each step's keys behind a fresh copy of all earlier ones is most of the time that a small
network takes to write.
"""

import inspect

from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class _RoomyLayer(DynamicLayer):
    """Keys and values of one block, views of the filled part of larger tensors."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._store: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in keys and values [batch, heads, new, d_head]; give all there are."""
        before = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        after = before + key_states.shape[-2]
        if not self._store:
            self._store = [
                new.new_empty(*new.shape[:2], self._room, new.shape[-1])
                for new in (key_states, value_states)
            ]
        for store, new in zip(self._store, (key_states, value_states), strict=True):
            store[:, :, before:after] = new
        self.keys, self.values = (store[:, :, :after] for store in self._store)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        filled = self.get_seq_length()
        if self._store:
            self._store = [store[indices] for store in self._store]
            self.keys, self.values = (store[:, :, :filled] for store in self._store)


def roomy_cache(config: PretrainedConfig, room: int) -> DynamicCache:
    """A cache for `room` positions; blocks with a sliding window keep the layers they ask for."""
    cache = DynamicCache(config=config)
    cache.layers = [
        _RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """A cache for any number of positions, which is copied as it grows."""
    return DynamicCache(config=config)


def cache_argument(model: nn.Module) -> str:
    """What the model calls its cache: `cache`, or `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
