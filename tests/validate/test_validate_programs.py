"""Compiled programs: plain Python beside the interpreter beside the weights."""

import pytest
import torch

from unweave.errors import UserError
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.compiled import candidate_edges
from unweave.validate.worlds.programs.interpreter import interpret
from unweave.validate.worlds.programs.language import (
    Aggregate,
    Bin,
    Combine,
    Indices,
    Map,
    Select,
    Tokens,
    count,
)
from unweave.validate.worlds.programs.layout import Edge
from unweave.validate.worlds.programs.library import LIBRARY, distractor, program
from unweave.validate.worlds.programs.program import Program

NAMES = sorted(LIBRARY)


def small(name: str) -> Program:
    return program(name, words=LIBRARY[name].words[:3], length=4)


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_says_what_plain_python_says(name: str) -> None:
    usual = program(name)
    for length in (1, 3, usual.indices.length):
        rows = usual.draw(20, length=length, seed=length)
        for words in usual.decode(rows):
            assert usual.values(words)[usual.output] == usual.reference(words)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_gives_the_programs_answer_on_every_input(name: str) -> None:
    compiled = compile_program(small(name))
    for length in range(1, 5):
        assert compiled.accuracy(compiled.program.all_rows(length)) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_network_gives_the_programs_answer_at_its_usual_size(name: str) -> None:
    usual = program(name)
    compiled = compile_program(usual, settings=CompileSettings(rotation=1))
    for length in (2, usual.indices.length):
        assert compiled.accuracy(usual.draw(40, length=length, seed=7)) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_every_stream_holds_the_variables_along_their_directions(name: str) -> None:
    compiled = compile_program(small(name), settings=CompileSettings(rotation=1))
    rows = compiled.program.draw(12, length=4, seed=2)
    blocks = [s for s in compiled.subject.sites() if "resid" in s or s in ("embed", "final")]
    found = compiled.subject.run(rows, capture=blocks, logits=False).sites
    for site, stream in found.items():
        expected = compiled.activity(rows, site) @ compiled.directions
        torch.testing.assert_close(stream, expected, atol=2e-4, rtol=0)
    gram = compiled.directions @ compiled.directions.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
    directions, code = compiled.truth(rows)
    assert len(directions) == code.n_latents == len(compiled.directions) - 1
    assert set(code.support.offsets.diff().tolist()) <= set(range(len(compiled.variables) + 1))
    assert len(compiled.labels) == len(compiled.directions)


@pytest.mark.parametrize("name", NAMES)
def test_without_any_one_of_its_components_the_program_fails(name: str) -> None:
    compiled = compile_program(small(name))
    rows = [compiled.program.all_rows(length) for length in (2, 3)]
    network = compiled.subject.model
    for node in sorted(compiled.true_nodes):
        whole = {k: v.clone() for k, v in network.state_dict().items()}
        silence(network, node)
        assert min(compiled.accuracy(some) for some in rows) < 1.0, node
        network.load_state_dict(whole)
    assert compiled.accuracy(rows[0]) == 1.0


def silence(network: torch.nn.Module, node: str) -> None:
    with torch.no_grad():
        if node in ("embed", "positions"):
            network.get_parameter(f"{node}.weight").zero_()
        elif node.endswith("mlp"):
            network.get_parameter(f"{node}.down.weight").zero_()
        else:
            block, head = node.split(".head.")
            out = network.get_parameter(f"{block}.attn.out.weight")
            out.view(len(out), network.config.num_attention_heads, -1)[:, int(head)].zero_()


def test_the_true_edges_of_a_program_are_those_one_writes_down() -> None:
    compiled = compile_program(small("pattern ab"))
    head, mlp = "blocks.0.head.0", "blocks.0.mlp"
    assert compiled.edges == {
        Edge("positions", f"{head}.q"),
        Edge("positions", f"{head}.k"),
        Edge("embed", f"{head}.v"),
        Edge("embed", mlp),
        Edge(head, mlp),
        Edge(mlp, "logits"),
    }
    assert compiled.true_nodes == {"embed", "positions", head, mlp}
    candidates = candidate_edges(compiled.subject)
    assert len(candidates) == len(set(candidates)) == 2 * 3 + 3 + 4
    assert compiled.edges < set(candidates)


def test_what_never_changes_is_no_edge() -> None:
    edges = compile_program(small("fraction of x")).edges
    attention = {e for e in edges if ".head." in e.target}
    # Everything is selected whatever keys and queries are: only values flow.
    assert attention == {Edge("blocks.0.mlp", "blocks.1.head.0.v")}
    counted = compile_program(small("histogram")).edges
    assert {e.target[-1] for e in counted if ".head." in e.target} == {"q", "k"}


def test_a_distractor_is_computed_and_is_in_no_true_edge() -> None:
    usual = small("previous token")
    alone = compile_program(usual)
    beside = compile_program(usual, distractor("induction", usual), distractor("sort", usual))
    rows = usual.all_rows(4)
    assert beside.accuracy(rows) == alone.accuracy(rows) == 1.0
    assert beside.edges == alone.edges
    idle = [v for v in beside.variables if not v.used]
    assert {v.name for v in idle} >= {"copied", "previous_2", "sorted"}
    found = beside.subject.run(rows, capture=["final"], logits=False).sites["final"]
    torch.testing.assert_close(found, beside.activity(rows), atol=2e-4, rtol=0)
    assert all(found[:, 1:, v.span].std() > 0 for v in idle if v.size > 1)


def test_the_sites_are_those_of_any_subject() -> None:
    compiled = compile_program(small("induction"))
    subject, rows = compiled.subject, compiled.program.draw(5, length=4, seed=0)
    run = subject.run(rows, capture=subject.sites())
    assert run.logits.shape == (5, 5, subject.vocab_size)
    pattern = run.sites["blocks.1.attn.pattern"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(5, 1, 5))
    assert pattern.amax(-1).min() > 0.999  # as good as hard
    uniform = subject.run(rows, replace={"blocks.0.attn.pattern": torch.tensor(0.2)}).logits
    assert (uniform[:, 1:] - run.logits[:, 1:]).abs().max() > 1
    weights = subject.attention_weights(1)
    q = run.sites["blocks.1.attn.in"] @ weights.W_Q[0] + weights.b_Q[0]
    torch.testing.assert_close(q, run.sites["blocks.1.attn.q"][:, :, 0])


def test_numbers_are_summed_and_binned() -> None:
    tokens, indices = Tokens("tokens", ("a", "b")), Indices("indices", 3)
    up = Map("up", lambda i: 0.5 * i, (indices,), numerical=True)
    is_b = Map("is_b", lambda w: float(w == "b"), (tokens,), numerical=True)
    total = Combine("total", (up, is_b), (1.0, -2.0))
    label = Bin("label", total, {-2.0: "low", -1.5: "low", -1.0: "mid", 0.0: "high", 1.0: "high"})
    own = Program("sum", tokens, indices, label, causal=True)
    assert own.values(["b", "a", "b"])[total] == [-2.0, 0.5, -1.0]
    assert own.values(["b", "a", "b"])[label] == ["low", "high", "mid"]
    assert compile_program(own).accuracy(own.all_rows(3)) == 1.0


def test_what_a_program_cannot_do_is_refused() -> None:
    tokens, indices = Tokens("tokens", ("a", "b")), Indices("indices", 3)
    everything = Select(tokens, tokens, lambda k, q: True)
    mixed = Aggregate("mixed", everything, tokens)
    with pytest.raises(UserError, match="mixed gathers 2 different values"):
        interpret(mixed, words=["a", "b"], causal=False)
    assert interpret(mixed, words=["a", "a"], causal=False)[mixed] == ["a", "a"]
    with pytest.raises(UserError, match="no word 'z'"):
        interpret(mixed, words=["z"], causal=False)
    with pytest.raises(UserError, match="more than the program's 3"):
        interpret(indices, words=["a"] * 4, causal=False)
    share = count("n", everything, 3).of
    with pytest.raises(UserError, match="bin a number first"):
        Select(share, tokens, lambda k, q: True)
    with pytest.raises(UserError, match="one or two categorical"):
        Map("half", lambda x: x, (share,))
    wide = Indices("wide", 100)
    with pytest.raises(UserError, match="every one is a direction"):
        Map("pairs", lambda i, j: f"{i},{j}", (wide, wide))
    with pytest.raises(UserError, match="There is no program 'primes'"):
        program("primes")
    with pytest.raises(UserError, match=r"not at blocks\.0\.mlp\.out"):
        compile_program(small("reverse")).activity(torch.zeros(1, 2).long(), "blocks.0.mlp.out")
