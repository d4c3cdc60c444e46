"""Training of QK transcoders: whole rows at a time, since a pattern needs its context.

Latents that fall silent restart where the pattern is worst: the encoder at what is read there, the
decoder at what is missing of the query or key. Step s draws its rows from the seed and s alone, so
that a resumed run ends in the same bits.
"""

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.dictionaries.attention.qk_block import QKBlock
from unweave.dictionaries.attention.qk_transcoder import QKPass, QKTranscoder, Which
from unweave.progress import QUIET, Progress
from unweave.subject.scores import pattern, scores
from unweave.training.adam_state import part_state, restore_part
from unweave.training.attention.qk_loss import QKLoss, QKLossSettings, active, qk_loss
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.schedule import Schedule

_NAME = "qk"
_SIDES: tuple[Which, Which] = ("Q", "K")


class QKSettings(BaseModel):
    """How query and key features are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: PositiveInt = 1500
    """Updates."""
    rows: PositiveInt = 4
    """Rows of tokens per step; few of them and more steps go further (studies/qk_transcoders)."""
    lr: PositiveFloat = 5e-3
    """Peak learning rate of Adam for encoders; that of decoders is in the units of what they
    write: as many times larger as queries and keys vary."""
    schedule: Schedule = Schedule(shape="linear", warmup=0.02, decay_from=0.4)
    """How it moves."""
    loss: QKLossSettings = QKLossSettings()
    """Weights of the terms."""
    revive_at: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    """Shares of the run at which silent latents restart."""
    silent_share: float = Field(default=0.04, gt=0, lt=1)
    """Silent is who has not fired for this share of the run's tokens."""
    log_every: PositiveInt = 50
    """Steps between two lines of the log."""


def learn_qk(
    transcoder: QKTranscoder,
    block: QKBlock,
    x: Float[Tensor, "rows pos d_in"],
    *,
    seed: int,
    settings: QKSettings | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train in place on what attention reads; returns the log, a line every `log_every` steps.

    Rows begin with the start token and are visited in an order of their own in every epoch.
    """
    settings, checkpoints = settings or QKSettings(), checkpoints or Checkpoints(None)
    trainer = QKTrainer(transcoder, block, x, seed=seed, settings=settings)
    metrics: Metrics = []
    if (progressed := checkpoints.latest()) is not None:
        metrics = progressed.metrics
        trainer.restore(progressed.tensors[_NAME])
    transcoder.train()
    with progress.task("Training QK features", total=settings.steps, unit="steps") as advance:
        advance(trainer.step_index)
        while trainer.step_index < settings.steps:
            loss, revived = trainer.step()
            done = trainer.step_index
            if revived or done % settings.log_every == 0 or done == settings.steps:
                line = {term: value.item() for term, value in loss._asdict().items()}
                metrics.append({"stage": _NAME, "step": done, "revived": revived, **line})
            advance(1)
            checkpoints.offer(done, metrics, lambda: {_NAME: trainer.state()})
    transcoder.eval()
    return metrics


class QKTrainer:
    """One transcoder, its optimiser, and for how many tokens each latent has been silent."""

    def __init__(
        self,
        transcoder: QKTranscoder,
        block: QKBlock,
        x: Float[Tensor, "rows pos d_in"],
        *,
        seed: int,
        settings: QKSettings,
    ) -> None:
        self.transcoder, self.block, self.x = transcoder, block, x
        self.settings, self.step_index, self._seed = settings, 0, seed
        spec, device = transcoder.spec, x.device
        self.silent = {
            which: torch.zeros(n, dtype=torch.long, device=device)
            for which, n in zip(_SIDES, (spec.n_queries, spec.n_keys), strict=True)
        }
        self._rates = _rates(transcoder, block, x[:16])
        groups = [{"params": [p]} for p in transcoder.parameters()]
        self.optimizer = torch.optim.Adam(groups, lr=settings.lr, fused=True)
        self._revive_steps = {int(share * settings.steps) for share in settings.revive_at} - {0}

    def step(self) -> tuple[QKLoss, int]:
        """One update; the terms before it and how many latents restarted."""
        settings = self.settings
        x = self.x[self._drawn()]
        loss, found = qk_loss(self.transcoder, self.block, x, settings.loss)
        parameters = list(self.transcoder.parameters())
        gradients = torch.autograd.grad(loss.total(settings.loss), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        moved = settings.lr * settings.schedule.at(self.step_index, settings.steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = moved * rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._note(found)
        revived = self._revive(x, found) if self.step_index in self._revive_steps else 0
        self.step_index += 1
        return loss, revived

    def _drawn(self) -> Int[Tensor, " rows"]:
        """Rows of this step: the next ones in the order of the epoch."""
        count, each = len(self.x), min(self.settings.rows, len(self.x))
        epoch, place = divmod(self.step_index, count // each)
        generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
        order = torch.randperm(count, generator=generator)
        return order[place * each : (place + 1) * each].to(self.x.device)

    @torch.no_grad()
    def _note(self, found: QKPass) -> None:
        for which, side in zip(_SIDES, (found.query_side, found.key_side), strict=True):
            on, silent = active(side), self.silent[which]
            fired = on.any(0) if side.code is None else side.code.support.latent[on]
            silent += len(side.y)
            silent[fired] = 0

    @torch.no_grad()
    def _revive(self, x: Tensor, found: QKPass) -> int:
        limit = self.settings.silent_share * self.settings.steps * len(found.query_side.y)
        dead = {which: self.silent[which] > limit for which in _SIDES}
        if not any(mask.any() for mask in dead.values()):
            return 0
        block = self.block
        q, k = block.queries(x), block.keys(x)
        true = pattern(scores(q, k, block.scoring))
        # A query is as bad as its pattern is off, a key as what the queries give it is.
        badness = {
            "Q": (pattern(scores(found.q, k, block.scoring)) - true).abs().sum((1, 3)),
            "K": (pattern(scores(q, found.k, block.scoring)) - true).abs().sum((1, 2)),
        }
        missing = {"Q": q - found.q, "K": k - found.k}
        read = self.transcoder.read(x[:, 1:].flatten(0, 1))
        generator = torch.Generator().manual_seed((self._seed << 20) + self.step_index)
        for which in _SIDES:
            bad, left = (t[which][:, 1:].flatten(0, 1) for t in (badness, missing))
            restart_(
                self.transcoder, self.optimizer, which, dead[which], read, left, bad, generator
            )
            self.silent[which][dead[which]] = 0
        return int(sum(mask.sum() for mask in dead.values()))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        own = {f"silent.{which}": silent for which, silent in self.silent.items()}
        own["step"] = torch.tensor(self.step_index)
        return part_state(self.transcoder, self.optimizer) | own

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on exactly where `state()` was taken."""
        restore_part(self.transcoder, self.optimizer, state)
        for which, silent in self.silent.items():
            silent.copy_(state[f"silent.{which}"])
        self.step_index = int(state["step"])


@torch.no_grad()
def restart_(
    transcoder: QKTranscoder,
    optimizer: torch.optim.Adam,
    which: Which,
    dead: Bool[Tensor, " latents"],
    read: Float[Tensor, "tokens d_in"],
    missing: Float[Tensor, "tokens heads d_head"],
    badness: Float[Tensor, " tokens"],
    generator: torch.Generator,
) -> None:
    """Restart dead latents at tokens drawn with probability proportional to their badness.

    What fires at the drawn token then writes half of what is missing there.
    """
    places = dead.nonzero()[:, 0]
    if not len(places):
        return
    # Drawn on the processor, from which the generator is.
    weight = badness.clamp_min(1e-9).cpu()
    drawn = torch.multinomial(weight, len(places), replacement=True, generator=generator)
    drawn = drawn.to(read.device)
    W_enc, b_enc, W_dec, _ = transcoder.side(which)
    living = W_enc.norm(dim=1)[~dead]
    height = float(living.mean()) if len(living) else 1.0
    length = read[drawn].norm(dim=1, keepdim=True).clamp_min(1e-12)
    W_enc[places] = read[drawn] / length * height
    # A third of the way: so tokens like the drawn one make it fire, and few others.
    b_enc[places] = -height * length[:, 0] / 3
    W_dec[places] = missing[drawn] * (0.5 / (height * length * 2 / 3))[:, :, None]
    for parameter in (W_enc, b_enc, W_dec):
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment in optimizer.state.get(parameter, {}):
                optimizer.state[parameter][moment][places] = 0


@torch.no_grad()
def _rates(transcoder: QKTranscoder, block: QKBlock, x: Tensor) -> list[float]:
    """What the learning rate is multiplied by, for each parameter."""
    inside = x[:, 1:].flatten(0, 1)
    spread = {"Q": block.queries(inside).std(0).mean(), "K": block.keys(inside).std(0).mean()}
    return [
        spread[name[-1]].item() if name.startswith(("W_dec", "b_dec")) else 1.0
        for name, _ in transcoder.named_parameters()
    ]
