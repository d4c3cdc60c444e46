"""unweave itself, through its recipes and its one loop."""

import sys
from collections.abc import Callable

import torch

from benchmarks.contestants.contract import Contestant, Data, Task, common_threshold, settled_rows
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.subject import keep_freed_memory
from unweave.training.batches import VectorBatch
from unweave.training.recipes.ask import Ask
from unweave.training.recipes.catalog import recipe
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train

RECIPES = {
    "topk": "topk-short",
    "transcoder": "topk-short",
    "batchtopk": "batchtopk",
    "jumprelu": "jumprelu-2024",
}


def unweave(
    data: Data, task: Task, *, float32: bool = False, steady: bool = False, quick: bool = False
) -> Contestant:
    """The recipe of the task's kind on the batches in their order.

    With `steady`, k is what it ends with from the first step on: a cheaper run for less fidelity.
    With `quick` the auxiliary loss besides comes every eighth step only.
    """
    keep_freed_memory()
    if float32:
        _multiply_in_float32()
    dictionary, settings = prepare(task)
    if steady or quick:
        settings = settings.model_copy(update={"k_from": None})
    if quick:
        rare = settings.dead.auxk and settings.dead.auxk.model_copy(update={"every": 8})
        dead = settings.dead.model_copy(update={"auxk": rare})
        settings = settings.model_copy(update={"dead": dead})
    trainee = Trainee(
        {"x": dictionary}, settings, steps=task.steps, batch=data.batch, seed=task.seed
    )
    source = _Source(data, lambda: _settle(trainee, dictionary, data, task))

    def fit() -> None:
        train([trainee], source, settings=TrainSettings(log_every=10**9))

    def apply(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # In the middle of a run k is larger still: what is judged has the k that it will end with.
        k = getattr(dictionary.activation, "k", None)
        if k is not None:
            dictionary.activation.k = task.k
        code = dictionary.encode(x)
        if k is not None:
            dictionary.activation.k = k
        return dictionary.decode(code), code.fired()

    return Contestant(fit, apply, dictionary.directions)


def prepare(task: Task) -> tuple[Dictionary, TraineeSettings]:
    """The dictionary and how it is trained."""
    x, y = Port(site="x", width=task.width), Port(site="y", width=task.width)
    writes = y if task.kind == "transcoder" else x
    asked = Ask(reads=(x,), writes=(writes,), n_latents=task.latents, k=task.k, lr=task.lr or None)
    specs, settings = recipe(RECIPES[task.kind])(asked)
    if task.settled:
        settings = settings.model_copy(update={"k_from": None})
    return Dictionary(specs["dictionary"]), settings


class _Source:
    """Batches by step; the first one is asked for twice, to start from and to train on."""

    def __init__(self, data: Data, settle: Callable[[], None]) -> None:
        self.steps, self.batch = data.steps, data.batch
        self._iterator, self._settle = iter(data), settle
        self._first: VectorBatch | None = None

    def at(self, step: int) -> VectorBatch:
        if step == 0 and self._first is not None:
            first, self._first = self._first, None
            self._settle()
            return first
        drawn = next(self._iterator)
        pair = drawn if isinstance(drawn, tuple) else (drawn, drawn)
        batch = VectorBatch({"x": pair[0], "y": pair[1]})
        if step == 0:
            self._first = batch
        return batch


def _settle(trainee: Trainee, dictionary: Dictionary, data: Data, task: Task) -> None:
    """Thresholds at an L0 of k and the clock of the run past its warm-up."""
    if task.kind != "jumprelu" or not task.settled:
        return
    x = settled_rows(data) * dictionary.input_scale
    with torch.no_grad():
        threshold = common_threshold(dictionary.encoder.dense(x), task.k)
    dictionary.activation.log_threshold.data.fill_(torch.tensor(threshold).log())
    trainee.step_index = task.steps // 2


def _multiply_in_float32() -> None:
    """Take the encoder's product in float32 for a comparison in equal precision."""
    found = [m for name, m in sys.modules.items() if name.startswith("unweave.")]
    patched = [m for m in found if hasattr(m, "product_dtype")]
    if not patched:
        raise RuntimeError("unweave.dictionaries no longer asks product_dtype for its precision")
    for module in patched:
        module.product_dtype = lambda: torch.float32  # type: ignore[attr-defined]
