"""The layout of SAEBench for absorption, RAVEL, unlearning and automated interpretability."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, cast

from unweave.pipeline.suite_records import SuiteRun
from unweave.validate.protocols.protocol import Outcome


def absorption_layout(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    """Means over the letters that count, and each of them."""
    settings, details = _settings(outcome), _details(outcome)
    measure, words = settings["measure"], settings["words"]
    letters = [letter for letter in details["letters"] if letter["probe_f1"] > settings["least_f1"]]
    columns = {
        "absorption_fraction_score": [letter["fraction"] for letter in letters],
        "full_absorption_score": [letter["full"] for letter in letters],
        "num_split_features": [float(len(letter["main"])) for letter in letters],
    }
    return {
        "eval_type_id": "absorption_first_letter",
        "eval_config": {
            "model_name": run.subject, "random_seed": run.settings["seed"],
            "f1_jump_threshold": measure["gain"], "max_k_value": measure["most_latents"],
            "prompt_template": "{word}" + words["ending"],
            "k_sparse_probe_l1_decay": measure["sparse"]["l1"],
            "k_sparse_probe_batch_size": measure["sparse"]["batch"],
            "k_sparse_probe_num_epochs": measure["sparse"]["epochs"],
            "min_GT_probe_f1": settings["least_f1"],
            "min_feats_for_eval": settings["least_letters"],
        },
        "eval_result_metrics": {
            "mean": {f"mean_{name}": fmean(values) for name, values in columns.items()}
            | {f"std_dev_{name}": _spread(values) for name, values in columns.items()}
        },
        "eval_result_details": [
            {
                "first_letter": letter["letter"],
                "mean_absorption_fraction": letter["fraction"],
                "full_absorption_rate": letter["full"],
                "num_full_absorption": round(letter["full"] * letter["words"]),
                "num_probe_true_positives": letter["words"],
                "num_split_features": len(letter["main"]),
            }
            for letter in letters
        ],
    }  # fmt: skip


def ravel_layout(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    """Cause, isolation and their mean."""
    settings, got = _settings(outcome), outcome.numbers
    asked = _details(outcome)["asked"]
    return {
        "eval_config": {
            "entity_attribute_selection": {n: list(a["asked"]) for n, a in asked.items()},
            "top_n_entities": settings["ask"]["top_entities"],
            "num_pairs_per_attribute": settings["pairs"],
            "train_test_split": settings["train_share"],
            "learning_rate": settings["mask"]["rate"], "num_epochs": settings["mask"]["epochs"],
            "n_generated_tokens": 1, "model_name": run.subject,
            "random_seed": run.settings["seed"],
        },
        "eval_result_metrics": {
            "ravel": {
                "disentanglement_score": got["disentanglement"].value,
                "cause_score": got["cause"].value, "isolation_score": got["isolation"].value,
            }
        },
        "eval_result_details": [],
    }  # fmt: skip


def unlearning_layout(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    """The score."""
    settings = _settings(outcome)
    return {
        "eval_config": {
            "random_seed": run.settings["seed"], "retain_thresholds": settings["thresholds"],
            "n_features_list": settings["latents"],
            "multipliers": [round(m) for m in settings["multipliers"]],
            "dataset_size": settings["rows"], "seq_len": settings["context"],
            "model_name": run.subject,
        },
        "eval_result_metrics": {
            "unlearning": {"unlearning_score": outcome.numbers["unlearning_score"].value}
        },
        "eval_result_details": [],
    }  # fmt: skip


def autointerp_layout(outcome: Outcome, run: SuiteRun) -> dict[str, object]:
    """The mean over latents and its spread."""
    settings, details = _settings(outcome), _details(outcome)
    shown = settings["examples"]
    return {
        "eval_config": {
            "model_name": run.subject, "n_latents": settings["latents"],
            "dead_latent_threshold": shown["least_firings"], "random_seed": run.settings["seed"],
            "dataset_name": run.settings["text"], "llm_context_size": shown["context"],
            "buffer": shown["buffer"], "act_threshold_frac": shown["threshold"],
            "total_tokens": shown["tokens"], "n_top_ex_for_generation": shown["top_explain"],
            "n_iw_sampled_ex_for_generation": shown["weighted_explain"],
            "n_top_ex_for_scoring": shown["top_score"],
            "n_random_ex_for_scoring": shown["random_score"],
            "n_iw_sampled_ex_for_scoring": shown["weighted_score"],
        },
        "eval_result_metrics": {
            "autointerp": {
                "autointerp_score": outcome.numbers["autointerp_score"].value,
                "autointerp_std_dev": _spread([one["right"] for one in details["latents"]]),
            }
        },
        "eval_result_details": [],
    }  # fmt: skip


def _details(outcome: Outcome) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], outcome.details)


def _settings(outcome: Outcome) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], _details(outcome)["settings"])


def _spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single one."""
    return stdev(values) if len(values) > 1 else 0.0
