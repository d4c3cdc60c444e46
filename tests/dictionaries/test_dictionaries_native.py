"""The compiled kernels against float64, and a machine without a compiler."""

import ctypes
import subprocess
import sys

import pytest
import torch

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.fit import fit
from unweave.dictionaries.kernels.native import building, calls
from unweave.dictionaries.kernels.ragged import over_rows, write
from unweave.dictionaries.kernels.rounding import rounded, to_keep


@pytest.fixture(scope="module", params=["own", "plain"], autouse=True)
def machine(request, tmp_path_factory):
    """Compiled for this processor, and for any: without its vectors' instructions."""
    if building.library() is None or request.param == "own":
        yield
        return
    path = tmp_path_factory.mktemp("plain") / "kernels.so"
    building.compile_to(path, "cc", ())
    plain = ctypes.CDLL(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "library", lambda: plain)
        yield


needs_compiler = pytest.mark.skipif(building.library() is None, reason="no C compiler here")
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(rows: int, latents: int, seed: int = 1) -> tuple[Support, torch.Tensor]:
    """Rows with none to many entries."""
    density = torch.linspace(0, 0.5, rows)[:, None]
    generator = torch.Generator().manual_seed(seed)
    support = Support.from_mask(torch.rand(rows, latents, generator=generator) < density)
    return support, drawn(len(support.latent), seed=seed)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


@needs_compiler
@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (37, 37), (100, 7), (700, 3), (5000, 64), (513, 300)])
def test_the_largest_are_those_of_a_sort_ascending_and_once(n, k, dtype, by_size):
    scores = drawn(9, n).to(dtype)  # in bfloat16 with ties
    latent, value = calls.largest(scores, k, by_size=by_size)
    size = scores.abs() if by_size else scores
    wanted = size.float().sort(dim=1, descending=True).values[:, :k]
    found = size.float().gather(1, latent).sort(dim=1, descending=True).values
    assert torch.equal(found, wanted)
    assert torch.equal(value, scores.float().gather(1, latent))
    assert (latent.diff(dim=1) > 0).all()


@needs_compiler
@pytest.mark.parametrize("special", [torch.inf, -torch.inf, 0.0])
def test_rows_of_equal_scores_give_the_first_latents(special):
    latent, _ = calls.largest(torch.full((3, 200), special), 5, by_size=False)
    assert torch.equal(latent, torch.arange(5).expand(3, 5))


@needs_compiler
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 16, 77, 640])
def test_what_exceeds_thresholds(n, dtype, each):
    scores = drawn(11, n).to(dtype)
    threshold = drawn(n, seed=3) if each else torch.tensor(0.5)
    found = calls.above(scores, threshold)
    row, latent = (scores.float() > threshold).nonzero(as_tuple=True)
    assert torch.equal(found.latent, latent)
    assert torch.equal(found.counts, torch.bincount(row, minlength=11))
    assert torch.equal(found.value, scores[row, latent].float())


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 31, 192, 200, 576])
def test_sums_and_products_of_ragged_codes(width, dtype, threads):
    support, weight = ragged(130, 40)
    matrix, rows = drawn(40, width, seed=5).to(dtype), drawn(130, width, seed=6).to(dtype)
    exact, dense = matrix.double(), torch.zeros(130, 40, dtype=torch.float64)
    dense[support.row, support.latent] = weight.double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        written = calls.bags(matrix, support.latent, weight, support.offsets)
        at = support.by_latent
        summed = calls.bags(rows, at.row, weight, at.bounds, at.order)
        products = calls.inner(rows, matrix, support.latent, support.offsets)
    finally:
        torch.set_num_threads(before)
    wanted = (rows.double() @ exact.T)[support.row, support.latent]
    assert off(written, dense @ exact) < DTYPES[dtype]
    assert off(summed, dense.T @ rows.double()) < DTYPES[dtype]
    assert off(products, wanted) < 2e-6, "products of rounded numbers are exact"
    assert not written[support.offsets.diff() == 0].any()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fit_has_the_loss_and_gradients_of_float64(dtype):
    support, value = ragged(300, 40)
    leaves = [value, drawn(40, 200, seed=7), drawn(200, seed=8)]
    target = drawn(300, 200, seed=9)

    def run(double: bool) -> tuple[torch.Tensor, ...]:
        own = [(t.double() if double else t.clone()).requires_grad_() for t in leaves]
        to = target.double() if double else target
        loss, y = fit(*own, to, support, dtype=torch.float64 if double else dtype)
        (3 * loss).backward()
        return loss.detach(), y, *(t.grad for t in own)

    for found, wanted in zip(run(double=False), run(double=True), strict=True):
        assert off(found, wanted) < DTYPES[dtype]
    assert not run(double=False)[1].requires_grad


@needs_compiler
def test_a_wrong_weight_would_be_noticed():
    support, weight = ragged(60, 20)
    rows, wrong = drawn(60, 33), weight.clone()
    wrong[5] += 0.5
    right = over_rows(weight.double(), rows.double(), support)
    assert off(over_rows(wrong, rows, support), right) > 0.01


@needs_compiler
@pytest.mark.parametrize("unit", [False, True])
def test_adam_is_that_of_torch(unit):
    weight = torch.nn.functional.normalize(drawn(50, 130), dim=1)
    reference = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.Adam([reference], lr=0.02, betas=(0.8, 0.95))
    mean, spread = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 6):
        gradient = drawn(50, 130, seed=step)
        kept = gradient
        if unit:
            along = (gradient * reference.detach()).sum(1, keepdim=True)
            kept = gradient - along * reference.detach()
        found = calls.squares(weight, gradient, unit=unit)
        assert found.square == pytest.approx(float(kept.double().square().sum()), rel=1e-5)
        reference.grad = 0.5 * kept
        optimizer.step()
        if unit:
            with torch.no_grad():
                reference /= reference.norm(dim=1, keepdim=True)
        settings = calls.Step(0.02, 0.8, 0.95, 1e-8, 1 - 0.8**step, 1 - 0.95**step, 0.5)
        calls.adam(weight, gradient, mean, spread, found.along, settings)
        torch.testing.assert_close(weight, reference.detach(), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(spread, optimizer.state[reference]["exp_avg_sq"])


def test_without_a_compiler_torch_does_the_same_arithmetic(monkeypatch):
    support, value = ragged(80, 30)
    W_dec = drawn(30, 50)
    with_it = write(value, W_dec, support)
    monkeypatch.setattr(calls, "library", lambda: None)
    torch.testing.assert_close(write(value, W_dec, support), with_it)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_is_missing_or_fails_is_no_error(compiler, tmp_path):
    code = (
        "from unweave.dictionaries.kernels.native.building import library; assert library() is None"
    )
    environment = {"CC": compiler, "UNWEAVE_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert not [*tmp_path.rglob("*.so")]


@needs_compiler
def test_a_rounded_matrix_is_kept_until_the_matrix_changes():
    matrix = torch.nn.Parameter(drawn(20, 40))
    first = rounded(matrix, torch.bfloat16)
    assert rounded(matrix, torch.bfloat16) is first
    with torch.no_grad():
        matrix[3] += 1
    assert to_keep(matrix) is None
    assert torch.equal(rounded(matrix, torch.bfloat16), matrix.detach().bfloat16())
    gradient, mean, spread = drawn(20, 40, seed=1), torch.zeros(20, 40), torch.zeros(20, 40)
    step = calls.Step(0.1, 0.9, 0.999, 1e-8, 0.1, 0.001, 1.0)
    calls.adam(matrix, gradient, mean, spread, None, step, to_keep(matrix))
    kept = rounded(matrix, torch.bfloat16)
    assert torch.equal(kept, matrix.detach().bfloat16()), "the update wrote both"
    matrix.data = drawn(20, 40, seed=2)
    assert torch.equal(rounded(matrix, torch.bfloat16), matrix.detach().bfloat16())
