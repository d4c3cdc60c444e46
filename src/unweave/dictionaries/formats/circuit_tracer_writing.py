"""Write a set of transcoders or a cross-layer transcoder as circuit-tracer lays them out."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import save_tensors
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.circuit_tracer import CLT, MARK, SET, THRESHOLD
from unweave.dictionaries.formats.foreign_sites import layer_of, to_lens
from unweave.dictionaries.formats.plain_weights import PlainWeights, plain_weights
from unweave.errors import UserError

_WHAT = "a circuit-tracer set"


def write(dictionaries: Mapping[str, Dictionary], folder: Path) -> None:
    """Write one dictionary a layer, from layer 0 on; several sites written make it a CLT.

    BatchTopK becomes a JumpReLU. TopK is written with a tensor `k` beside the weights, so that
    circuit-tracer 0.5.0, which would take it for a ReLU, refuses it.

    Raises:
        UserError: a layer is missing, they read or write different sites, or a kind it lacks.
    """
    layers = _by_layer(dictionaries)
    cross = any(len(dictionary.spec.writes) > 1 for dictionary in layers)
    weights = [_plain(dictionary) for dictionary in layers]
    spec = layers[0].spec
    config = {"model_kind": CLT if cross else SET, "model_name": "unknown", "scan": spec.name}
    config["feature_input_hook"] = _hook(spec.reads[0])
    config["feature_output_hook"] = _hook(spec.writes[0])
    activation = {"activation": "topk", "k": conf.k_of(spec)} if _topk(spec) else {}
    if cross:
        _write_clt(layers, weights, folder)
    else:
        for i, (dictionary, plain) in enumerate(zip(layers, weights, strict=True)):
            k = {"k": torch.tensor(conf.k_of(spec))} if _topk(dictionary.spec) else {}
            save_tensors(folder / f"layer_{i}.safetensors", _tensors(plain) | k)
    write_json(folder / MARK, {**config, **activation})  # JSON is YAML too


def _by_layer(dictionaries: Mapping[str, Dictionary]) -> list[Dictionary]:
    found = {layer_of(d.spec.reads[0].site): d for d in dictionaries.values()}
    layers = [found[i] for i in range(len(dictionaries)) if i in found]
    kinds = {
        (tuple(map(_hook, d.spec.reads)), _hook(d.spec.writes[0]), d.spec.activation.kind)
        for d in layers
    }
    if len(layers) != len(dictionaries) or len(kinds) != 1:
        sites = ", ".join(d.spec.reads[0].site for d in dictionaries.values())
        raise UserError(
            f"{_WHAT} has one dictionary for every layer from 0 on, all of one kind and at the "
            f"same place in their blocks; these read {sites}"
        )
    return layers


def _plain(dictionary: Dictionary) -> PlainWeights:
    spec = dictionary.spec
    known = ("relu", "topk", "batchtopk", "jumprelu")
    if spec.activation.kind not in known or spec.layer_norm or len(spec.reads) > 1:
        raise conf.cannot_hold(spec, _WHAT, f"it reads one site, in one of {', '.join(known)}")
    return plain_weights(dictionary).with_pre_bias(False)


def _tensors(plain: PlainWeights) -> dict[str, Tensor]:
    tensors = {"W_enc": plain.W_enc, "W_dec": plain.W_dec}
    tensors |= {"b_enc": plain.b_enc, "b_dec": plain.b_dec}
    if "threshold" in plain.own:
        tensors[THRESHOLD] = plain.own["threshold"].expand(len(plain.b_enc))
    return tensors | ({} if plain.W_skip is None else {"W_skip": plain.W_skip})


def _write_clt(layers: list[Dictionary], weights: list[PlainWeights], folder: Path) -> None:
    count, d = len(layers), layers[0].spec.writes[0].width
    b_dec = torch.zeros(count, d)
    for i, (dictionary, plain) in enumerate(zip(layers, weights, strict=True)):
        places = [layer_of(port.site) for port in dictionary.spec.writes]
        if places != list(range(i, count)) or plain.W_skip is not None or _topk(dictionary.spec):
            reason = "a layer of a cross-layer transcoder writes its own and all later layers"
            raise conf.cannot_hold(dictionary.spec, _WHAT, f"{reason}, without skip or topk")
        b_dec[i:] += plain.b_dec.view(count - i, d)
    for i, plain in enumerate(weights):
        encoder = {f"W_enc_{i}": plain.W_enc, f"b_enc_{i}": plain.b_enc, f"b_dec_{i}": b_dec[i]}
        if "threshold" in plain.own:
            encoder[f"threshold_{i}"] = plain.own["threshold"].expand(len(plain.b_enc))
        save_tensors(folder / f"W_enc_{i}.safetensors", encoder)
        W_dec = plain.W_dec.unflatten(1, (count - i, d))
        save_tensors(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": W_dec})


def _hook(port: Port) -> str:
    hook = to_lens(port.site)
    layer = layer_of(port.site)
    return hook if layer is None else hook.removeprefix(f"blocks.{layer}.")


def _topk(spec: DictionarySpec) -> bool:
    return spec.activation.kind == "topk"
