"""The stricter half of the battery: what a trainable dictionary's spec promises."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary, Pass
from unweave.dictionaries.dictionary_files import load_dictionary, save_dictionary
from unweave.dictionaries.kernels.select import TILE_ROWS
from unweave.validate.battery.allocations import Allocations
from unweave.validate.battery.promises import Broken, NotPromised, Probe, close, require

_STEP = 1e-6
_FEW = 6
"""Rows for finite differences: few enough that no step moves a choice of latents."""


def vectors_for(dictionary: Dictionary, rows: int, *, seed: int) -> Tensor:
    """Raw vectors whose scaled entries are about one in size."""
    drawn = torch.randn(rows, dictionary.spec.d_in, generator=torch.Generator().manual_seed(seed))
    return drawn.to(dictionary.W_dec.dtype) / dictionary.input_scale


def pseudo_gradients(dictionary: Dictionary) -> tuple[str, ...]:
    """Beginnings of the names of parameters whose gradient is given, not derived.

    Thresholds of JumpReLU (and, where it says so, all that feeds them) and ProLU's bias.
    """
    activation = dictionary.spec.activation
    if activation.kind == "prolu":
        return ("encoder.b_enc",)
    if activation.kind != "jumprelu":
        return ()
    everything = ("encoder.", "x", "b_dec") if activation.gradient_to == "all" else ()
    return ("activation.log_threshold", *everything)


def _forward_is_encode_and_decode(probe: Probe) -> None:
    told = probe.decode(probe.code)
    with torch.no_grad():
        called = copy.deepcopy(probe.coder).eval()(probe.x)
    require(close(told, called), "calling it is not decoding what it encodes")


def _forward_keeps_leading_axes(probe: Probe) -> None:
    dictionary = copy.deepcopy(probe.coder).eval()
    with torch.no_grad():
        flat = dictionary(probe.x)
        stacked = dictionary(probe.x.unflatten(0, (2, -1)))
    require(close(stacked.flatten(0, 1), flat), "vectors in rows and columns are read differently")


def _float64_stays_float64(probe: Probe) -> None:
    dictionary = copy.deepcopy(probe.coder).double()
    code = dictionary.encode(probe.x.double())
    require(code.value.dtype == torch.float64, f"a float64 dictionary encodes {code.value.dtype}")
    y = dictionary(probe.x.double())
    require(y.dtype == torch.float64, f"a float64 dictionary writes {y.dtype}")


def _gradients_are_slopes(probe: Probe) -> None:
    dictionary = copy.deepcopy(probe.coder).double().train()
    complaints = []
    for rows in probe.x.split(_FEW)[:3]:
        # A choice of latents may hang by a hair at some rows; a wrong gradient is wrong at all.
        complaint = _wrong_slope(dictionary, rows.double() * dictionary.input_scale)
        if complaint is None:
            return
        complaints.append(complaint)
    raise Broken(complaints[0])


def _wrong_slope(dictionary: Dictionary, x: Tensor) -> str | None:
    named = {"x": x.requires_grad_(), **dict(dictionary.named_parameters())}
    given = pseudo_gradients(dictionary)
    generator = torch.Generator()

    def loss() -> Tensor:
        return _weighted(dictionary.run(x), generator.manual_seed(1))

    gradients = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
    for (name, tensor), gradient in zip(named.items(), gradients, strict=True):
        if name.startswith(given):
            continue
        for seed in range(2):
            generator.manual_seed(seed + 2)
            direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            told = 0.0 if gradient is None else (gradient * direction).sum().item()
            found = _slope(loss, tensor, direction)
            if abs(told - found) > 1e-5 * max(abs(found), 1.0):
                return f"the gradient of {name} says {told:.6g} where the slope is {found:.6g}"
    return None


def _weighted(out: Pass, generator: torch.Generator) -> Tensor:
    """Everything that a pass computes, as one number with fixed random weights."""
    parts = [out.y, out.sparse_code.value if out.code is not None else out.latents, out.prefixes]
    present = [part for part in parts if part is not None]
    drawn = (torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in present)
    return torch.stack([(p * w).sum() for p, w in zip(present, drawn, strict=True)]).sum()


@torch.no_grad()
def _slope(loss: Callable[[], Tensor], at: Tensor, direction: Tensor) -> float:
    start, ends = at.clone(), []
    for step in (_STEP, -_STEP):
        at.copy_(start + step * direction)
        ends.append(loss().item())
    at.copy_(start)
    return (ends[0] - ends[1]) / (2 * _STEP)


def _saved_is_loaded(probe: Probe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_dictionary(probe.coder, Path(folder))
        loaded = load_dictionary(Path(folder))
    require(loaded.spec == probe.coder.spec, "the spec is another after saving and loading")
    mine, theirs = probe.coder.state_dict(), loaded.state_dict()
    require(list(mine) == list(theirs), "tensors are missing after saving and loading")
    for name, tensor in mine.items():
        require(torch.equal(tensor, theirs[name]), f"{name} is another after saving and loading")
    code = loaded.encode(probe.x)
    require(torch.equal(code.dense(), probe.code.dense()), "it encodes differently once loaded")


def _chosen_are_as_many_as_promised(probe: Probe) -> None:
    spec, counts = probe.coder.spec, probe.code.support.offsets.diff()
    kind, k = spec.activation.kind, getattr(spec.activation, "k", 0)
    if kind in ("topk", "abstopk"):
        require(bool((counts == k).all()), f"rows have {counts.unique().tolist()} latents, k={k}")
        return
    if kind != "batchtopk":
        raise NotPromised(f"{kind} promises no number of latents")
    dictionary = copy.deepcopy(probe.coder).train()
    for seed in range(40):
        x = vectors_for(dictionary, 256, seed=seed) * dictionary.input_scale
        with torch.no_grad():
            code = dictionary.run(x).sparse_code
    promised = min(k * 256, int((_dense_scores(dictionary, x) > 0).sum()))
    require(len(code.value) == promised, f"{len(code.value)} latents in a batch, not {promised}")
    later = dictionary.encode(vectors_for(dictionary, 2048, seed=99)).l0()
    require(
        abs(later - promised / 256) <= 0.15 * promised / 256 + 0.5,
        f"by its threshold {later:.2f} latents per row are active, not {promised / 256:.2f}",
    )


def _strongest_are_chosen(probe: Probe) -> None:
    dictionary, code = probe.coder, probe.code
    kind = dictionary.spec.activation.kind
    scores = _dense_scores(dictionary, probe.x * dictionary.input_scale)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[code.support.row, code.support.latent] = True
    size = scores.abs() if kind == "abstopk" else scores
    if kind in ("topk", "abstopk"):
        least = torch.where(chosen, size, torch.inf).amin(1)
        best = torch.where(chosen, -torch.inf, size).amax(1)
        slack = 1e-5 * size.abs().amax()
        require(bool((least >= best - slack).all()), "a latent is left out for a weaker one")
    elif kind in ("batchtopk", "jumprelu"):
        away = (scores - dictionary.activation.threshold).abs() > 1e-5 * size.abs().amax()
        above = (scores > dictionary.activation.threshold) & (scores != 0)
        require(bool((above == chosen)[away].all()), "active are not those above the threshold")
    else:
        raise NotPromised(f"{kind} chooses nothing")


def _signs_are_as_promised(probe: Probe) -> None:
    if probe.coder.spec.activation.kind == "abstopk":
        raise NotPromised("abstopk takes both signs")
    require(bool((probe.code.value >= 0).all()), "a latent is negative")


def _dense_scores(dictionary: Dictionary, scaled: Tensor) -> Tensor:
    """Pre-activations of all latents, for a dictionary that can say them."""
    dense = getattr(dictionary.encoder, "dense", None)
    if dense is None or dictionary.spec.layer_norm:
        raise NotPromised("its encoder has no dense form to compare with")
    with torch.no_grad():
        return dense(scaled - dictionary.b_dec if dictionary.spec.pre_bias else scaled)


def _nothing_dense_is_created(probe: Probe) -> None:
    """Encoding creates a tile of scores at most; so does training where latents are chosen.

    A batch-wide choice has to see all scores of its batch, once, but gradients must not.
    """
    dictionary: Any = copy.deepcopy(probe.coder).train()
    spec, rows = dictionary.spec, 3 * TILE_ROWS
    if spec.n_latents < 3 * max(spec.d_in, spec.d_out * max(1, len(spec.nesting))):
        raise NotPromised("too few latents to tell a code from vectors: widen it")
    bound = TILE_ROWS * spec.n_latents
    x = vectors_for(dictionary, rows, seed=0)
    with Allocations() as seen:
        code = dictionary.encode(x)
    _within(seen, max(bound, len(code.value)), "encoding")
    if not spec.sparse:
        return
    with Allocations() as seen:
        y = dictionary(x)
    if spec.activation.kind != "batchtopk":
        _within(seen, bound, "the forward pass")
    with Allocations() as seen:
        y.square().sum().backward()
    _within(seen, bound, "the backward pass")


def _within(seen: Allocations, bound: int, where: str) -> None:
    if seen.largest > bound:
        raise Broken(f"{where} creates a tensor of {seen.largest} elements: {seen.operation}")


TRAINABLE_CHECKS: dict[str, Callable[[Probe], None]] = {
    "forward_is_encode_and_decode": _forward_is_encode_and_decode,
    "forward_keeps_leading_axes": _forward_keeps_leading_axes,
    "float64_stays_float64": _float64_stays_float64,
    "gradients_are_slopes": _gradients_are_slopes,
    "saved_is_loaded": _saved_is_loaded,
    "chosen_are_as_many_as_promised": _chosen_are_as_many_as_promised,
    "strongest_are_chosen": _strongest_are_chosen,
    "signs_are_as_promised": _signs_are_as_promised,
    "nothing_dense_is_created": _nothing_dense_is_created,
}
"""What is promised by a `Dictionary`, beyond what `check_dictionary` asks of everybody."""
