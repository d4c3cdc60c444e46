"""Programs squeezed into fewer dimensions than they have directions."""

from functools import partial

import pytest
import torch

from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.errors import UserError
from unweave.validate.recovery import measure_recovery
from unweave.validate.worlds.programs.as_world import program_world
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.compiled import Compiled, project
from unweave.validate.worlds.programs.compress import (
    CompressSettings,
    compress,
    interference,
    squeezed_run,
)
from unweave.validate.worlds.programs.library import program

SETTINGS = CompressSettings(width=7, steps=300, batch=32, pool=64, lr=1e-2)


@pytest.fixture(scope="module")
def original() -> Compiled:
    return compile_program(program("previous token", words="abc", length=4))


@pytest.fixture(scope="module")
def squeezed(original: Compiled) -> Compiled:
    return compress(original, SETTINGS, seed=0)


def test_the_compressed_network_computes_the_program_in_fewer_dimensions(
    original: Compiled, squeezed: Compiled
) -> None:
    assert original.layout.size == 12
    assert squeezed.subject.d_model == 7
    assert squeezed.accuracy(squeezed.program.all_rows(4)) == 1.0
    assert squeezed.edges == original.edges


def test_an_untrained_squeeze_does_not(original: Compiled) -> None:
    short = compress(original, SETTINGS.model_copy(update={"steps": 1, "lr": 1e-6}), seed=0)
    assert short.accuracy(short.program.all_rows(4)) < 0.9


def test_the_directions_are_no_longer_orthogonal(original: Compiled, squeezed: Compiled) -> None:
    assert interference(original.directions) == (0.0, 0.0, 1.0)
    shared = interference(squeezed.directions)
    assert shared.nearest > 0.3
    assert shared.dimensions < 0.75


def test_the_streams_hold_the_variables_along_the_rows_of_W(squeezed: Compiled) -> None:
    rows = squeezed.program.draw(20, length=4, seed=4)
    found = squeezed.subject.run(rows, capture=["blocks.0.resid_pre"], logits=False).sites
    expected = squeezed.activity(rows, "blocks.0.resid_pre") @ squeezed.directions
    torch.testing.assert_close(found["blocks.0.resid_pre"], expected, atol=1e-5, rtol=0)


def test_a_dictionary_is_scored_against_the_known_directions(squeezed: Compiled) -> None:
    rows = squeezed.program.all_rows(4)
    x = squeezed.subject.run(rows, capture=["final"], logits=False).sites["final"][:, 1:]
    directions, truth = squeezed.truth(rows)
    assert len(directions) == len(squeezed.directions) - 1 == 11
    three = partial(orthogonal_matching_pursuit, k=3)
    told = FixedDictionary(directions, three)
    found = measure_recovery(told, directions, x.flatten(0, 1), truth)
    assert found.mmcs > 0.9
    turned = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(1))).Q
    wrong = FixedDictionary(directions @ turned, three)
    assert measure_recovery(wrong, directions, x.flatten(0, 1), truth).mmcs < 0.85


def test_a_squeezed_program_is_a_world() -> None:
    few = CompressSettings(width=1, steps=1, pool=4)
    site = "blocks.0.resid_pre"
    world = program_world("previous token", share=0.5, seed=0, settings=few, site=site)
    assert world.d == 9
    assert world.k == 2  # a word and its place
    assert world.features == 12
    whole = world.truth.code.dense() @ world.truth.directions
    torch.testing.assert_close(world.held_out, whole, atol=1e-5, rtol=0)
    assert not torch.equal(world.train[: len(whole)], whole)


def test_two_ways_through_W_are_one(original: Compiled) -> None:
    W = torch.randn(original.layout.size, 9, generator=torch.Generator().manual_seed(0))
    rows = original.program.draw(6, length=4, seed=0)
    passed = squeezed_run(original.subject.model, rows, W)
    torch.testing.assert_close(project(original.subject.model, W)(rows), passed.logits)


def test_a_compression_is_the_same_again_from_its_seed(original: Compiled) -> None:
    few = SETTINGS.model_copy(update={"steps": 5})
    first, again = (compress(original, few, seed=3).directions for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, compress(original, few, seed=4).directions)


def test_what_cannot_be_squeezed_is_refused() -> None:
    rotated = compile_program(
        program("previous token", words="ab", length=3), settings=CompileSettings(rotation=0)
    )
    with pytest.raises(UserError, match="without rotation"):
        compress(rotated, SETTINGS, seed=0)
    with pytest.raises(UserError, match="two directions or more"):
        interference(torch.zeros(3, 2))
