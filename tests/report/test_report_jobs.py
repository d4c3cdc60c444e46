"""The picture of a job: cells where it moves attention, none after the query, text stays text."""

import xml.etree.ElementTree as tree

from test_report_hostile import ATTACKS

from unweave.report.draw.jobs import job_pattern

PIECES = ["<s>", " the", " cat", "\n"]
MOVED = [
    [0.0, 9.0, 9.0, 9.0],
    [0.4, -0.2, 9.0, 9.0],
    [0.0, 0.1, 0.001, 9.0],
    [0.0, 0.0, 0.2, 0.0],
]


def nodes(drawing: str, tag: str) -> list[tree.Element]:
    return [node for node in tree.fromstring(drawing).iter() if node.tag.rsplit("}")[-1] == tag]


def test_a_cell_stands_where_a_job_moves_attention() -> None:
    drawing = job_pattern("job 0", PIECES, MOVED, [0.75, 0.25])
    cells = [r for r in nodes(drawing, "rect") if r.get("fill-opacity") is not None]
    assert [(c.get("class"), c.get("fill-opacity")) for c in cells] == [
        ("amber", "1.00"),
        ("worse", "0.50"),
        ("amber", "0.25"),
        ("amber", "0.50"),
    ]
    places = [(float(c.get("x", 0)), float(c.get("y", 0))) for c in cells]
    assert places[1][0] - places[0][0] == 15
    assert places[1][1] == places[0][1]
    assert places[3][1] - places[0][1] == 30
    said = [t.text or "" for t in nodes(drawing, "title")]
    assert " the at 1 to <s> at 0: +0.400" in said
    assert "⏎ at 3 to  cat at 2: +0.200" in said
    bars = [r for r in nodes(drawing, "rect") if r.get("fill-opacity") is None]
    widths = [float(r.get("width", 0)) for r in bars]
    assert abs(widths[0] - 3 * widths[1]) < 2


def test_text_of_strangers_stays_text_in_a_job() -> None:
    count = len(ATTACKS)
    drawing = job_pattern(ATTACKS[0], list(ATTACKS), [[1.0] * count] * count, [1.0])
    kinds = {node.tag.rsplit("}")[-1] for node in tree.fromstring(drawing).iter()}
    assert kinds == {"svg", "title", "text", "rect", "line"}
    assert not any(
        name.startswith("on") for n in tree.fromstring(drawing).iter() for name in n.attrib
    )
    for hidden in ("\u202e", "\x1b", "\x00", "\u2028"):
        assert hidden not in drawing


def test_a_job_that_moves_nothing_is_drawn() -> None:
    drawing = job_pattern("job", ["a", "b"], [[0.0, 0.0], [0.0, 0.0]], [0.0])
    assert not [r for r in nodes(drawing, "rect") if r.get("fill-opacity") is not None]
