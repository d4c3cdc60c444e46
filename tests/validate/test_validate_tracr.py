"""Weights that somebody else's compiler made, beside what its data say they do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unweave.errors import UserError
from unweave.validate.circuit_truth import item_auroc
from unweave.validate.worlds.programs.edge_scores import patched_edges, random_edges
from unweave.validate.worlds.programs.layout import Edge
from unweave.validate.worlds.tracr import load_tracr, tracr_cases

ONE_VALUE = {"case_57", "case_116"}
"""Programs in which an MLP writes a variable that has one value only."""


@pytest.fixture
def folder(shared_data: Path) -> Path:
    found = shared_data / "tracr"
    if not found.is_dir():
        pytest.skip(f"no compiled programs: no folder {found}")
    return found


def test_networks_reproduce_their_examples_and_write_where_they_should(folder: Path) -> None:
    names = tracr_cases(folder)
    assert len(names) > 50
    for name in sorted({*names[::4], *ONE_VALUE}):  # the study looks at all of them
        case = load_tracr(folder, name)
        assert len(case.examples) >= 10
        assert case.wrong() == 0, name
        inside = {edge.source for edge in case.edges} - {"embed", "positions"}
        assert inside == case.writing or (name in ONE_VALUE and inside < case.writing), name


def test_a_network_whose_weights_are_shuffled_reproduces_nothing(folder: Path) -> None:
    case = load_tracr(folder, "case_2")
    down = case.subject.model.get_parameter("blocks.2.mlp.down.weight")
    order = torch.randperm(len(down), generator=torch.Generator().manual_seed(0))
    down.data.copy_(down[order].clone())
    assert case.wrong() == len(case.examples)


def test_the_edges_of_a_program_are_those_one_reads_in_its_description(folder: Path) -> None:
    case = load_tracr(folder, "case_4")  # shares of "(" and ")" so far, and their difference
    assert case.output == "pair_balance_10"
    first, second = "blocks.1.head.0", "blocks.1.head.1"
    assert case.edges >= {
        Edge("embed", "blocks.0.mlp"),
        Edge("blocks.0.mlp", f"{first}.v"),
        Edge("blocks.0.mlp", f"{second}.v"),
        Edge(first, "blocks.1.mlp"),
        Edge(second, "blocks.1.mlp"),
        Edge("blocks.1.mlp", "logits"),
    }
    groups = [case.draw(16, length=n, seed=n) for n in (6, 9)]
    assert item_auroc(patched_edges(case.subject, groups, seed=0), case.edges) == 1.0
    drawn = [item_auroc(random_edges(case.subject, seed=s), case.edges) for s in range(100)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.05)


def test_what_selects_everything_carries_nothing(folder: Path) -> None:
    case = load_tracr(folder, "case_2")  # reverse, by the length of the sequence
    assert {e.target for e in case.edges if e.source == "embed"} == {"blocks.3.head.0.v"}
    # That the length is counted is seen from its being written, where lengths differ.
    groups = [case.draw(8, length=n, seed=n) for n in (5, 8)]
    assert item_auroc(patched_edges(case.subject, groups, seed=0), case.edges) == 1.0


def test_what_is_no_case_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole case case_1000"):
        load_tracr(folder, "case_1000")
    facts = json.loads((folder / "case_7.json").read_text()) | {"layer_norm": True}
    (tmp_path / "case_7.json").write_text(json.dumps(facts))
    (tmp_path / "case_7.npz").write_bytes((folder / "case_7.npz").read_bytes())
    with pytest.raises(UserError, match="layer norm"):
        load_tracr(tmp_path, "case_7")
