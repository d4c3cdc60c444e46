"""SAELens: `cfg.json` and `sae_weights.safetensors`; W_enc is [d_in, latents] there."""

from pathlib import Path

from pydantic import PositiveFloat, PositiveInt, model_validator

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import TensorForm, load_tensors, save_tensors
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import configuration as conf
from unweave.dictionaries.formats.foreign_sites import from_lens, to_lens
from unweave.dictionaries.formats.plain_weights import PlainWeights, plain_weights
from unweave.errors import UserError

MARK = "sae_weights.safetensors"
_KINDS = {"standard": "relu", "topk": "topk", "abstopk": "abstopk", "jumprelu": "jumprelu"}
_KINDS |= {"gated": "gated", "transcoder": "relu", "skip_transcoder": "relu"}
_KINDS |= {"jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu"}
_OWN = {"gated": ("b_mag", "r_mag"), "jumprelu": ("threshold",)}


class _Places(conf.Foreign):
    hook_name: str | None = None
    hook_name_out: str | None = None


class _Config(conf.Foreign):
    architecture: str = "standard"
    d_in: PositiveInt
    d_sae: PositiveInt
    d_out: PositiveInt | None = None
    k: PositiveInt | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    rescale_acts_by_decoder_norm: bool = False
    metadata: _Places = _Places()

    @model_validator(mode="before")
    @classmethod
    def _modern(cls, given: object) -> object:
        """Before version 6 all lay on one level, and TopK was a function of the standard SAE."""
        if not isinstance(given, dict) or "metadata" in given:
            return given
        now = {**given, "metadata": {"hook_name": given.get("hook_name", given.get("hook_point"))}}
        if given.get("activation_fn_str", given.get("activation_fn")) == "topk":
            now |= {"architecture": "topk", **(given.get("activation_fn_kwargs") or {})}
        asked = given.get("normalize_activations")
        return now | ({"normalize_activations": "none"} if asked in (None, False) else {})


class _Scaler(conf.Foreign):
    scaling_factor: PositiveFloat


def read(folder: Path, name: str) -> Dictionary:
    """The dictionary in a folder that `save_model` or `save_inference_model` wrote."""
    path = folder / "cfg.json"
    config = conf.read_json(path, _Config)
    kind, transcoder = _KINDS.get(config.architecture), "transcoder" in config.architecture
    if kind is None:
        raise UserError(
            f"{path} names the architecture {config.architecture!r}; known are {', '.join(_KINDS)} "
            "(a training checkpoint becomes one of these by save_inference_model)"
        )
    weights = _weights(folder, config, kind)
    if config.rescale_acts_by_decoder_norm:
        weights = weights.with_unit_rows()
    layer_norm = config.normalize_activations == "layer_norm"
    if layer_norm:  # whose variance has d - 1 in it, and d here
        factor = (1 - 1 / config.d_in) ** 0.5
        weights = weights.between_scales(factor, factor)
    site = from_lens(config.metadata.hook_name)
    out = from_lens(config.metadata.hook_name_out) if transcoder else site
    scale = _scale(folder, config.normalize_activations)
    return conf.built(
        path,
        weights,
        name=name,
        reads=({"site": site, "width": config.d_in, "scale": scale},),
        writes=({"site": out, "width": len(weights.b_dec), "scale": scale},),
        activation={"kind": kind} | ({"k": config.k} if "topk" in kind else {}),
        layer_norm=layer_norm,
    )


def _weights(folder: Path, config: _Config, kind: str) -> PlainWeights:
    n, d_in, d_out = config.d_sae, config.d_in, config.d_out or config.d_in
    bias, own = "b_gate" if kind == "gated" else "b_enc", _OWN.get(kind, ())
    expect = {name: TensorForm((n,)) for name in (bias, *own)} | {"b_dec": TensorForm((d_out,))}
    expect |= {"W_enc": TensorForm((d_in, n)), "W_dec": TensorForm((n, d_out))}
    if "skip" in config.architecture:
        expect["W_skip"] = TensorForm((d_out, d_in))
    found = {name: t.float() for name, t in load_tensors(folder / MARK, expect).items()}
    pre_bias = config.apply_b_dec_to_input and "transcoder" not in config.architecture
    parts = (found["W_enc"].T.contiguous(), found[bias], found["W_dec"], found["b_dec"])
    return PlainWeights(*parts, found.get("W_skip"), pre_bias, {name: found[name] for name in own})


def _scale(folder: Path, normalisation: str) -> float:
    path = folder / "activation_scaler.json"
    if normalisation == "expected_average_only_in" and path.exists():
        return conf.read_json(path, _Scaler).scaling_factor
    if normalisation not in ("none", "layer_norm"):
        raise UserError(
            f"{folder} was trained on inputs normalised by {normalisation}, and how is not in the "
            "folder; fold it into the weights first (SAELens: fold_activation_norm_scaling_factor)"
        )
    return 1.0


def write(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary so that `SAE.load_from_disk` reads it.

    BatchTopK becomes a JumpReLU, as SAELens has it; a nesting is not kept.
    """
    spec, weights = conf.one_of_each(dictionary, "SAELens"), plain_weights(dictionary)
    kind = {"batchtopk": "jumprelu"}.get(spec.activation.kind, spec.activation.kind)
    reads, writes = spec.reads[0], spec.writes[0]
    name = {"relu": "standard"}.get(kind, kind)
    if spec.skip or (reads.site, reads.width) != (writes.site, writes.width):
        if kind not in ("relu", "jumprelu"):
            raise conf.cannot_hold(spec, "SAELens", f"it has no transcoder of kind {kind}")
        kinds = ["jumprelu"] * (kind == "jumprelu") + ["skip"] * spec.skip + ["transcoder"]
        name, weights = "_".join(kinds), weights.with_pre_bias(False)
        if spec.layer_norm:
            raise conf.cannot_hold(spec, "SAELens", "its transcoders have no layer norm")
    if spec.layer_norm:
        factor = (1 - 1 / spec.d_in) ** -0.5
        weights = weights.between_scales(factor, factor)
    meta = {"sae_lens_version": "6.0.0", "hook_name": to_lens(reads.site)}
    config: dict[str, object] = {"d_in": spec.d_in, "d_sae": spec.n_latents, "architecture": name}
    config |= {"dtype": "float32", "device": "cpu", "reshape_activations": "none"}
    config |= {"normalize_activations": "layer_norm" if spec.layer_norm else "none"}
    config |= {"apply_b_dec_to_input": weights.pre_bias, "metadata": meta}
    if "topk" in kind:
        config["k"] = conf.k_of(spec)
    if "transcoder" in name:
        config |= {"d_out": spec.d_out, "metadata": {**meta, "hook_name_out": to_lens(writes.site)}}
    tensors = {"W_enc": weights.W_enc.T, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
    tensors |= {"b_gate" if kind == "gated" else "b_enc": weights.b_enc}
    tensors |= {own: t.expand(spec.n_latents) for own, t in weights.own.items()}
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    save_tensors(folder / MARK, tensors)
    write_json(folder / "cfg.json", config)
