"""Parts described side by side say what each says alone, and are described once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unweave.describe.describe import describe_part
from unweave.describe.evidence import PartEvidence
from unweave.describe.many import describe_parts
from unweave.errors import UserError
from unweave.training.fanout.executors import Here, Processes
from unweave.validate.planted import planted_evidence, planted_text, planted_vocabulary


@pytest.fixture(scope="module")
def evidence() -> dict[str, PartEvidence]:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary)
    fires = [np.isin(tokens, [101, 150, 233]), np.isin(np.roll(tokens, 1, axis=1), [45, 301])]
    both = planted_evidence(tokens, fires, vocabulary)
    return {"L0.mlp": replace(both, part="L0.mlp"), "L1.mlp": replace(both, part="L1.mlp")}


def test_processes_say_what_one_says(evidence: dict[str, PartEvidence], tmp_path: Path) -> None:
    alone = {name: describe_part(one) for name, one in evidence.items()}
    assert alone["L0.mlp"][0].kind == "token"
    assert describe_parts(evidence, folder=tmp_path, executor=Processes(2)) == alone
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(before) == ["L0.mlp.json", "L1.mlp.json"]
    assert describe_parts(evidence, folder=tmp_path, executor=Here()) == alone
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_other_evidence_is_not_taken_for_the_same(
    evidence: dict[str, PartEvidence], tmp_path: Path
) -> None:
    one = {"L0.mlp": evidence["L0.mlp"]}
    describe_parts(one, folder=tmp_path, executor=Here())
    other = {"L0.mlp": replace(one["L0.mlp"], digest="abcdef")}
    with pytest.raises(UserError, match="another task"):
        describe_parts(other, folder=tmp_path, executor=Here())
