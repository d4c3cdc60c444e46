"""The picture of one attention latent: what arrives is what is coloured, and text stays text."""

import xml.etree.ElementTree as tree

import pytest
from test_report_hostile import ATTACKS

from unweave.report.draw.attention_sources import attention_sources

PIECES = ["<s>", " the", " cat", " sat", " on", " the", " mat"]


def nodes(drawing: str, tag: str) -> list[tree.Element]:
    return [node for node in tree.fromstring(drawing).iter() if node.tag.rsplit("}")[-1] == tag]


def test_the_strongest_source_and_head_stand_out() -> None:
    drawing = attention_sources(
        "latent 7", PIECES, [0.0, 0.2, 2.0, -1.0, 0.0, 0.4, 9.0], [1.5, -0.5], position=5
    )
    tokens = [r for r in nodes(drawing, "rect") if r.get("fill-opacity") is not None]
    assert [r.get("fill-opacity") for r in tokens] == [
        "0.00",
        "0.10",
        "1.00",
        "0.50",
        "0.00",
        "0.20",
    ]
    assert [i for i, r in enumerate(tokens) if r.get("stroke")] == [5], "the place has a frame"
    assert [i for i, r in enumerate(tokens) if r.get("class") == "worse"] == [3]
    bars = [r for r in nodes(drawing, "rect") if r.get("fill-opacity") is None]
    widths = [float(r.get("width", 0)) for r in bars]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.02)
    ends = [float(r.get("x", 0)) + float(r.get("width", 0)) for r in bars]
    assert ends[1] == pytest.approx(float(bars[0].get("x", 0)), abs=0.2), "one zero for both"
    said = [t.text or "" for t in nodes(drawing, "title")]
    assert " cat at 2: +2.000" in said
    assert "mat" not in drawing, "nothing arrives from what is still to come"


def test_lines_break_inside_the_drawing_and_never_inside_a_token() -> None:
    drawing = attention_sources("t", ["word"] * 90 + ["x" * 500], [1.0] * 91, [1.0], position=90)
    boxes = [r for r in nodes(drawing, "rect") if r.get("fill-opacity") is not None]
    assert max(float(r.get("x", 0)) + float(r.get("width", 0)) for r in boxes) <= 720
    assert len({r.get("y") for r in boxes}) > 3
    height = float(nodes(drawing, "svg")[0].get("viewBox", "").split()[3])
    assert max(float(r.get("y", 0)) for r in nodes(drawing, "rect")) < height


def test_text_of_strangers_stays_text() -> None:
    drawing = attention_sources(
        ATTACKS[0], list(ATTACKS), [1.0] * len(ATTACKS), [1.0], position=len(ATTACKS) - 1
    )
    kinds = {node.tag.rsplit("}")[-1] for node in tree.fromstring(drawing).iter()}
    assert kinds == {"svg", "title", "text", "g", "rect"}
    assert not any(
        name.startswith("on") for n in tree.fromstring(drawing).iter() for name in n.attrib
    )
    for hidden in ("\u202e", "\x1b", "\x00", "\u2028"):
        assert hidden not in drawing


def test_nothing_at_all_is_drawn_all_the_same() -> None:
    drawing = attention_sources("t", ["a", "b"], [0.0, 0.0], [0.0, 0.0, 0.0], position=1)
    assert len(nodes(drawing, "rect")) == 5
