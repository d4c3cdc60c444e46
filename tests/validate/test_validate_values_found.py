"""Variables of a program in a dictionary, whose directions are known up to a shift only."""

import pytest
import torch
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.errors import UserError
from unweave.validate.recovery import measure_recovery
from unweave.validate.worlds.programs.as_world import site_vectors
from unweave.validate.worlds.programs.compile import compile_program
from unweave.validate.worlds.programs.compiled import Compiled
from unweave.validate.worlds.programs.library import program
from unweave.validate.worlds.programs.values_found import measure_values, values_found


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_program(program("previous token", words="abc", length=4))


def knowing(compiled: Compiled, rows: Tensor, shift: Tensor) -> FixedDictionary:
    """A dictionary that fires as the values do, each variable's directions moved together."""
    kept = compiled.directions_at("final")
    activity = compiled.activity(rows)[:, 1:, kept].flatten(0, 1)
    moved = compiled.directions[kept].clone()
    first = 0
    for variable, by in zip(compiled.variables, shift, strict=True):
        moved[first : first + variable.size] += by
        first += variable.size
    return FixedDictionary(moved, lambda x, W: SparseCode.from_dense(activity), b_dec=-shift.sum(0))


def test_a_shift_of_all_directions_of_a_variable_takes_nothing_away(compiled: Compiled) -> None:
    rows = compiled.program.all_rows(4)
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(3, compiled.subject.d_model, generator=generator)
    coder = knowing(compiled, rows, shift)
    x = site_vectors(compiled, rows)
    torch.testing.assert_close(coder.decode(coder.encode(x)), x, atol=1e-4, rtol=0)
    found = measure_values(coder, compiled, rows)
    assert found.values == 3 + 4 + 4
    assert (found.f1, found.f1_reverse) == (1.0, 1.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-5)
    assert found.chance < 0.5
    # Cosines with the directions themselves do not see it.
    assert measure_recovery(coder, *compiled.truth(rows)[:1], x, compiled.truth(rows)[1]).mmcs < 0.6


def test_latents_that_fire_elsewhere_have_found_nothing(compiled: Compiled) -> None:
    rows = compiled.program.all_rows(4)
    other = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    coder = knowing(compiled, other, torch.zeros(3, compiled.subject.d_model))
    found = measure_values(coder, compiled, rows)
    assert found.f1 < 0.75  # places of a row are still told apart, words are not
    kept = compiled.directions_at("final")
    activity = compiled.activity(rows)[:, 1:, kept].flatten(0, 1)
    order = torch.randperm(len(activity), generator=torch.Generator().manual_seed(2))
    drawn = FixedDictionary(
        compiled.directions[kept], lambda x, W: SparseCode.from_dense(activity[order])
    )
    assert measure_values(drawn, compiled, rows).f1 == pytest.approx(found.chance, abs=0.05)


def test_the_best_F1_is_what_one_counts_by_hand() -> None:
    held = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    fires = torch.tensor([[2.0, 0, 1], [2, 1, 0], [0, 1, 0], [0, 1, 0]])
    coder = FixedDictionary(torch.eye(3), lambda x, W: SparseCode.from_dense(fires))
    found = values_found(coder, torch.zeros(4, 3), torch.eye(3)[:2], held, ["v", "v"])
    assert found.values == 2
    assert found.f1 == pytest.approx((1 + 4 / 5) / 2)
    assert found.f1_reverse == pytest.approx((1 + 4 / 5 + 2 / 3) / 3)
    # Latents 0 and 1 write (2, 0) and (0, 1): their difference is not quite along (1, -1).
    assert found.cosine == pytest.approx(3 / (2 * 5) ** 0.5)


def test_values_that_never_change_are_refused() -> None:
    coder = FixedDictionary(torch.eye(2), lambda x, W: SparseCode.from_dense(x))
    with pytest.raises(UserError, match="comes and goes"):
        values_found(coder, torch.ones(3, 2), torch.eye(2), torch.ones(3, 2), ["a", "b"])
