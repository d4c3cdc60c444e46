"""The picture of the fronts: names of strangers are letters, and equal numbers give equal files."""

import re
import xml.etree.ElementTree as tree
from pathlib import Path

import pytest

from unweave.artifact.measurements import Measurement, Measurements
from unweave.artifact.records import SubjectRecord, TextRecord
from unweave.artifact.scores import Number
from unweave.report.draw.fronts import draw_fronts, family
from unweave.validate.fronts import Reference, fronts_of

HOSTILE = "<script>alert(1)</script> $\\frac{1}{0}$ -->\u202eevil\x1b[31m & \"'"


def bits(value: float) -> Number:
    return Number(value=value, low=value * 0.9, high=value * 1.1, unit="bits/token")


def method(name: str, length: float, loss: float, kind: str = "dictionary") -> Measurement:
    return Measurement(
        name=name, kind=kind, math_loss=bits(loss), math_length=bits(length),
        semantic_loss=bits(loss), semantic_share=bits(0.5), semantic_length=bits(length),
        controls={"c": bits(1.0)},
    )  # fmt: skip


def measured(*methods: Measurement) -> Measurements:
    sizes = dict.fromkeys(
        ("n_layers", "d_model", "d_mlp", "n_heads", "n_kv_heads", "d_head", "vocab_size"), 1
    )
    return Measurements(
        subject=SubjectRecord(name=HOSTILE, fingerprint="f", family="x", parameters=1, **sizes),
        text=TextRecord(name=HOSTILE, sha256="0", tokens=10, heldout_tokens=5, context=5),
        place="p", mode="propagated", amortised_over=10, code="0", seed=0,
        methods=[*methods, method("random-k4", 90, 3, "control")],
    )  # fmt: skip


def drawn(folder: Path, found: Measurements) -> list[Path]:
    paths = [folder / "f.png", folder / "f.svg"]
    draw_fronts(found, fronts_of(found, Reference(100.0, 4.0)), paths)
    return paths


def test_names_of_strangers_are_drawn_and_never_run(tmp_path: Path) -> None:
    found = measured(method(HOSTILE, 20, 1), method("good-k4", 30, 0.5), method("zero", 0, 0))
    png, svg = drawn(tmp_path, found)
    assert png.read_bytes().startswith(b"\x89PNG")
    content = svg.read_text(encoding="utf-8")
    kinds = {node.tag.rsplit("}")[-1] for node in tree.fromstring(content).iter()}
    assert not kinds & {"script", "foreignObject", "a", "image"}
    assert "<script" not in re.sub(r"<!--.*?-->", "", content, flags=re.DOTALL)
    assert "\u202e" not in content
    assert "\x1b" not in content


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    found = measured(method("a-k4", 20, 1), method("a-k16", 30, 0.5, "baseline"))
    first = [path.read_bytes() for path in drawn(tmp_path, found)]
    assert [path.read_bytes() for path in drawn(tmp_path, found)] == first


@pytest.mark.parametrize(
    ("name", "said"),
    [("pca-k16", "pca"), ("topk-short-k4-seed2", "topk-short"), ("gated-penalty0.5", "gated"),
     ("clusters-n64", "clusters"), ("mp-sae", "mp-sae")],
)  # fmt: skip
def test_methods_of_one_family_share_a_line(name: str, said: str) -> None:
    assert family(name) == said
