"""The Triton kernels against torch in float64; on a GPU, else on Triton's interpreter."""

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.code import Support
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.kernels.rounding import to_keep
from unweave.dictionaries.kernels.select import Selection
from unweave.training.batches import ArraySource
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, D, N = 37, 40, 72  # no multiple of any tile: edges everywhere
Kernels = dict[str, ModuleType]


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Kernels:
    """The modules, made for the interpreter where there is no GPU."""
    if find_spec("triton") is None:  # looked for, not imported: it takes its mode when it is
        pytest.skip("Triton is not installed")
    before = os.environ.get("TRITON_INTERPRET")
    if DEVICE.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    home = "unweave.dictionaries.kernels.gpu"
    names = ("groups", "choose", "compare", "rank", "sums", "update")
    made = {name: importlib.import_module(f"{home}.{name}") for name in names}
    reason = _out_of_order(made["groups"])
    if reason is None:
        yield made
    os.environ.pop("TRITON_INTERPRET", None)
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before
    if reason is not None:
        pytest.skip(reason)


def _out_of_order(groups: ModuleType) -> str | None:
    """Why the interpreter cannot be used: older ones do not go with numpy 2.4."""
    try:
        groups.group_maxima(draw(2, 16), draw(16, 16), draw(16), 16)
    except Exception as error:
        if DEVICE.type == "cuda" or "converted to Python scalars" not in str(error):
            raise
        return f"this Triton's interpreter does not go with this numpy: {error}"
    return None


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def problem(dtype: torch.dtype = torch.bfloat16, n: int = N) -> tuple[torch.Tensor, ...]:
    """Vectors and an encoder in `dtype`, and their pre-activations in float64."""
    x, W, b = draw(ROWS, D, dtype=dtype), draw(n, D, seed=1, dtype=dtype), draw(n, seed=2)
    return x, W, b, x.double() @ W.double().T + b.double()


def tiles(kernels: Kernels) -> object:
    return kernels["groups"].Tiles(rows=16, latents=32, deep=16, pairs=16)


def chosen(found: Selection, n: int = N) -> torch.Tensor:
    """Scores at chosen places, zero elsewhere."""
    dense = found.score.new_zeros(found.support.rows, n)
    return dense.index_put((found.support.row, found.support.latent), found.score)


def test_group_maxima(kernels: Kernels) -> None:
    x, W, b, pre = problem()
    found = kernels["groups"].group_maxima(x, W, b, 16, tiles=tiles(kernels))
    padded = torch.nn.functional.pad(pre, (0, 80 - N), value=-torch.inf)
    torch.testing.assert_close(found.double(), padded.view(ROWS, 5, 16).amax(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n", "k"), [(5, 5), (100, 7), (1000, 32)])
def test_places_of_the_largest_numbers(kernels: Kernels, n: int, k: int) -> None:
    scores = draw(5, n)
    scores[1] = -scores[1].abs()
    scores[2] = 1.0  # all alike
    scores[3, : n // 2] = -torch.inf
    scores[4] = (2 * scores[4]).round()  # many alike
    found = kernels["rank"].top_places(scores, k)
    assert (found.diff(dim=1) > 0).all()  # each once, in order
    best = scores.topk(k, dim=1).values
    assert torch.equal(scores.gather(1, found).sort(1, descending=True).values, best)
    assert torch.equal(found[2], torch.arange(k, device=DEVICE))


@pytest.mark.parametrize("signed", [False, True])
def test_the_k_largest_of_each_row(kernels: Kernels, signed: bool) -> None:
    x, W, b, pre = problem()
    found = kernels["choose"].largest(x, W, b, 4, 16, signed=signed, tiles=tiles(kernels))
    wanted = (pre.abs() if signed else pre).topk(4, dim=1).indices
    mask = torch.zeros_like(pre).scatter(1, wanted, 1.0)
    torch.testing.assert_close(chosen(found).double(), pre * mask, atol=1e-4, rtol=0)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


def test_no_tensor_is_as_large_as_the_pre_activations(kernels: Kernels) -> None:
    n = 640
    x, W, b = draw(ROWS, 4), draw(n, 4, seed=1), draw(n, seed=2)
    with Largest() as made:
        kernels["choose"].largest(x, W, b, 2, 16, tiles=tiles(kernels))
        kernels["choose"].largest_of_batch(x, W, b, 2, 16, tiles=tiles(kernels))
    # The interpreter copies what it is given, four bytes a number.
    assert 0 < made.numbers <= max(ROWS * n / 16, 4 * W.numel()) < ROWS * n / 2


def test_ties_give_k_latents_all_the_same(kernels: Kernels) -> None:
    x, W, b = torch.ones(ROWS, D, device=DEVICE), torch.ones(N, D, device=DEVICE), draw(N) * 0
    found = kernels["choose"].largest(x, W, b, 4, 16, tiles=tiles(kernels))
    latent = found.support.latent.view(ROWS, 4).sort(1).values
    assert (latent.diff(dim=1) > 0).all()
    assert latent.max() < N
    assert (found.score == D).all()


def test_the_largest_of_a_batch(kernels: Kernels) -> None:
    x, W, b, pre = problem()
    found = kernels["choose"].largest_of_batch(x, W, b, 3, 16, tiles=tiles(kernels))
    bound = pre.flatten().topk(3 * ROWS).values[-1]
    torch.testing.assert_close(chosen(found).double(), pre * (pre >= bound), atol=1e-4, rtol=0)
    assert found.support.offsets.diff().unique().numel() > 1  # rows differ in how many they get


def test_fewer_positive_scores_than_a_batch_asks_for(kernels: Kernels) -> None:
    x, W, b, pre = problem()
    b = b - pre.flatten().topk(20).values[-1].float()
    found = kernels["choose"].largest_of_batch(x, W, b, 3, 16, tiles=tiles(kernels))
    assert 15 <= len(found.score) <= 20
    assert (found.score > 0).all()


@pytest.mark.parametrize("own", [False, True])
def test_all_above_a_threshold(kernels: Kernels, own: bool) -> None:
    x, W, b, pre = problem()
    threshold = draw(N, seed=5).abs() * 6 if own else torch.tensor(9.0, device=DEVICE)
    found = kernels["choose"].above(x, W, b, threshold, tiles=tiles(kernels))
    torch.testing.assert_close(chosen(found).double(), pre * (pre > threshold), atol=1e-4, rtol=0)
    assert found.support.offsets[-1] == (pre > threshold).sum() > 0


def test_the_size_of_a_group_follows_what_is_ranked(kernels: Kernels) -> None:
    group_for = kernels["choose"].group_for
    assert group_for(4608, 32) == 16
    assert group_for(131072, 32) == 64
    assert group_for(256, 32) is None  # 16 groups cannot hold 32 groups with the largest maxima


def ragged() -> tuple[Support, torch.Tensor]:
    """A code with empty rows, a row of many entries and latents that never fire."""
    mask = draw(ROWS, N, seed=3) > 1.2
    mask[11], mask[:, 5], mask[3], mask[:, 7] = True, True, False, False
    support = Support.from_mask(mask)
    return support, draw(len(support.latent), seed=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding(kernels: Kernels, dtype: torch.dtype) -> None:
    support, value = ragged()
    matrix = draw(N, D, seed=6, dtype=dtype)
    found = kernels["sums"].bag_sums(value, matrix, support.latent, support.offsets)
    dense = value.new_zeros(ROWS, N).index_put((support.row, support.latent), value).double()
    torch.testing.assert_close(found.double(), dense @ matrix.double(), atol=1e-4, rtol=0)
    assert (found[3] == 0).all()


def test_gradients_against_float64(kernels: Kernels) -> None:
    support, value = ragged()
    W = draw(N, D, seed=6)
    g = draw(ROWS, D, seed=7)
    exact = value.double().requires_grad_(), W.double().requires_grad_()
    dense = exact[0].new_zeros(ROWS, N).index_put((support.row, support.latent), exact[0])
    (dense @ exact[1]).backward(g.double())
    products = kernels["sums"].sampled_products(g, W, support.latent, support.offsets)
    torch.testing.assert_close(products.double(), exact[0].grad, atol=1e-4, rtol=0)
    latent, order = support.latent.sort(stable=True)
    ends = torch.searchsorted(latent, torch.arange(N + 1, device=DEVICE))
    sums = kernels["sums"].bag_sums(value[order], g, support.row[order], ends)
    torch.testing.assert_close(sums.double(), exact[1].grad, atol=1e-4, rtol=0)
    assert (sums[7] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_comparing_with_a_target_against_float64(kernels: Kernels, dtype: torch.dtype) -> None:
    support, value = ragged()
    W, b, target = draw(N, D, seed=6, dtype=dtype), draw(D, seed=7), draw(ROWS, D, seed=8)
    exact = [t.double().requires_grad_() for t in (value, W, b)]
    dense = exact[0].new_zeros(ROWS, N).index_put((support.row, support.latent), exact[0])
    gap = dense @ exact[1] + exact[2] - target.double()
    loss = gap.square().sum(1).mean()
    loss.backward()
    code = (support.latent, value, support.offsets)
    found = kernels["compare"].decode_and_compare(W, *code, b, target, 2 / ROWS)
    near = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.01}
    torch.testing.assert_close(found.y.double(), (gap + target).detach(), atol=1e-4, rtol=0)
    assert float(found.square.sum() / ROWS) == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(found.to_value.double(), exact[0].grad, **near)
    torch.testing.assert_close(found.to_bias[0].double(), exact[2].grad, **near)
    torch.testing.assert_close(found.error.double(), (gap * 2 / ROWS).detach(), **near)


def test_an_update_is_that_of_torch_and_keeps_rows_at_length_one(kernels: Kernels) -> None:
    update = kernels["update"]
    W = torch.nn.functional.normalize(draw(N, D), dim=1)
    mine, theirs = W.clone(), torch.nn.Parameter(W.double())
    moments = torch.zeros_like(W), torch.zeros_like(W)
    copy = torch.empty_like(W, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam([theirs], lr=1e-2)
    for step in range(1, 4):
        gradient = draw(N, D, seed=step)
        exact = gradient.double()
        exact = exact - (exact * theirs.detach()).sum(1, keepdim=True) * theirs.detach()
        squares = update.row_squares(gradient, mine)
        torch.testing.assert_close(squares.double(), exact.square().sum(1), atol=1e-4, rtol=0)
        factor = (5 / squares.sum().sqrt()).clamp_max(1)
        theirs.grad = exact * factor.double()
        optimizer.step()
        theirs.data /= theirs.data.norm(dim=1, keepdim=True)
        at = update.AdamStep(1e-2, (0.9, 0.999), 1e-8, step, float(factor))
        update.adam_rows_(mine, gradient, *moments, at, unit=True, copy=copy)
    torch.testing.assert_close(mine.double(), theirs.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(copy.float(), mine, atol=1e-2, rtol=0)
    assert (mine - W).abs().max() > 1e-2  # it did move


def test_free_rows_keep_what_lengthens_them(kernels: Kernels) -> None:
    update = kernels["update"]
    W, gradient = draw(N, D), draw(N, D, seed=1)
    torch.testing.assert_close(
        update.row_squares(gradient), gradient.square().sum(1), atol=1e-4, rtol=0
    )
    mine, theirs = W.clone(), torch.nn.Parameter(W.clone())
    theirs.grad = gradient.clone()
    torch.optim.Adam([theirs], lr=1e-2).step()
    at = update.AdamStep(1e-2, (0.9, 0.999), 1e-8, 1)
    update.adam_rows_(mine, gradient, W * 0, W * 0, at, unit=False)
    torch.testing.assert_close(mine, theirs.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("activation", [TopK(k=3), BatchTopK(k=3)])
def test_training_goes_through_the_kernels(
    kernels: Kernels, activation: TopK | BatchTopK, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step by Triton and one by torch alone, of bfloat16 factors, end up close."""
    calls: list[str] = []
    for name, of in (("choose", ("largest", "largest_of_batch")), ("update", ("adam_rows_",))):
        for made in of:
            known = getattr(kernels[name], made)
            monkeypatch.setattr(
                kernels[name], made, lambda *a, f=known, n=made, **k: calls.append(n) or f(*a, **k)
            )

    def trained() -> tuple[dict[str, torch.Tensor], Dictionary]:
        dictionary = Dictionary(autoencoder("s", D, n_latents=N, activation=activation))
        source = ArraySource({"s": draw(48, D, seed=9)}, batch=48, steps=1, seed=1)
        trainee = Trainee({"x": dictionary}, TraineeSettings(), steps=1, batch=48, device=DEVICE)
        train([trainee], source)
        return trainee.state(), dictionary

    monkeypatch.setattr("unweave.dictionaries.dictionary.product_dtype", lambda: torch.bfloat16)
    by_triton, dictionary = trained()
    for matrix in (dictionary.W_dec, dictionary.W_enc):
        kept = to_keep(matrix)  # the interpreter cuts digits off where a GPU rounds
        torch.testing.assert_close(kept.float(), matrix.detach(), rtol=2**-7, atol=1e-6)
    assert {"adam_rows_"} < set(calls)
    monkeypatch.setattr("unweave.dictionaries.kernels.gpu.calls.able", lambda *_: False)
    monkeypatch.setattr("unweave.training.update.gpu.able", lambda *_: False)
    monkeypatch.setattr("unweave.dictionaries.kernels.native.calls.able", lambda *_: False)
    # As tensor cores do: products of bfloat16, sums in float32, or rows would choose otherwise.
    exact = lambda scorer, tile: tile.float() @ scorer.W.float().T + scorer.bias  # noqa: E731
    monkeypatch.setattr("unweave.dictionaries.encoder.linear.LinearScorer.__call__", exact)
    before = len(calls)
    by_torch, _ = trained()
    assert len(calls) == before
    for name, found in by_triton.items():
        gap = (found.double() - by_torch[name].double()).norm() / by_torch[name].double().norm()
        assert not gap > 0.03, name


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "room"), [(90, 232_448), (86, 101_376)])
def test_kernels_compile_for_a_gpu_and_fit_into_it(capability: int, room: int, tmp_path) -> None:
    """For an H100, and for a card with little shared memory; none of them has to be here."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).with_name("gpu_compiled.py")
    done = subprocess.run(
        [sys.executable, str(script), str(capability)],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["kernel"] for one in found if one["tensor_cores"]} == {"_maxima", "_members"}
    assert all(one["shared"] <= room for one in found)
