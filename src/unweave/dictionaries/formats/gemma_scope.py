"""Gemma Scope: `params.npz`; Scope 2: `params.safetensors`, lower-case names, `config.json`.

All JumpReLU, matrices [d_in, latents] and [latents, d_out]. Where a dictionary belongs stands in
the path alone: `layer_12/width_16k/average_l0_82`, `resid_post/layer_9_width_16k_l0_small`.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unweave.artifact.atomic import new_file, write_json
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.foreign_sites import UNKNOWN
from unweave.dictionaries.formats.plain_weights import SMALLEST, PlainWeights, plain_weights
from unweave.errors import UserError

MARK, MARK_2 = "params.npz", "params.safetensors"
_WRITTEN = {"mlp": "mlp.out", "att": "attn.z", "transcoder": "mlp.out", "res": "resid_post"}
_SKIP = "affine_skip_connection"


class _Config(conf.Foreign):
    architecture: str


def read(folder: Path, name: str) -> Dictionary:
    """The dictionary in a folder of Gemma Scope or Gemma Scope 2."""
    path = folder / MARK
    if path.exists():
        found = _npz(path)
    else:
        path = folder / MARK_2
        if (folder / "config.json").exists():
            architecture = conf.read_json(folder / "config.json", _Config).architecture
            if architecture != "jump_relu":
                raise UserError(f"{folder} has the architecture {architecture!r}, not jump_relu")
        found = load_tensors(path)
    found = {n.replace("w_enc", "W_enc").replace("w_dec", "W_dec"): t for n, t in found.items()}
    sizes = {"W_enc": TensorForm((None, None)), "b_dec": TensorForm((None,))}
    known = conf.check_shapes(path, found, sizes)
    (d_in, n), (d_out,) = known["W_enc"].shape, known["b_dec"].shape
    expect = {"W_enc": TensorForm((d_in, n)), "W_dec": TensorForm((n, d_out))}
    expect |= {"b_enc": TensorForm((n,)), "b_dec": TensorForm((d_out,))}
    expect |= {"threshold": TensorForm((n,))}
    if _SKIP in found:
        expect[_SKIP] = TensorForm((d_in, d_out))
    given = conf.check_shapes(path, found, expect)
    skip = given[_SKIP].T.contiguous() if _SKIP in given else None
    parts = (given["W_enc"].T.contiguous(), given["b_enc"], given["W_dec"], given["b_dec"])
    reads, writes = _sites(folder, d_in != d_out or skip is not None)
    return conf.built(
        path,
        PlainWeights(*parts, skip, own={"threshold": given["threshold"]}),
        name=name,
        reads=({"site": reads, "width": d_in},),
        writes=({"site": writes, "width": d_out},),
        activation={"kind": "jumprelu"},
    )


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no archive of plain arrays ({error}): fetch or make it again"
        ) from error


def _sites(folder: Path, transcoder: bool) -> tuple[str, str]:
    where = folder.absolute().as_posix()
    layer = re.search(r"layer_(\d+)", where)
    if layer is None:
        return UNKNOWN, UNKNOWN
    kinds = re.findall(r"(transcoder|mlp|att|res)", where)
    block, kind = f"blocks.{layer[1]}", "transcoder" if transcoder else (kinds or ["res"])[-1]
    writes = f"{block}.{_WRITTEN[kind]}"
    return (f"{block}.mlp.in" if kind == "transcoder" else writes), writes


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write `params.npz`, or Scope 2's pair of files for a dictionary with a skip.

    ReLU and BatchTopK become JumpReLUs. The site is not kept: no file has a place for it.
    """
    spec, weights = conf.one_of_each(dictionary, "Gemma Scope"), plain_weights(dictionary)
    if spec.activation.kind not in ("relu", "batchtopk", "jumprelu") or spec.layer_norm:
        odd = "layer norm" if spec.layer_norm else spec.activation.kind
        raise conf.cannot_hold(spec, "Gemma Scope", f"it knows jumprelu only, and no {odd}")
    weights = weights.with_pre_bias(False)
    threshold = weights.own.get("threshold", torch.tensor(SMALLEST)).expand(spec.n_latents)
    tensors = {"W_enc": weights.W_enc.T, "W_dec": weights.W_dec, "threshold": threshold}
    tensors |= {"b_enc": weights.b_enc, "b_dec": weights.b_dec}
    if weights.W_skip is None:
        arrays = {name: t.contiguous().numpy() for name, t in tensors.items()}
        with new_file(folder / MARK) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return
    lower = {name.replace("W_", "w_"): t for name, t in tensors.items()}
    save_tensors(folder / MARK_2, lower | {_SKIP: weights.W_skip.T})
    config = {"architecture": "jump_relu", "affine_connection": True, "model_name": "unknown"}
    write_json(folder / "config.json", config)
