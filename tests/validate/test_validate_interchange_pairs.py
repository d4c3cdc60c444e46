"""Pairs of prompts for interchange: read, made, put to a subject; and those of programs."""

import json
import re

import pytest
import torch
from parity_network import SITE, pairs, pairs_in_words, parity_network
from tiny_subject import tiny_llama
from word_world import Words

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.pipeline.bench_suite import BenchSuiteSettings, bench_suite
from unweave.subject import wrap_module
from unweave.subject.tokenizer import Tokenizer
from unweave.validate.interventions import iia_protocol
from unweave.validate.interventions.iia import count
from unweave.validate.interventions.interchange import everything, exchange_of
from unweave.validate.interventions.pair_tasks import NAMES, our_tasks, tasks_in
from unweave.validate.interventions.pairs import (
    Pair,
    fitting,
    from_contrasts,
    read_mapping,
    read_pairs,
)
from unweave.validate.protocols.contrast_data import Prompted
from unweave.validate.protocols.protocol import Refused
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.interchange import (
    exchange_variable,
    variable_named,
    variable_pairs,
    written_at,
)
from unweave.validate.worlds.programs.library import LIBRARY, program

ONE = Pair(
    base="w3 w4 w5", source="w6 w4", base_answer="w7", source_answer="w8", expected="w8",
    base_at="w4",
)  # fmt: skip


class Letters(Words):
    """Tokens a, b and, where both follow one another, ab."""

    def __call__(self, text, *, add_special_tokens):
        known = {"a": 3, "b": 4, "ab": 5}
        return {"input_ids": [[known[one] for one in re.findall("ab|a|b", t)] for t in text]}


def write_pairs(path, some):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(one.model_dump_json() for one in some) + "\n\n")
    return path


def test_pairs_in_words_become_tokens_and_places():
    subject = parity_network()
    (found,), unfit = fitting(subject, [ONE])
    assert unfit == 0
    assert found == ((1, 3, 4, 5), (1, 6, 4), 2, 2, 7, 8, 8)
    assert list(fitting(subject, pairs_in_words(20)).pairs) == pairs(20, differ=True)


def test_what_cannot_be_told_in_tokens_is_left_out_and_counted():
    elsewhere = ONE.model_copy(update={"base_at": "w9"})
    no_change = ONE.model_copy(update={"expected": "w7 w2"})
    assert fitting(parity_network(), [elsewhere, ONE, no_change]).unfit == 2
    # "aab" is the tokens a and ab, so that no token ends with its last a.
    letters = wrap_module(tiny_llama().model, name="letters", tokenizer=Tokenizer(Letters()))
    inside = Pair(
        base="aab", source="ba", base_answer="a", source_answer="b", expected="b", base_at="a"
    )
    assert fitting(letters, [inside]).unfit == 1
    assert fitting(letters, [inside.model_copy(update={"base": "aba"})]).unfit == 0
    with pytest.raises(Refused, match="no tokenizer"):
        fitting(tiny_llama(), [ONE])


def test_files_are_read_and_broken_ones_told(tmp_path):
    path = write_pairs(tmp_path / "own_pairs.jsonl", [ONE, ONE])
    assert read_pairs(path) == [ONE, ONE]
    path.write_text(ONE.model_dump_json() + '\n{"base": "w3"}\n')
    with pytest.raises(UserError, match=r"Line 2 of .*own_pairs.jsonl is no pair"):
        read_pairs(path)
    broken = tmp_path / "x-country-capital.json"
    broken.write_text(json.dumps([{"input": "Spain"}]))
    with pytest.raises(UserError, match="input and output"):
        read_mapping(broken)


def test_prompts_that_differ_in_one_word_are_pairs_both_ways():
    told = Prompted("the cows ate", "the cats ate", (" grass",), (" mice",))
    more = Prompted("the cows ate", "some cats ate", (" grass",), (" mice",))
    there, back = from_contrasts([told, told, more])
    assert (there.base_at, there.source_at, there.expected) == ("cows", "cats", " mice")
    assert (back.base, back.expected) == ("the cats ate", " grass")


def test_indirect_objects_say_what_must_follow():
    tasks = {task.name: task.pairs for task in our_tasks(40, seed=3)}
    assert our_tasks(40, seed=3) == our_tasks(40, seed=3) != our_tasks(40, seed=4)
    assert len(tasks) == 6
    for name, some in tasks.items():
        for pair in some if name.startswith("ioi") else ():
            base, source = (re.findall("|".join(NAMES), p) for p in (pair.base, pair.source))
            own, other = pair.base_answer.strip(), pair.source_answer.strip()
            assert (base.count(own), source.count(other)) == (1, 1)
            first = base.index(own) == 0
            assert not set(base) & set(source)
            if name.startswith("ioi_name"):
                assert pair.expected == pair.source_answer
                assert (source.index(other) == 0) == first
            else:
                assert pair.expected.strip() == base[2] != own
                assert (source.index(other) == 0) != first


def test_public_files_are_found_by_name(shared_data):
    found = {task.name: task.pairs for task in tasks_in(shared_data, 30, seed=0)}
    assert list(found) == [
        "country_capital.country", "country_capital.end", "animal_diet.animal", "animal_diet.end",
    ]  # fmt: skip
    assert len(found["country_capital.country"]) == 30
    assert len({pair.base for pair in found["animal_diet.animal"]}) > 5


@pytest.mark.parametrize(
    ("name", "true", "wrong"),
    [("induction", "previous", "tokens"), ("balanced", "is_open", "is_close")],
)
def test_the_true_variable_gives_what_the_program_would_say_and_another_does_not(name, true, wrong):
    small = program(name, words=LIBRARY[name].words[:3], length=4)
    compiled = compile_program(small, settings=CompileSettings(rotation=1))
    variable = variable_named(compiled, true)
    some = variable_pairs(compiled, variable, 16, length=4, seed=0)
    site = written_at(variable)
    every = exchange_of(compiled.subject, site, some)

    def hits(move):
        return count(compiled.subject, site, every, move).hits

    assert hits(exchange_variable(compiled, variable)) == 16
    assert hits(exchange_variable(compiled, variable_named(compiled, wrong))) < 12
    assert hits(lambda some: torch.zeros_like(some.base)) == 0
    # Other variables come with the whole vector, so that it is no ceiling.
    assert hits(everything) < 16


def test_variables_that_change_no_answer_make_no_pairs():
    compiled = compile_program(program("histogram", length=4))
    with pytest.raises(UserError, match="changes the answer of histogram in 0 of"):
        variable_pairs(compiled, variable_named(compiled, "indices"), 2, length=4, seed=0)
    with pytest.raises(UserError, match="no variable 'rank'; it has tokens"):
        variable_named(compiled, "rank")


def test_the_suite_runs_it_from_files_and_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    write_pairs(tmp_path / "data" / "parity_pairs.jsonl", pairs_in_words(40))
    dictionary = Dictionary(autoencoder(SITE, 32, 64, TopK(k=16)))
    save_dictionary(dictionary, tmp_path / "dictionary")
    settings = BenchSuiteSettings(data=tmp_path / "data", share=0.3, tasks=("iia",))
    whole = bench_suite(tmp_path / "dictionary", parity_network(), settings, out=tmp_path / "a")
    assert whole.found[0].outcome is not None
    assert whole.found[0].outcome.numbers["iia_everything"].value == 1

    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(iia_protocol, "coder_counts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench_suite(tmp_path / "dictionary", parity_network(), settings, out=tmp_path / "b")
    # What needs no dictionary has been found.
    monkeypatch.setattr(iia_protocol, "site_counts", interrupted)
    again = bench_suite(tmp_path / "dictionary", parity_network(), settings, out=tmp_path / "b")
    assert again.found == whole.found
