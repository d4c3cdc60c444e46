"""The same prompt continued by both networks: in the artifact, in the report, at a prompt."""

import json

import pytest
from tiny_subject import tiny_llama

from unweave.artifact import layout
from unweave.cli.app import main
from unweave.errors import UserError
from unweave.pipeline.continuing import ContinueSettings, continue_prompt
from unweave.report.read.samples import read_samples
from unweave.report.sections.samples import samples as drawn
from unweave.subject import load_subject
from unweave.subject.generation import continue_text


def test_an_artifact_holds_both_continuations_greedy_and_by_chance(artifact):
    entries = json.loads((artifact / layout.SAMPLES).read_text())
    assert [entry["temperature"] for entry in entries] == [0, 0, 0.8, 0.8]
    subject = load_subject("wren")
    for entry in entries:
        chance = {"temperature": entry["temperature"], "seed": entry["seed"]}
        assert continue_text(subject, entry["prompt"], 8, **chance) == entry["original"]
    assert entries[0]["original"] != entries[0]["decompiled"]
    assert [entries[2][key] == entries[0][key] for key in ("prompt", "original")] == [True, False]


def test_the_report_says_which_are_which(artifact):
    html = str(drawn(read_samples(artifact)))
    assert html.count("Drawn by the same chance, at temperature 0.8.") == 2
    assert html.count('<article class="sample"') == 4


@pytest.fixture(scope="module")
def prompt(artifact):
    return json.loads((artifact / layout.SAMPLES).read_text())[0]["prompt"]


def test_both_executions_write_the_same_text_and_the_original_another(artifact, prompt):
    for temperature in (0.0, 1.0):
        settings = ContinueSettings(new_tokens=12, temperature=temperature, explicit=True)
        found = continue_prompt(artifact, prompt, settings)
        assert found.explicit == found.decompiled != found.original


def test_the_command_shows_them_side_by_side_and_says_what_is_wrong(artifact, prompt, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["generate", str(artifact), prompt, *arguments])
        return ended.value.code, capsys.readouterr()

    code, said = run("--new-tokens", "8")
    assert code == 0
    found = continue_prompt(artifact, prompt, ContinueSettings(new_tokens=8))
    assert found.explicit is None
    assert said.out.startswith("original ")
    assert "\ndecompiled " in said.out
    assert found.decompiled.split("\n")[0] in said.out
    assert run("--new-tokens", "0")[0] == 2
    code, said = run("--new-tokens", "100000")
    assert (code, "exceed the context" in said.err) == (2, True)


def test_another_network_than_the_artifacts_is_refused(artifact, tmp_path):
    tiny_llama(bos_token_id=0).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="other weights"):
        continue_prompt(artifact, "a", ContinueSettings(subject=str(tmp_path)))
