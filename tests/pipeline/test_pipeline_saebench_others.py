"""The layout of SAEBench for the second half of the suite, against its own schemas."""

import json
from pathlib import Path

import pytest

from unweave.artifact.scores import Number
from unweave.pipeline.saebench_output import saebench_output
from unweave.pipeline.suite_records import SuiteRun
from unweave.validate.protocols.absorption import AbsorptionSettings
from unweave.validate.protocols.autointerp import AutointerpSettings
from unweave.validate.protocols.protocol import Outcome
from unweave.validate.protocols.ravel import RavelSettings
from unweave.validate.protocols.unlearning import UnlearningSettings

RUN = SuiteRun(
    subject="wren", subject_sha256="00", dictionary="d", dictionary_sha256="11", site="s",
    settings={"seed": 3, "text": "wiki"}, version="0", commit=None, begun_ms=5,
)  # fmt: skip


def outcome(protocol: str, settings, numbers: dict[str, float], **details) -> Outcome:
    shares = {name: Number(value=value, unit="share") for name, value in numbers.items()}
    return Outcome(
        protocol=protocol, numbers=shares,
        controls={"bad": Number(value=0.25, unit="share")},
        details={"settings": settings.model_dump(mode="json"), **details},
    )  # fmt: skip


def letter(name: str, probe_f1: float, full: float) -> dict:
    return {
        "letter": name, "probe_f1": probe_f1, "sparse_f1": [0.5], "main": [1, 2], "words": 10,
        "fraction": full + 0.1, "full": full,
    }  # fmt: skip


OUTCOMES = {
    "absorption_first_letter": outcome(
        "absorption", AbsorptionSettings(), {"mean_full_absorption": 0.3},
        letters=[letter("a", 0.9, 0.2), letter("b", 0.7, 0.4), letter("q", 0.1, 1.0)],
    ),
    "ravel": outcome(
        "ravel", RavelSettings(), {"disentanglement": 0.6, "cause": 0.5, "isolation": 0.7},
        asked={"city": {"asked": {"Country": 5}, "right": {"Country": 4}}},
    ),
    "unlearning": outcome("unlearning", UnlearningSettings(), {"unlearning_score": 0.2}),
    "autointerp": outcome(
        "autointerp", AutointerpSettings(), {"autointerp_score": 0.8},
        latents=[{"right": 0.7}, {"right": 0.9}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_is_written_fits_the_published_schema(name, shared_data: Path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = shared_data / "schemas" / f"saebench_eval_output_schema_{name}.json"
    written = json.loads(json.dumps(saebench_output(OUTCOMES[name], RUN)))
    jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(written)
    assert written["eval_type_id"] == name
    assert written["eval_result_unstructured"]["controls"] == {"bad": 0.25}
    without = {key: value for key, value in written.items() if key != "eval_result_metrics"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(without)


def test_letters_that_do_not_count_are_in_no_mean():
    written = saebench_output(OUTCOMES["absorption_first_letter"], RUN)
    mean = written["eval_result_metrics"]["mean"]
    assert mean["mean_full_absorption_score"] == pytest.approx(0.3)
    assert mean["mean_absorption_fraction_score"] == pytest.approx(0.4)
    assert mean["std_dev_full_absorption_score"] == pytest.approx(0.2 / 2**0.5)
    assert [d["first_letter"] for d in written["eval_result_details"]] == ["a", "b"]
    assert written["eval_result_details"][1]["num_full_absorption"] == 4


def test_the_spread_is_over_latents():
    written = saebench_output(OUTCOMES["autointerp"], RUN)["eval_result_metrics"]["autointerp"]
    assert written == {
        "autointerp_score": 0.8,
        "autointerp_std_dev": pytest.approx(0.2 / 2**0.5),
    }
