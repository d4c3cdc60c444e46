"""dictionary_learning: `config.json` and `ae.pt`, a torch archive read without unpickling."""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import PositiveInt
from torch import Tensor

from unweave.artifact.atomic import new_file, write_json
from unweave.artifact.tensors import TensorForm
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.foreign_sites import from_numbered, layer_of
from unweave.dictionaries.formats.plain_weights import PlainWeights, plain_weights
from unweave.dictionaries.formats.torch_archive import load_archive
from unweave.errors import UserError

MARK = "ae.pt"
_KINDS = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated"}
_KINDS |= {"JumpReluAutoEncoder": "jumprelu", "AutoEncoderTopK": "topk"}
_KINDS |= {"BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "batchtopk"}
# Names there: encoder matrix, its bias, decoder matrix, its bias. Linear layers hold the encoder
# as [latents, d] and the decoder as [d, latents]; bare parameters the other way round.
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_BARE = ("W_enc", "b_enc", "W_dec", "b_dec")
_NAMES = {"AutoEncoder": (*_LINEAR, "bias"), "AutoEncoderNew": (*_LINEAR, "decoder.bias")}
_NAMES |= {"GatedAutoEncoder": ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias")}
_NAMES |= {"JumpReluAutoEncoder": _BARE, "MatryoshkaBatchTopKSAE": _BARE}
_NAMES |= {"AutoEncoderTopK": (*_LINEAR, "b_dec"), "BatchTopKSAE": (*_LINEAR, "b_dec")}
_NO_PRE_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")
_OWN = {"gated": {"r_mag": "r_mag", "b_mag": "mag_bias"}}
_OWN |= {"jumprelu": {"threshold": "threshold"}, "batchtopk": {"threshold": "threshold"}}


class _Trainer(conf.Foreign):
    dict_class: str
    activation_dim: PositiveInt
    dict_size: PositiveInt
    k: PositiveInt | None = None
    layer: int | None = None
    submodule_name: str | None = None


class _Config(conf.Foreign):
    trainer: _Trainer


def read(folder: Path, name: str) -> Dictionary:
    """The dictionary in a folder that `trainSAE` wrote."""
    path = folder / "config.json"
    trainer = conf.read_json(path, _Config).trainer
    kind = _KINDS.get(trainer.dict_class)
    if kind is None:
        raise UserError(
            f"{path} names the class {trainer.dict_class!r}; known are {', '.join(_KINDS)}"
        )
    found = load_archive(folder / MARK)
    nesting = ()
    if trainer.dict_class.startswith("Matryoshka"):
        sizes = conf.check_shapes(folder / MARK, found, {"group_sizes": TensorForm((None,))})
        nesting = tuple(sizes["group_sizes"].long().cumsum(0).tolist())
    port = {
        "site": from_numbered(trainer.submodule_name, trainer.layer),
        "width": trainer.activation_dim,
    }
    return conf.built(
        path,
        _weights(folder / MARK, found, trainer, kind),
        name=name,
        reads=(port,),
        writes=(port,),
        activation={"kind": kind} | ({"k": trainer.k} if "topk" in kind else {}),
        nesting=nesting,
    )


def _weights(path: Path, found: Mapping[str, Tensor], trainer: _Trainer, kind: str) -> PlainWeights:
    n, d = trainer.dict_size, trainer.activation_dim
    names, bare = _NAMES[trainer.dict_class], _NAMES[trainer.dict_class] == _BARE
    shapes = ((d, n), (n,), (n, d), (d,)) if bare else ((n, d), (n,), (d, n), (d,))
    own = _OWN.get(kind, {})
    one = (n,) if kind != "batchtopk" else ()
    expect = dict(zip(names, map(TensorForm, shapes), strict=True))
    expect |= {theirs: TensorForm(one) for theirs in own.values()}
    given = conf.check_shapes(path, found, expect)
    W_enc, b_enc, W_dec, b_dec = (given[name] for name in names)
    if bare:
        W_enc = W_enc.T
    else:
        W_dec = W_dec.T
    return PlainWeights(
        W_enc.contiguous(),
        b_enc,
        W_dec.contiguous(),
        b_dec,
        pre_bias=trainer.dict_class not in _NO_PRE_BIAS,
        own={ours: given[theirs] for ours, theirs in own.items()},
    )


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary so that `utils.load_dictionary` reads it.

    It brings the decoder rows of an AutoEncoder to unit norm as it reads, so that latents there
    are ours times the length of their row; outputs are the same.
    """
    spec, weights = conf.one_of_each(dictionary, "dictionary_learning"), plain_weights(dictionary)
    kinds = {kind: name for name, kind in _KINDS.items()}
    kinds["relu"] = "AutoEncoder" if spec.pre_bias else "AutoEncoderNew"
    kinds["batchtopk"] = "MatryoshkaBatchTopKSAE" if spec.nesting else "BatchTopKSAE"
    if spec.activation.kind not in kinds or spec.skip or spec.layer_norm or spec.d_in != spec.d_out:
        reason = "it knows autoencoders without skip or layer norm, and no abstopk"
        raise conf.cannot_hold(spec, "dictionary_learning", reason)
    kind, name = spec.activation.kind, kinds[spec.activation.kind]
    weights = weights.with_pre_bias(name not in _NO_PRE_BIAS)
    bare = _NAMES[name] == _BARE
    W_enc = weights.W_enc.T if bare else weights.W_enc
    W_dec = weights.W_dec if bare else weights.W_dec.T
    parts = (W_enc, weights.b_enc, W_dec, weights.b_dec)
    state = dict(zip(_NAMES[name], (t.contiguous() for t in parts), strict=True))
    state |= {theirs: weights.own[ours] for ours, theirs in _OWN.get(kind, {}).items()}
    trainer = {"dict_class": name, "activation_dim": spec.d_in, "dict_size": spec.n_latents}
    trainer |= {"layer": layer_of(spec.writes[0].site), "submodule_name": spec.writes[0].site}
    if "topk" in kind:
        trainer["k"] = conf.k_of(spec)
        state |= {"k": torch.tensor(conf.k_of(spec), dtype=torch.int)}
        state.setdefault("threshold", torch.tensor(-1.0))
    if spec.nesting:
        state["group_sizes"] = torch.tensor([0, *spec.nesting]).diff()
    with new_file(folder / MARK) as partial:
        torch.save(state, partial)
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {}})
