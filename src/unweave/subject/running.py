"""One forward pass: sites captured and replaced on the way, stopped after the deepest one."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.attention import patterns_visible
from unweave.subject.sites import Place

Replacement = Tensor | Callable[[Tensor], Tensor]
"""What flows on instead: a tensor that fits the site, or a function of what was there."""
Onlooker = Callable[[Tensor], object]
"""What is shown a site's tensor as it flows by; it must neither keep nor change it."""


class Run(NamedTuple):
    """What one forward pass gave."""

    logits: Tensor | None
    """[batch, pos, vocab], or None when they were not asked for."""
    sites: dict[str, Tensor]
    """The captured tensors by the names they were asked for with; not copies."""


class _Enough(Exception):
    """Everything asked for has been seen."""


@dataclass
class _Visit:
    """What happens at the sites of one pass, and which of them are still to come."""

    pending: set[str]
    stop: bool
    sites: dict[str, Tensor] = field(default_factory=dict)

    def at(
        self,
        name: str,
        place: Place,
        captured: bool,
        new: Replacement | None,
        show: Onlooker | None = None,
    ) -> Callable:
        """Make the function that a tensor at `place` goes through."""

        def visit(tensor: Tensor) -> Tensor:
            if name not in self.pending:
                return tensor  # a module called twice: the first call is the site
            if new is not None:
                tensor = _replaced(name, tensor, place, new)
            if captured or show is not None:
                held = place.heads.read(tensor) if place.heads else tensor
                if captured:
                    self.sites[name] = held
                if show is not None:
                    show(held)
            self.pending.discard(name)
            return tensor

        return visit

    def stop_if_done(self) -> None:
        if self.stop and not self.pending:
            raise _Enough


def _replaced(name: str, tensor: Tensor, place: Place, new: Replacement) -> Tensor:
    if isinstance(new, Tensor):
        old, value = (place.heads.read(tensor) if place.heads else tensor), new
    else:
        # A function may keep its argument for the backward pass; writing over it would spoil that.
        old = tensor.clone() if place.in_place else tensor
        old = place.heads.read(old) if place.heads else old
        value = new(old)
    try:
        value = value.to(dtype=old.dtype, device=old.device).expand_as(old)
    except (RuntimeError, AttributeError) as error:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(
            f"the replacement for {name} is {shape} where {tuple(old.shape)} flows"
        ) from error
    if place.heads:
        return place.heads.write(tensor, value)
    return tensor.copy_(value) if place.in_place else value


def _first_tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        return value[0]
    return None


def _hook_input(module: nn.Module, visit: Callable, visits: _Visit, name: str) -> Callable:
    def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            args = (visit(args[0]), *args[1:])
        else:
            key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
            if key is None:
                raise UserError(f"the module at {name} takes no tensor, so it has no input site")
            kwargs = {**kwargs, key: visit(kwargs[key])}
        visits.stop_if_done()
        return args, kwargs

    return module.register_forward_pre_hook(before, with_kwargs=True).remove


def _hook_output(module: nn.Module, visit: Callable, visits: _Visit, name: str) -> Callable:
    def after(_: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        tensor = _first_tensor(output)
        if tensor is None:
            raise UserError(f"the module at {name} returns no tensor, so it is no site")
        value = visit(tensor)
        visits.stop_if_done()
        if value is tensor:
            return output
        return value if isinstance(output, Tensor) else (value, *output[1:])

    return module.register_forward_hook(after).remove


def _hook_pattern(earlier: Callable | None, visit: Callable, visits: _Visit) -> Callable:
    def pattern(tensor: Tensor) -> Tensor:
        tensor = visit(tensor if earlier is None else earlier(tensor))
        visits.stop_if_done()
        return tensor

    return pattern


def _module(model: nn.Module, place: Place, name: str) -> nn.Module:
    try:
        return model.get_submodule(place.module)
    except AttributeError as error:
        raise UserError(
            f"there is no {name} at the moment: what is swapped in has no such inside"
        ) from error


def run_model(
    model: nn.Module,
    tokens: Tensor,
    places: Mapping[str, Place],
    *,
    capture: Sequence[str],
    replace: Mapping[str, Replacement],
    show: Mapping[str, Onlooker],
    logits: bool,
    options: Mapping[str, object],
) -> Run:
    """Run `model` once; `places` has every site that is captured, replaced or shown."""
    end = {name for name, place in places.items() if place.side == "model"}
    visits = _Visit(pending=set(places), stop=not logits and not end)
    patterns: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    captured = set(capture)
    with ExitStack() as hooks:
        for name, place in places.items():
            module = _module(model, place, name)
            visit = visits.at(name, place, name in captured, replace.get(name), show.get(name))
            if place.side == "in":
                hooks.callback(_hook_input(module, visit, visits, name))
            elif place.side == "out":
                hooks.callback(_hook_output(module, visit, visits, name))
            elif place.side == "pattern":
                patterns[module] = _hook_pattern(patterns.get(module), visit, visits)
        hooks.enter_context(patterns_visible(model, patterns))
        result = None
        try:
            output = model(tokens, **options)
            result = getattr(output, "logits", output)
        except _Enough:
            pass
    for name in sorted(end):
        visit = visits.at(name, places[name], name in captured, replace.get(name), show.get(name))
        result = visit(result)
    if visits.pending:
        raise UserError(
            f"the pass never came to {', '.join(sorted(visits.pending))}: the module there was "
            "not called"
        )
    return Run(result if logits else None, visits.sites)
