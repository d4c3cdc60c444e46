"""EleutherAI sparsify: `cfg.json` and `sae.safetensors` in a folder named after the hook point."""

from pathlib import Path

from pydantic import PositiveInt

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.foreign_sites import from_module
from unweave.dictionaries.formats.plain_weights import PlainWeights, plain_weights
from unweave.errors import UserError

MARK = "sae.safetensors"


class _Config(conf.Foreign):
    d_in: PositiveInt
    k: PositiveInt
    activation: str = "topk"
    expansion_factor: PositiveInt = 32
    num_latents: int = 0
    skip_connection: bool = False
    transcode: bool = False


def read(folder: Path, name: str) -> Dictionary:
    """The dictionary in a folder that `SparseCoder.save_to_disk` wrote."""
    path = folder / "cfg.json"
    config = conf.read_json(path, _Config)
    if config.activation != "topk":
        raise UserError(f"{path} has the activation {config.activation!r}; only topk can be read")
    d, n = config.d_in, config.num_latents or config.d_in * config.expansion_factor
    expect = {"encoder.weight": TensorForm((n, d)), "encoder.bias": TensorForm((n,))}
    expect |= {"W_dec": TensorForm((n, d)), "b_dec": TensorForm((d,))}
    if config.skip_connection:
        expect["W_skip"] = TensorForm((d, d))
    found = {key: t.float() for key, t in load_tensors(folder / MARK, expect).items()}
    reads, writes = from_module(folder.name, transcoder=config.transcode)
    weights = PlainWeights(
        found["encoder.weight"],
        found["encoder.bias"],
        found["W_dec"],
        found["b_dec"],
        found.get("W_skip"),
        pre_bias=not config.transcode,
    )
    return conf.built(
        path,
        weights,
        name=name,
        reads=({"site": reads, "width": d},),
        writes=({"site": writes, "width": d},),
        activation={"kind": "topk", "k": config.k},
    )


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary so that `SparseCoder.load_from_disk` reads it.

    The folder's name tells sparsify (and `read`) the hook point: `layers.3`, `layers.3.mlp`.
    """
    spec, weights = conf.one_of_each(dictionary, "sparsify"), plain_weights(dictionary)
    if spec.activation.kind != "topk":
        kind = spec.activation.kind
        raise conf.cannot_hold(spec, "sparsify", f"it knows topk only, and this is {kind}")
    if spec.d_in != spec.d_out or spec.layer_norm:
        odd = "a layer norm" if spec.layer_norm else f"widths {spec.d_in} and {spec.d_out}"
        raise conf.cannot_hold(spec, "sparsify", f"it has {odd}")
    transcode = spec.reads[0].site != spec.writes[0].site
    weights = weights.with_pre_bias(not transcode)
    tensors = {"encoder.weight": weights.W_enc, "encoder.bias": weights.b_enc}
    tensors |= {"W_dec": weights.W_dec, "b_dec": weights.b_dec}
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    config: dict[str, object] = {
        "d_in": spec.d_in,
        "num_latents": spec.n_latents,
        "k": conf.k_of(spec),
    }
    config |= {"activation": "topk", "transcode": transcode, "skip_connection": spec.skip}
    config |= {"expansion_factor": 32, "normalize_decoder": True, "multi_topk": False}
    save_tensors(folder / MARK, tensors)
    write_json(folder / "cfg.json", config)
