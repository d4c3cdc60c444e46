"""The subject writes: one token after another, many rows at once, with a key-value cache."""

from collections.abc import Callable, Collection
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.network import Subject


@runtime_checkable
class _Output(Protocol):
    logits: Tensor


@runtime_checkable
class _Cache(Protocol):
    def batch_select_indices(self, indices: Tensor) -> None: ...


@runtime_checkable
class Stepping(Protocol):
    """What can write: it is given only the tokens that it has not seen yet."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, `[batch, vocab]`."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone."""


def continue_text(
    subject: Subject,
    prompt: str,
    new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    by: Stepping | None = None,
) -> str:
    """Continue a prompt: what the subject writes after it, without the prompt.

    Temperature 0 takes the likeliest token each time; above 0 samples, the same for the same seed.
    Under `subject.swapped(...)` it is the changed network that writes; `by` is something else that
    does, in the subject's tokens.

    Raises:
        UserError: the subject has no tokenizer, or prompt and continuation exceed its context.
    """
    if subject.tokenizer is None:
        raise UserError(f"{subject.name} has no tokenizer, so it cannot continue text")
    start = [] if subject.start_token is None else [subject.start_token]
    ids = start + subject.tokenizer.encode(prompt)
    if not ids:
        raise UserError("an empty prompt gives a subject without a start token nothing to continue")
    rows = continue_rows(
        subject,
        torch.tensor([ids], device=subject.device),
        new_tokens,
        temperature=temperature,
        seed=seed,
        stop={subject.tokenizer.eos} - {None},
        by=by,
    )
    return subject.tokenizer.decode(rows[0])


@torch.inference_mode()
def continue_rows(
    subject: Subject,
    prompts: Int[Tensor, "batch pos"],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Collection[int | None] = (),
    advance: Callable[[float], None] = lambda tokens: None,
    by: Stepping | None = None,
) -> list[list[int]]:
    """Continue every row; a row ends before the first token of `stop`, or after `new_tokens`.

    Rows that have ended no longer cost anything.

    Raises:
        UserError: prompt and continuation together exceed the subject's context.
    """
    if prompts.shape[1] + new_tokens > subject.context:
        raise UserError(
            f"{prompts.shape[1]} tokens of prompt and {new_tokens} new ones exceed the context of "
            f"{subject.name}, {subject.context}"
        )
    step = _Stepper(subject.model, prompts.shape[1] + new_tokens) if by is None else by
    return written_by(
        step,
        prompts,
        new_tokens,
        temperature=temperature,
        seed=seed,
        stop=stop,
        advance=advance,
    )


def written_by(
    step: Stepping,
    prompts: Int[Tensor, "batch pos"],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Collection[int | None] = (),
    advance: Callable[[float], None] = lambda tokens: None,
) -> list[list[int]]:
    """What something that steps writes after every row; otherwise as `continue_rows`."""
    pick = _Picker(temperature, seed)
    rows: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(rows)))
    tokens = prompts
    for _ in range(new_tokens):
        chosen = pick(step(tokens))
        keep = [at for at, token in enumerate(chosen.tolist()) if token not in stop]
        for at in keep:
            rows[alive[at]].append(int(chosen[at]))
        advance(len(keep))
        if not keep:
            break
        if len(keep) < len(alive):
            alive = [alive[at] for at in keep]
            kept = torch.tensor(keep, device=chosen.device)
            step.keep(kept)
            chosen = chosen[kept]
        tokens = chosen[:, None]
    return rows


class _Stepper:
    """Logits of the next token, given only the tokens that have not been seen yet."""

    def __init__(self, model: nn.Module, room: int) -> None:
        from unweave.subject.key_values import cache_argument, roomy_cache

        self._model = cast(Callable[..., _Output], model)
        self._cache: _Cache = roomy_cache(model.config, room)
        self._seen = {cache_argument(model): self._cache}

    def __call__(self, tokens: Tensor) -> Float[Tensor, "batch vocab"]:
        output = self._model(tokens, **self._seen, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1].float()

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)


class _Picker:
    """Chooses each row's next token."""

    def __init__(self, temperature: float, seed: int) -> None:
        if temperature < 0:
            raise UserError(f"a temperature is zero or more, not {temperature}")
        self._temperature = temperature
        # On the processor whatever the device, so that the same chance is drawn on each.
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        if self._temperature == 0:
            return logits.argmax(-1)
        # One uniform number a row, looked up in the cumulative distribution.
        mass = torch.softmax(logits / self._temperature, dim=-1).cumsum(-1)
        place = torch.rand(len(mass), 1, generator=self._random).to(mass.device)
        return torch.searchsorted(mass, place * mass[:, -1:]).squeeze(-1)
