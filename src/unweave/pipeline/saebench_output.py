"""Results in the JSON layout of SAEBench, for whatever reads its files.

Field names are those of `saebench_eval_output_schema_*.json` (sae-bench 0.6.0). Where the published
code computes something else than its name says, its number stands there, as comparisons need it.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, cast

from unweave.artifact.atomic import Json
from unweave.pipeline.saebench_others import (
    absorption_layout,
    autointerp_layout,
    ravel_layout,
    unlearning_layout,
)
from unweave.pipeline.suite_records import SuiteRun
from unweave.validate.protocols.protocol import Outcome


def saebench_output(outcome: Outcome, run: SuiteRun) -> Json | None:
    """The outcome in SAEBench's layout; None for a protocol that it has no layout for."""
    write = _WRITERS.get(outcome.protocol)
    if write is None:
        return None
    name = f"{run.dictionary_sha256} {outcome.protocol} {run.settings}"
    return {
        "eval_type_id": outcome.protocol,
        "eval_id": str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        "datetime_epoch_millis": run.begun_ms,
        "sae_bench_commit_hash": f"unweave {run.version}",
        "sae_lens_id": run.dictionary,
        "sae_lens_release_id": "unweave",
        "sae_lens_version": None,
        "sae_cfg_dict": {"model_name": run.subject, "hook_name": run.site},
        "eval_result_unstructured": {"controls": _values(outcome.controls)},
        **write(outcome, run),
    }


def _values(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {name: number.value for name, number in numbers.items()}


def _core(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    got = _values(outcome.numbers)
    details = cast(Mapping[str, Any], outcome.details)
    got |= {
        "explained_variance": got.get("explained_variance_as_published", -1.0),
        "mse": got.get("mse_as_published", -1.0),
        "total_tokens_eval_reconstruction": details["loss_tokens"],
        "total_tokens_eval_sparsity_variance": details["vector_tokens"],
    }
    settings = details["settings"]
    row = settings["context"] * settings["batch"]
    return {
        "eval_config": {
            "model_name": run.subject, "dataset": details["text"],
            "batch_size_prompts": settings["batch"], "context_size": settings["context"],
            "n_eval_reconstruction_batches": -(-details["loss_tokens"] // row),
            "n_eval_sparsity_variance_batches": -(-details["vector_tokens"] // row),
            "exclude_special_tokens_from_reconstruction": True,
            **{f"compute_{what}": True for what in _COMPUTED},
        },
        "eval_result_metrics": {
            group: {name: got.get(name, -1.0) for name in names} for group, names in _CORE.items()
        },
        "eval_result_details": [],
    }  # fmt: skip


def _sparse_probing(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    details = cast(Mapping[str, Any], outcome.details)
    settings, by_set = details["settings"], details["by_set_and_class"]

    def parts(values: Mapping[str, float], *prefixes: str) -> dict[str, float]:
        kept = (f"{p}_test_accuracy" for p in prefixes), (f"{p}_top_" for p in prefixes)
        names, tops = tuple(kept[0]), tuple(kept[1])
        return {n: v for n, v in values.items() if n in names or n.startswith(tops)}

    means = {
        name: {key: sum(c[key] for c in classes.values()) / len(classes) for key in first}
        for name, classes in by_set.items()
        for first in [next(iter(classes.values()))]
    }
    got = _values(outcome.numbers)
    return {
        "eval_config": {
            "random_seed": run.settings["seed"], "dataset_names": list(by_set),
            "probe_train_set_size": settings["train"], "probe_test_set_size": settings["test"],
            "context_length": settings["context"], "llm_dtype": "float32",
            "model_name": run.subject, "k_values": list(settings["k"]),
        },
        "eval_result_metrics": {"llm": parts(got, "llm"), "sae": parts(got, "sae")},
        "eval_result_details": [
            {"dataset_name": name, **parts(values, "llm", "sae")} for name, values in means.items()
        ],
    }  # fmt: skip


def _ablation(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    details = cast(Mapping[str, Any], outcome.details)
    settings, kind = details["settings"], outcome.protocol
    if kind == "tpp":
        sets = details["by_set"]
    else:
        sets = {
            f"{name}_scr_{pair.replace(' / ', '_')}": values
            for name, pairs in details["by_set_and_pair"].items()
            for pair, values in pairs.items()
        }

    def parts(values: Mapping[str, float]) -> dict[str, float]:
        return {n: v for n, v in values.items() if n.startswith(f"{kind}_")}

    return {
        "eval_config": {
            "random_seed": run.settings["seed"], "dataset_names": list(sets),
            "perform_scr": kind == "scr", "train_set_size": settings["train"],
            "test_set_size": settings["test"], "context_length": settings["context"],
            "early_stopping_patience": settings["probe"]["patience"],
            "probe_train_batch_size": settings["probe"]["batch"],
            "probe_epochs": settings["probe"]["epochs"], "probe_lr": settings["probe"]["lr"],
            "probe_l1_penalty": settings["probe"]["l1"], "llm_dtype": "float32",
            "model_name": run.subject, "n_values": list(settings["n"]),
        },
        "eval_result_metrics": {f"{kind}_metrics": parts(_values(outcome.numbers))},
        "eval_result_details": [
            {"dataset_name": name, **parts(values)} for name, values in sets.items()
        ],
    }  # fmt: skip


_COMPUTED = (
    "kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics",
    "featurewise_density_statistics", "featurewise_weight_based_metrics",
)  # fmt: skip
_CORE: dict[str, tuple[str, ...]] = {
    "model_behavior_preservation": ("kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": (
        "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae",
    ),
    "reconstruction_quality": ("explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": ("l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": ("l0", "l1"),
    "token_stats": ("total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
    "misc_metrics": (
        "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent", "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim", "frac_alive",
    ),
}  # fmt: skip
"""Groups of core metrics; -1 stands for what was not measured, as in the published files."""
_WRITERS: dict[str, Callable[[Outcome, Any], dict[str, object]]] = {
    "core": _core, "sparse_probing": _sparse_probing, "scr": _ablation, "tpp": _ablation,
    "absorption": absorption_layout, "ravel": ravel_layout, "unlearning": unlearning_layout,
    "autointerp": autointerp_layout,
}  # fmt: skip
