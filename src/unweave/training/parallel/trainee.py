"""A trainee whose steps are taken by many processes together.

After each step every process holds the same weights (its own latents of them, with shards), equal
up to the order of floating-point sums to those of one process that saw the whole batch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.metrics import FidelitySums
from unweave.dictionaries.shares import sharing
from unweave.errors import UserError
from unweave.training.batches import VectorBatch
from unweave.training.dead import Silence
from unweave.training.objectives.loss import Loss
from unweave.training.parallel.answers import StepAnswers
from unweave.training.parallel.exchange import (
    CHOSEN,
    FIRED,
    add_up_gradients_,
    who_fired,
)
from unweave.training.parallel.grid import Grid
from unweave.training.parallel.group import interleaved
from unweave.training.parallel.sharded import ShardedDictionary, per_latent
from unweave.training.parallel.sources import TokenShare, VectorShare
from unweave.training.trainee import Trainee, TraineeSettings


class SharedTrainee(Trainee):
    """See `Trainee`; give every process the same dictionaries, settings and seed.

    With more than one shard each process keeps its own latents of them, and the dictionaries given
    are not needed any more. Its batches are shares (`parallel.sources`).

    Raises:
        UserError: dictionaries, or penalties, that cannot be dealt out to shards.
    """

    def __init__(
        self,
        dictionaries: Mapping[str, Dictionary],
        settings: TraineeSettings,
        *,
        grid: Grid,
        steps: int,
        batch: int,
        seed: int = 0,
        name: str = "dictionary",
        device: torch.device | str | None = None,
    ) -> None:
        self.grid = grid
        parts = dict(dictionaries)
        if grid.latents.size > 1:
            _check(settings)
            parts = {k: ShardedDictionary(d, grid.latents) for k, d in dictionaries.items()}
        super().__init__(
            parts, settings, steps=steps, batch=batch, seed=seed, name=name, device=device
        )
        self.silence: dict[str, Silence] = {
            key: _SharedSilence(d.n_latents, self.device) for key, d in parts.items()
        }
        self._answers: StepAnswers | None = None

    def begin(self, batch: VectorBatch) -> None:
        """Set scales and first weights from the run's first vectors, all of them; what each shard
        takes is dealt out of a whole dictionary in memory, one at a time."""
        if self.settings.start is None:
            return
        if self.grid.latents.size == 1:
            super().begin(batch)
            return
        for place, (key, part) in enumerate(self.dictionaries.items()):
            assert isinstance(part, ShardedDictionary)
            whole = Dictionary(part.whole_spec).to(part.W_dec.dtype)
            Trainee(
                {key: whole},
                self.settings,
                steps=self.steps,
                batch=self._batch,
                seed=self._seed + 7919 * place,
            ).begin(batch)
            part.take_(whole)
        for key, mask in self._offsets.items():
            self.dictionaries[key].b_dec.data.mul_(mask)

    def step(self, batch: Any) -> Loss:
        """One update; the loss is that of this process's rows."""
        assert isinstance(batch, VectorShare | TokenShare)
        self._answers = StepAnswers(self.grid, batch.places, batch.whole)
        with sharing(self._answers):
            return super().step(batch)

    def report(self) -> dict[str, float]:
        """What all processes have seen since the last report, the same in each of them."""
        self._sums = {key: self._added_up(sums) for key, sums in self._sums.items()}
        if self._answers is not None and self._log:
            # A penalty is a sum over latents; everything else in the log is known to all shards.
            parts = torch.tensor([*self._log.values()], dtype=torch.float64)
            summed = self._answers.total(parts)
            over_latents = torch.tensor([key.endswith(".penalty") for key in self._log])
            means = self._answers.mean(torch.where(over_latents, summed, parts))
            self._log = dict(zip(self._log, means.tolist(), strict=True))
        found = super().report()
        for key in self.silence:
            if (name := f"{key}.alive") in found:
                alive = torch.tensor([found[name]], dtype=torch.float64)
                found[name] = float(self.grid.latents.sum(alive)) / self.grid.latents.size
        return found

    def _exchange(self, loss: Loss, dead: Mapping[str, Tensor]) -> None:
        assert self._answers is not None
        rows = self.grid.rows
        for key, dictionary in self.dictionaries.items():
            seen = loss.watched.get(key)
            having = None
            if seen is not None:
                state = who_fired(seen.passed, dictionary.n_latents, rows)
                silence = self.silence[key]
                assert isinstance(silence, _SharedSilence)
                silence.expect(state == FIRED, self._answers.whole)
                if dictionary.spec.encoder.kind == "linear":
                    having = (state >= CHOSEN) | dead[key]
            if rows.size > 1:
                add_up_gradients_(dictionary, having, self._answers.share, rows)

    def _squared_norm(self, squares: Mapping[str, float]) -> float:
        if self.grid.latents.size == 1:
            return super()._squared_norm(squares)
        own = sum(square for name, square in squares.items() if per_latent(name))
        common = sum(square for name, square in squares.items() if not per_latent(name))
        in_all = self.grid.latents.sum(torch.tensor([own], dtype=torch.float64))
        return float(in_all) + common

    def _added_up(self, sums: FidelitySums) -> FidelitySums:
        rows, shards = self.grid.rows, self.grid.latents
        fired = interleaved(shards.gather(rows.sum(sums.fired)))
        names = [name for name in vars(sums) if name not in ("target", "fired")]
        numbers = sums.target.new_tensor([float(getattr(sums, name)) for name in names])
        summed = rows.sum(torch.cat([numbers, sums.target]))
        values = dict(zip(names, summed[: len(names)].tolist(), strict=True))
        values |= {name: int(values[name]) for name in ("rows", "pointing")}
        return FidelitySums(**values, target=summed[len(names) :], fired=fired)


def gathered(trainee: Trainee) -> dict[str, Dictionary]:
    """Whole dictionaries, in every process; all must ask for them together."""
    return {
        key: part.gathered() if isinstance(part, ShardedDictionary) else part
        for key, part in trainee.dictionaries.items()
    }


class _SharedSilence(Silence):
    """Silence in all processes: who fired has been settled when a batch is counted."""

    _fired: Tensor
    _rows: int

    def expect(self, fired: Tensor, rows: int) -> None:
        """Who fired in any of the batch's rows, and how many rows it has."""
        self._fired, self._rows = fired, rows

    def note(self, code: SparseCode) -> None:
        """Count the batch that was told of."""
        self.since += self._rows
        self.since[self._fired] = 0


def _check(settings: TraineeSettings) -> None:
    if any(penalty.form.kind == "hoyer" for penalty in settings.penalties):
        raise UserError(
            "The hoyer penalty compares a row's latents with each other and cannot be shared out "
            "to shards: take another, or --shards 1"
        )
