"""`unweave diff` at the command line."""

import json

from test_commands import run


def test_diff_of_copies_and_of_nothing(artifact, built_artifact, tmp_path, capsys):
    out = tmp_path / "diff.json"
    assert run("diff", built_artifact, artifact, "--json", out) == 0
    assert "same results, byte for byte" in capsys.readouterr().out
    assert json.loads(out.read_text())["identical"] is True
    assert run("diff", built_artifact, tmp_path / "none") == 2
    assert "No folder" in capsys.readouterr().err
