"""Which latent fired at which token, and how strongly: six memory-mapped arrays.

By token (compressed rows): the firings of token t are `latent[a:b]`, `value[a:b]` with
a, b = `token_indptr[t : t + 2]`. By latent (compressed columns), strongest first: the firings of
latent j are `token[a:b]`, `value_by_latent[a:b]` with a, b = `latent_indptr[j : j + 2]`. Token t is
the flat index row * context + position into `firings/tokens.npy`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, Num

from unweave.artifact.arrays import open_array, save_array
from unweave.errors import UserError

# One sortable number holds a firing: latent 20 bits | weakness 15 | token 28 | sign 1.
_LATENT_BITS, _WEAKNESS_BITS, _TOKEN_BITS = 20, 15, 28
_STRONGEST = np.uint64(0x7FFF)
_LARGEST = np.finfo(np.float16).max

FILES = ("token_indptr", "latent", "value", "latent_indptr", "token", "value_by_latent")
"""The arrays of one part, each in a .npy file of that name."""


class Written(NamedTuple):
    """What `write_firings` did with what it was given."""

    kept: int
    """Firings in the files."""
    dropped: int
    """Values that are zero in half precision (below 3e-8): no firing."""
    clipped: int
    """Values beyond half precision, stored as 65504 (or -65504)."""


class Hits(NamedTuple):
    """Some firings of one token or of one latent."""

    place: Int[np.ndarray, " hits"]
    """The latents that fired (of one token) or the tokens they fired at (of one latent)."""
    value: Float[np.ndarray, " hits"]
    """How strongly, in half precision."""


def write_firings(
    folder: Path,
    latent: Int[np.ndarray, " hits"],
    value: Num[np.ndarray, " hits"],
    token_indptr: Int[np.ndarray, " tokens_and_1"],
    n_latents: int,
) -> Written:
    """Write both orders of one part's firings into `folder`.

    `latent` and `value` lie token after token, token t from `token_indptr[t]` to
    `token_indptr[t + 1]`; their order within a token is kept. By latent, equal values come in
    order of tokens. "Strongest" means largest magnitude.
    """
    n_tokens = len(token_indptr) - 1
    _check_input(latent, value, token_indptr, n_latents)
    half, clipped = _as_half(value)
    fires = half != 0
    counts = np.diff(token_indptr)
    token = np.repeat(np.arange(n_tokens, dtype=np.int32), counts)[fires]
    latent, half = latent[fires].astype(np.int32), half[fires]
    key = np.sort(_packed(latent, half, token))
    save_array(folder / "token_indptr.npy", _indptr(np.bincount(token, minlength=n_tokens)))
    save_array(folder / "latent.npy", latent)
    save_array(folder / "value.npy", half)
    save_array(folder / "latent_indptr.npy", _indptr(np.bincount(latent, minlength=n_latents)))
    token, half = _unpacked(key)
    save_array(folder / "token.npy", token)
    save_array(folder / "value_by_latent.npy", half)
    return Written(len(key), int(fires.size - len(key)), clipped)


class Firings:
    """The firings of one part, read from disk as they are asked for."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.token_indptr = arrays["token_indptr"]
        self.latent = arrays["latent"]
        self.value = arrays["value"]
        self.latent_indptr = arrays["latent_indptr"]
        self.token = arrays["token"]
        self.value_by_latent = arrays["value_by_latent"]

    @classmethod
    def open(cls, folder: Path) -> "Firings":
        """Map the six arrays; UserError when one is missing, damaged or of another length."""
        types = (np.int64, np.int32, np.float16, np.int64, np.int32, np.float16)
        arrays = {
            name: open_array(folder / f"{name}.npy", dtype=dtype, ndim=1)
            for name, dtype in zip(FILES, types, strict=True)
        }
        firings = cls(arrays)
        lengths = {len(arrays[name]) for name in ("latent", "value", "token", "value_by_latent")}
        ends = {int(pointers[-1]) for pointers in (firings.token_indptr, firings.latent_indptr)}
        if len(lengths | ends) != 1:
            raise UserError(f"{folder}: its arrays differ in how many firings they hold")
        return firings

    @property
    def n_tokens(self) -> int:
        """Number of tokens covered."""
        return len(self.token_indptr) - 1

    @property
    def n_latents(self) -> int:
        """Number of latents of the part."""
        return len(self.latent_indptr) - 1

    def __len__(self) -> int:
        return len(self.latent)

    def of_token(self, token: int) -> Hits:
        """What fired at one token, in the order it was written."""
        start, stop = self.token_indptr[token], self.token_indptr[token + 1]
        return Hits(self.latent[start:stop], self.value[start:stop])

    def of_latent(self, latent: int, limit: int | None = None) -> Hits:
        """Where one latent fired, strongest first; the `limit` strongest when given."""
        start, stop = self.latent_indptr[latent], self.latent_indptr[latent + 1]
        stop = stop if limit is None else min(stop, start + limit)
        return Hits(self.token[start:stop], self.value_by_latent[start:stop])

    def column(self, latent: int) -> Float32[np.ndarray, " tokens"]:
        """One latent's value at every token, zero where it did not fire."""
        column = np.zeros(self.n_tokens, dtype=np.float32)
        hits = self.of_latent(latent)
        column[hits.place] = hits.value
        return column

    def counts(self) -> Int64[np.ndarray, " latents"]:
        """How often each latent fired."""
        return np.diff(self.latent_indptr)

    def faults(self) -> list[str]:
        """What is inconsistent inside the arrays, a sentence each; empty when nothing is."""
        for name, pointers in (
            ("token_indptr", self.token_indptr),
            ("latent_indptr", self.latent_indptr),
        ):
            if pointers[0] != 0 or np.any(np.diff(pointers) < 0):
                return [f"{name} does not rise from 0"]
        if len(self) == 0:
            return []
        if self.latent.min() < 0 or self.latent.max() >= self.n_latents:
            return [f"latent names one outside 0..{self.n_latents - 1}"]
        if self.token.min() < 0 or self.token.max() >= self.n_tokens:
            return [f"token names one outside 0..{self.n_tokens - 1}"]
        return self._faults_of_orders()

    def _faults_of_orders(self) -> list[str]:
        tokens = np.repeat(np.arange(self.n_tokens, dtype=np.int32), np.diff(self.token_indptr))
        latents = np.repeat(np.arange(self.n_latents, dtype=np.int32), self.counts())
        by_token = np.sort(_packed(self.latent, self.value, tokens))
        by_latent = _packed(latents, self.value_by_latent, self.token)
        found = []
        if not np.array_equal(by_token, by_latent):
            found.append("the order by latent is not that of the order by token, strongest first")
        if not np.isfinite(self.value).all() or np.any(self.value == 0):
            found.append("some values are zero, infinite or NaN")
        pairs = np.sort(self.latent.astype(np.int64) << _TOKEN_BITS | tokens)
        if np.any(pairs[1:] == pairs[:-1]):
            found.append("a latent fires twice at one token")
        return found


def _check_input(
    latent: np.ndarray, value: np.ndarray, token_indptr: np.ndarray, n_latents: int
) -> None:
    n_tokens = len(token_indptr) - 1
    if not 0 <= n_tokens <= 1 << _TOKEN_BITS or not 0 <= n_latents <= 1 << _LATENT_BITS:
        raise ValueError(f"{n_tokens} tokens by {n_latents} latents exceed one part's store")
    if token_indptr[0] != 0 or token_indptr[-1] != len(latent) or np.any(np.diff(token_indptr) < 0):
        raise ValueError("token_indptr must rise from 0 to the number of firings")
    if len(latent) and (latent.min() < 0 or latent.max() >= n_latents):
        raise ValueError(f"a latent lies outside 0..{n_latents - 1}")
    if not np.isfinite(value).all():
        raise ValueError("a firing is NaN or infinite")


def _as_half(value: np.ndarray) -> tuple[np.ndarray, int]:
    beyond = int(np.count_nonzero(np.abs(value) > _LARGEST))
    clipped = np.clip(value, -_LARGEST, _LARGEST) if beyond else value
    return clipped.astype(np.float16), beyond


def _packed(latent: np.ndarray, value: np.ndarray, token: np.ndarray) -> np.ndarray:
    bits = value.view(np.uint16).astype(np.uint64)
    weakness = _STRONGEST - (bits & _STRONGEST)
    key = latent.astype(np.uint64) << np.uint64(_WEAKNESS_BITS) | weakness
    key = key << np.uint64(_TOKEN_BITS) | token.astype(np.uint64)
    return key << np.uint64(1) | bits >> np.uint64(15)


def _unpacked(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sign = (key & np.uint64(1)) << np.uint64(15)
    token = key >> np.uint64(1) & np.uint64((1 << _TOKEN_BITS) - 1)
    weakness = key >> np.uint64(_TOKEN_BITS + 1) & _STRONGEST
    half = (_STRONGEST - weakness | sign).astype(np.uint16).view(np.float16)
    return token.astype(np.int32), half


def _indptr(counts: np.ndarray) -> np.ndarray:
    pointers = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=pointers[1:])
    return pointers
