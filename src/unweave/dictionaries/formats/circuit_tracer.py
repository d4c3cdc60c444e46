"""circuit-tracer: `config.yaml` and a file per layer of a transcoder set, or two of a CLT.

A set's `layer_{i}.safetensors` holds one transcoder, W_enc [latents, d]. A cross-layer transcoder
has `W_enc_{i}.safetensors` and `W_dec_{i}.safetensors`, W_dec [latents, layers - i, d]; here it is
one dictionary per layer, which reads one site and writes that layer's and all later ones. What
layer i is to be is the sum of what dictionaries 0 to i write there.
"""

from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import PositiveInt

from unweave.artifact.tensors import TensorForm, load_tensors, tensor_shapes
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.foreign_sites import from_lens
from unweave.dictionaries.formats.plain_weights import PlainWeights
from unweave.errors import UserError

MARK = "config.yaml"
SET, CLT = "transcoder_set", "cross_layer_transcoder"
THRESHOLD = "activation_function.threshold"


class _Config(conf.Foreign):
    model_kind: Literal["transcoder_set", "cross_layer_transcoder"]
    feature_input_hook: str
    feature_output_hook: str
    transcoders: list[str] | None = None
    activation: str | None = None
    k: PositiveInt | None = None


def read(folder: Path, name: str) -> dict[str, Dictionary]:
    """All layers of a set or a cross-layer transcoder, by the part they stand for (`L3.mlp`)."""
    path = folder / MARK
    try:
        content = yaml.safe_load(conf.config_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: fetch or make it again") from error
    config = conf.checked(path, content, _Config)
    if config.transcoders is not None:
        raise UserError(
            f"{path} lists its transcoders as addresses elsewhere; bring them here as "
            "layer_0.safetensors, layer_1.safetensors, ... and take the list out"
        )
    first = "layer_" if config.model_kind == SET else "W_enc_"
    layers = len(list(folder.glob(f"{first}*.safetensors")))
    if not layers:
        raise UserError(f"{folder} has a {MARK} but no {first}0.safetensors beside it")
    one = _transcoder if config.model_kind == SET else _clt_layer
    return {f"L{i}.mlp": one(folder, config, i, layers) for i in range(layers)}


def _transcoder(folder: Path, config: _Config, layer: int, layers: int) -> Dictionary:
    path = folder / f"layer_{layer}.safetensors"
    shapes = tensor_shapes(path)
    (n,), (d_out,) = (shapes.get(name, (0,)) for name in ("b_enc", "b_dec"))
    d_in = shapes.get("W_enc", (0, 0))[-1]
    expect = {"W_enc": TensorForm((n, d_in)), "b_enc": TensorForm((n,))}
    expect |= {"W_dec": TensorForm((n, d_out)), "b_dec": TensorForm((d_out,))}
    more = {"W_skip": (d_out, d_in), THRESHOLD: (n,), "k": ()}
    expect |= {name: TensorForm(shape) for name, shape in more.items() if name in shapes}
    found = {name: t.float() for name, t in load_tensors(path, expect).items()}
    own = {"threshold": found[THRESHOLD]} if THRESHOLD in found else {}
    parts = (found["W_enc"], found["b_enc"], found["W_dec"], found["b_dec"])
    weights = PlainWeights(*parts, found.get("W_skip"), own=own)
    return _built(path, config, weights, layer, layer + 1)


def _clt_layer(folder: Path, config: _Config, layer: int, layers: int) -> Dictionary:
    path, later = folder / f"W_enc_{layer}.safetensors", layers - layer
    shapes = tensor_shapes(path)
    n, d = shapes.get(f"W_enc_{layer}", (0, 0))
    expect = {f"W_enc_{layer}": TensorForm((n, d)), f"b_enc_{layer}": TensorForm((n,))}
    expect[f"b_dec_{layer}"] = TensorForm((d,))
    if f"threshold_{layer}" in shapes:
        expect[f"threshold_{layer}"] = TensorForm((n,))
    found = {
        name.removesuffix(f"_{layer}"): t.float() for name, t in load_tensors(path, expect).items()
    }
    decoder = {f"W_dec_{layer}": TensorForm((n, later, d))}
    W_dec = load_tensors(folder / f"W_dec_{layer}.safetensors", decoder)[f"W_dec_{layer}"].float()
    b_dec = torch.cat([found["b_dec"], torch.zeros((later - 1) * d)])
    own = {"threshold": found["threshold"]} if "threshold" in found else {}
    weights = PlainWeights(found["W_enc"], found["b_enc"], W_dec.flatten(1), b_dec, own=own)
    return _built(path, config, weights, layer, layers)


def _built(path: Path, config: _Config, weights: PlainWeights, layer: int, end: int) -> Dictionary:
    threshold = weights.own.get("threshold")
    if threshold is not None and bool((threshold < 0).any()):
        raise UserError(f"{path} has thresholds below zero, which would let negative latents fire")
    kind = "relu" if threshold is None else "jumprelu"
    activation = {"kind": "topk", "k": config.k} if config.activation == "topk" else {"kind": kind}
    width = weights.W_dec.shape[1] // (end - layer)
    place = (from_lens(f"blocks.{layer}.{config.feature_input_hook}"), weights.W_enc.shape[1])
    hooks = [f"blocks.{i}.{config.feature_output_hook}" for i in range(layer, end)]
    return conf.built(
        path,
        weights,
        name=f"L{layer}.mlp",
        reads=({"site": place[0], "width": place[1]},),
        writes=tuple({"site": from_lens(hook), "width": width} for hook in hooks),
        activation=activation,
    )
