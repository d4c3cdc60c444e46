"""One set of dictionaries that shares an objective, with its optimiser and its dead latents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor

from unweave.activations.scale import unit_scale
from unweave.dictionaries.cross_layer import offset_masks
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.initial import Start, initialise_
from unweave.dictionaries.kernels.deferred import PutOff, putting_off
from unweave.dictionaries.kernels.listed import listed_rows
from unweave.dictionaries.metrics import FidelitySums, fidelity_of, fidelity_sums
from unweave.dictionaries.shares import ALONE, shares
from unweave.errors import UserError
from unweave.training.adam_state import part_state, restore_part
from unweave.training.batches import VectorBatch
from unweave.training.dead import DeadLatents, Silence, resample_
from unweave.training.lazy import Lazy
from unweave.training.objectives.cross_layer import CrossLayer
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.objectives.local import Local
from unweave.training.objectives.loss import Loss, State
from unweave.training.penalties.weighted import Penalty, Steering
from unweave.training.schedule import Schedule
from unweave.training.screening import Screen, Screening
from unweave.training.update import update_

_WATCH_EVERY = 8
"""Fidelity is summed up in every eighth step: in all of them it would cost a tenth of the time."""
_PUT_OFF_BYTES = 1 << 25
"""Matrices of this size have their gradient worked out in blocks (`kernels.deferred`)."""

Objective = Annotated[Local | EndToEnd | CrossLayer, Field(discriminator="kind")]


class TraineeSettings(BaseModel):
    """How one set of dictionaries is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    objective: Objective = Local()
    """What is made small."""
    penalties: tuple[Penalty, ...] = ()
    """What makes latents sparse, for activations that do not choose them."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's memory."""
    schedule: Schedule = Schedule()
    """How the rate moves."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient, in units of sqrt(width written) so that it does not depend on
    the scale of the data; None: no clipping."""
    start: Start | None = Start()
    """Where the weights start; None: weights and scales stay as they come."""
    scale: bool = True
    """Scale every site so that the median norm of its vectors is sqrt(width)."""
    dead: DeadLatents = DeadLatents()
    """What is done for latents that fall silent."""
    lazy: Lazy | None = None
    """When given, rows of silent latents wait: worth it for wide dictionaries and small batches."""
    screen: Screen | None = None
    """When given, vectors choose among likely latents: worth it for very wide dictionaries."""
    k_from: PositiveFloat | None = None
    """TopK and BatchTopK: begin with this many times k latents and come down to k ..."""
    k_until: float = Field(default=0.25, gt=0, le=1)
    """... at this share of the run."""


class Trainee:
    """Dictionaries of one objective while they train; use `trainer.train` unless you step alone."""

    def __init__(
        self,
        dictionaries: Mapping[str, Dictionary],
        settings: TraineeSettings,
        *,
        steps: int,
        batch: int,
        seed: int = 0,
        name: str = "dictionary",
        device: torch.device | str | None = None,
    ) -> None:
        """`device` is where the dictionaries go; they stay where they are when it is not given."""
        if not name or Path(name).name != name:
            raise UserError(
                f"A trainee cannot be called {name!r}: its checkpoints are files of that name, so "
                "give it one without /"
            )
        self.dictionaries, self.settings, self.name = dict(dictionaries), settings, name
        self.steps, self._batch, self._seed, self.step_index = steps, batch, seed, 0
        self.modules = torch.nn.ModuleDict(
            {key.replace(".", "/"): dictionary for key, dictionary in dictionaries.items()}
        ).to(device)
        self.device = next(self.modules.parameters()).device
        self.optimizer = torch.optim.Adam(
            self.modules.parameters(), lr=settings.lr, betas=settings.betas, fused=True
        )
        # Where writes add up, a site's offset stands in one dictionary alone.
        adds_up = settings.objective.kind != "local"
        self._offsets = offset_masks(self.dictionaries) if adds_up else {}
        self.silence = {k: Silence(d.n_latents, self.device) for k, d in dictionaries.items()}
        self.steering = {k: Steering(settings.penalties) for k in dictionaries}
        screen = settings.screen
        self._screening = (
            {} if screen is None else {k: Screening(d, screen) for k, d in dictionaries.items()}
        )
        self._limit = settings.dead.silent_share * steps * batch
        self._sums: dict[str, FidelitySums] = {}
        self._log: dict[str, float] = {}
        self._revived: dict[str, float] = {}
        self._k = {
            key: d.activation.k for key, d in dictionaries.items() if hasattr(d.activation, "k")
        }

    def begin(self, batch: VectorBatch) -> None:
        """Set scales and first weights from the run's first vectors."""
        if self.settings.start is None:
            return
        batch = batch.to(self.device)
        for place, dictionary in enumerate(self.dictionaries.values()):
            spec = dictionary.spec
            if self.settings.scale:
                reads = [unit_scale(batch.vectors[p.site]) for p in spec.reads]
                writes = [unit_scale(batch.vectors[p.site]) for p in spec.writes]
                dictionary.rescale_(reads, writes)
            x = batch.cat([p.site for p in spec.reads]) * dictionary.input_scale
            y = batch.cat([p.site for p in spec.writes]) * dictionary.output_scale
            if spec.layer_norm:
                x = y = dictionary.normalise(x)[0]
            initialise_(dictionary, x, y, self.settings.start, seed=self._seed + 7919 * place)
            if spec.decoder == "unit":
                dictionary.unit_decoder_()
        for key, mask in self._offsets.items():
            self.dictionaries[key].b_dec.data.mul_(mask)

    def step(self, batch: Any) -> Loss:
        """One update on a batch that the objective understands."""
        batch = batch.to(self.device)
        self.modules.train()
        self._anneal_k()
        dead = {
            key: silence.dead(self._limit) & self._revivable(key)
            for key, silence in self.silence.items()
        }
        state = State(self.step_index, self.step_index / max(self.steps, 1), dead)
        auxk = self.settings.dead.auxk
        auxk = auxk and auxk.at(self.step_index)
        # Several processes add gradients up as whole matrices, and would have to agree on the rest.
        alone, lazy = shares() is ALONE, self.settings.lazy is not None
        for screening in self._screening.values() if alone else ():
            screening.begin_step(self.step_index, self.steps)
        at_least = _PUT_OFF_BYTES if alone and not lazy else None
        with listed_rows(lazy and alone), putting_off(at_least) as put_off:
            loss = self.settings.objective.loss(
                self.dictionaries, batch, state, self.steering, auxk
            )
        self.optimizer.zero_grad()
        loss.total.backward()
        self._exchange(loss, dead)
        self._update(put_off)
        self._note(loss, dead)
        self.step_index += 1
        return loss

    def finish(self) -> None:
        """Leave the dictionaries as they are to be used: k as the spec says, thresholds on."""
        for key, k in self._k.items():
            self.dictionaries[key].activation.k = k  # a run stopped early may not be down to it
        self.modules.eval()

    def report(self) -> dict[str, float]:
        """What has been seen since the last report: fidelity of every dictionary, how many latents
        were restarted; and the parts of the last step's loss."""
        found: dict[str, float] = self._log | self._revived
        for key, sums in self._sums.items():
            fidelity = fidelity_of(sums)
            for field in ("l0", "mse", "fvu", "cosine", "l2_ratio", "gamma"):
                found[f"{key}.{field}"] = getattr(fidelity, field)
            found[f"{key}.alive"] = 1 - self.silence[key].dead(self._limit).float().mean().item()
        self._sums, self._log, self._revived = {}, {}, {}
        return found

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        tensors = part_state(self.modules, self.optimizer)
        tensors |= {f"silent.{key}": silence.since for key, silence in self.silence.items()}
        tensors |= {f"steering.{key}": s.log_factor for key, s in self.steering.items()}
        tensors |= {
            f"scales.{key}.{side}": torch.tensor(
                [port.scale for port in getattr(dictionary.spec, side)], dtype=torch.float64
            )
            for key, dictionary in self.dictionaries.items()
            for side in ("reads", "writes")
        }
        for key, screening in self._screening.items():
            tensors |= {f"screen.{key}.{name}": t for name, t in screening.state().items()}
        return tensors | {"step": torch.tensor(self.step_index)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on exactly where `state()` was taken."""
        restore_part(self.modules, self.optimizer, tensors)
        for key, dictionary in self.dictionaries.items():
            self.silence[key].since = tensors[f"silent.{key}"].to(self.device, copy=True)
            self.steering[key].log_factor = tensors[f"steering.{key}"].clone()
            reads, writes = (tensors[f"scales.{key}.{s}"].tolist() for s in ("reads", "writes"))
            dictionary.rescale_(reads, writes)
        for key, screening in self._screening.items():
            names = [name for name in tensors if name.startswith(f"screen.{key}.")]
            screening.restore({name.rpartition(".")[2]: tensors[name] for name in names})
        self.step_index = int(tensors["step"])

    def _exchange(self, loss: Loss, dead: Mapping[str, Tensor]) -> None:
        """Where several processes train together, their gradients are put together here."""

    def _squared_norm(self, squares: Mapping[str, float]) -> float:
        """That of the whole gradient, from those of the parameters by name."""
        return sum(squares.values())

    def _revivable(self, key: str) -> bool:
        # What revives a latent rewrites its encoder row, which other encoders share or lack.
        return self.dictionaries[key].spec.encoder.kind in ("linear", "switch")

    def _anneal_k(self) -> None:
        share = self.step_index / max(1.0, self.settings.k_until * self.steps)
        for key, k in self._k.items():
            factor = 1.0
            if self.settings.k_from is not None:
                factor += (self.settings.k_from - 1) * max(0.0, 1 - share)
            dictionary = self.dictionaries[key]
            dictionary.activation.k = min(round(k * factor), dictionary.n_latents)

    def _update(self, put_off: PutOff | None) -> None:
        for key, mask in self._offsets.items():
            if (to_offset := self.dictionaries[key].b_dec.grad) is not None:
                to_offset.mul_(mask)
        width = max(d.spec.d_out for d in self.dictionaries.values())
        clip = self.settings.clip
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.schedule.at(self.step_index, self.steps)
        limit = None if clip is None else clip * width**0.5
        update_(
            self.modules,
            self.optimizer,
            limit=limit,
            in_all=self._squared_norm,
            lazy=self.settings.lazy,
            put_off=put_off,
        )

    @torch.no_grad()
    def _note(self, loss: Loss, dead: Mapping[str, Tensor]) -> None:
        self._log = loss.log
        resample = self.settings.dead.resample
        due = resample is not None and self.step_index in {
            int(share * self.steps) for share in resample.at
        }
        for key, screening in self._screening.items() if shares() is ALONE else ():
            screening.end_step(loss.watched[key])
        for key, seen in loss.watched.items():
            code = seen.passed.sparse_code
            self.silence[key].note(code)
            if self.step_index % _WATCH_EVERY == 0 or key not in self._sums:
                sums = fidelity_sums(seen.y, seen.passed.y, code)
                self._sums[key] = self._sums[key] + sums if key in self._sums else sums
            if due and resample is not None:
                revived = resample_(
                    self.dictionaries[key],
                    self.optimizer,
                    seen.x,
                    seen.y - seen.passed.y,
                    dead[key],
                    height=resample.height,
                    generator=torch.Generator().manual_seed(self._seed + self.step_index),
                )
                self.silence[key].since[dead[key]] = 0
                so_far = self._revived.get(f"{key}.revived", 0.0)
                self._revived[f"{key}.revived"] = so_far + revived
