"""What is promised by anything that can be measured as a dictionary: the protocol `Coder`."""

from collections.abc import Callable

import torch

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.validate.battery.promises import Broken, Probe, close, require


def _code_is_ragged(probe: Probe) -> None:
    code, coder, rows = probe.code, probe.coder, len(probe.x)
    require(isinstance(code, SparseCode), f"encode returns a {type(code).__name__}")
    offsets, latent = code.support.offsets, code.support.latent
    require(code.n_latents == coder.n_latents, "the code's width is not n_latents")
    require(code.support.rows == rows, f"{code.support.rows} rows for {rows} vectors")
    require(not latent.dtype.is_floating_point, f"latents are {latent.dtype}")
    ascend = int(offsets[0]) == 0 and bool((offsets.diff() >= 0).all())
    require(ascend, "offsets do not ascend from 0")
    entries = int(offsets[-1])
    require(entries == len(latent) == len(code.value), "offsets do not end with the entries")
    inside = bool(((latent >= 0) & (latent < coder.n_latents)).all())
    require(inside, "a latent's number is outside the dictionary")
    place = (code.support.row * code.n_latents + latent)[code.value != 0]
    require(len(place.unique()) == len(place), "a latent has two entries in one row")


def _values_are_numbers(probe: Probe) -> None:
    value = probe.code.value
    require(value.dtype == probe.x.dtype, f"values are {value.dtype} for {probe.x.dtype} vectors")
    require(bool(value.isfinite().all()), "a value is not finite")
    require(not value.requires_grad, "encode carries gradients")


def _decode_has_the_output_shape(probe: Probe) -> None:
    y, written = probe.decode(probe.code), probe.coder.directions()
    require(len(written) == probe.coder.n_latents, f"{len(written)} directions")
    wanted = (len(probe.x), written.shape[1])
    require(tuple(y.shape) == wanted, f"decode gives {tuple(y.shape)} instead of {wanted}")
    require(y.dtype == probe.x.dtype, f"decode gives {y.dtype} for {probe.x.dtype} vectors")
    require(bool(y.isfinite().all()), "decode gives something that is not finite")


def _decode_adds_directions(probe: Probe) -> None:
    code, written = probe.code, probe.coder.directions()
    empty = SparseCode.from_dense(torch.zeros_like(code.dense()))
    told = probe.decode(code) - probe.decode(empty)
    require(
        close(told, code.dense().to(written.dtype) @ written),
        "what decode adds for a code is not the sum of its directions, weighted",
    )


def _encode_repeats(probe: Probe) -> None:
    again = probe.coder.encode(probe.x)
    require(_same(again, probe.code), "encoding the same vectors twice gives two codes")
    other = probe.make().encode(probe.x)
    require(_same(other, probe.code), "built twice, it encodes the same vectors differently")


def _rows_are_independent(probe: Probe) -> None:
    some = slice(3, max(4, len(probe.x) // 2))
    alone = probe.coder.encode(probe.x[some]).dense()
    require(
        close(alone, probe.code.dense()[some]),
        "a vector's code depends on the vectors encoded with it",
    )


def _nothing_gives_nothing(probe: Probe) -> None:
    code = probe.coder.encode(probe.x[:0])
    require(code.support.rows == 0 and not len(code.value), "no vectors give a code with entries")
    require(len(probe.decode(code)) == 0, "a code of no rows decodes to something")


def _input_is_left_alone(probe: Probe) -> None:
    x = probe.x.clone()
    code = probe.coder.encode(x)
    before = code.value.clone()
    require(torch.equal(x, probe.x), "encode changes the vectors it is given")
    probe.decode(code)
    require(torch.equal(code.value, before), "decode changes the code it is given")


def _wrong_width_is_refused(probe: Probe) -> None:
    wide = torch.cat([probe.x, probe.x[:, :1]], 1)
    try:
        probe.coder.encode(wide)
    except UserError:
        return
    except Exception as error:
        raise Broken(
            f"vectors of the wrong width raise {type(error).__name__}, not a UserError"
        ) from error
    raise Broken("vectors of the wrong width are encoded without complaint")


def _same(left: SparseCode, right: SparseCode) -> bool:
    pairs = (
        (left.support.offsets, right.support.offsets),
        (left.support.latent, right.support.latent),
        (left.value, right.value),
    )
    return all(torch.equal(a, b) for a, b in pairs)


CODER_CHECKS: dict[str, Callable[[Probe], None]] = {
    "code_is_ragged": _code_is_ragged,
    "values_are_numbers": _values_are_numbers,
    "decode_has_the_output_shape": _decode_has_the_output_shape,
    "decode_adds_directions": _decode_adds_directions,
    "encode_repeats": _encode_repeats,
    "rows_are_independent": _rows_are_independent,
    "nothing_gives_nothing": _nothing_gives_nothing,
    "input_is_left_alone": _input_is_left_alone,
    "wrong_width_is_refused": _wrong_width_is_refused,
}
"""By name, in the order in which they run."""
