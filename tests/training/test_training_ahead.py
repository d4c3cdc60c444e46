"""Batches made ahead are the batches that were asked for."""

import threading
import types

import pytest
import torch

from unweave.training.ahead import Ahead
from unweave.training.batches import ArraySource, VectorBatch

ROWS, BATCH = 40, 8
CPU = torch.device("cpu")


def source() -> ArraySource:
    return ArraySource({"s": torch.arange(2.0 * ROWS).view(ROWS, 2)}, batch=BATCH, steps=12, seed=1)


def test_what_it_gives_is_what_the_source_gives_in_any_order() -> None:
    with Ahead(source(), CPU) as ahead:
        assert (ahead.steps, ahead.batch) == (12, BATCH)
        for step in (0, 1, 2, 7, 8, 3, 11, 11, 0):
            assert torch.equal(ahead.at(step).vectors["s"], source().at(step).vectors["s"]), step


def test_the_next_batch_is_made_while_this_one_is_used() -> None:
    inner, begun = source(), [threading.Event() for _ in range(12)]
    give = inner.at

    def at(step: int) -> VectorBatch:
        begun[step].set()
        return give(step)

    inner.at = at
    with Ahead(inner, CPU) as ahead:
        ahead.at(4)
        assert begun[5].wait(timeout=10)
        assert not begun[6].is_set()


def test_what_goes_wrong_in_making_it_is_said_when_it_is_asked_for() -> None:
    inner, give = source(), source().at

    def at(step: int) -> VectorBatch:
        if step == 3:
            raise RuntimeError("lost")
        return give(step)

    inner.at = at
    with Ahead(inner, CPU) as ahead:
        ahead.at(2)
        with pytest.raises(RuntimeError, match="lost"):
            ahead.at(3)
        assert torch.equal(ahead.at(4).vectors["s"], give(4).vectors["s"])


def test_pinned_batches_are_gathered_where_a_gpu_reads_them(monkeypatch) -> None:
    asked, empty = [], torch.empty

    def taken(*shape: int, pin_memory: bool = False, **more: object) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*shape, **more)

    monkeypatch.setattr(torch, "empty", taken)
    vectors = {"s": torch.arange(2.0 * ROWS).view(ROWS, 2)}
    pinned = ArraySource(vectors, batch=BATCH, steps=12, seed=1, pinned=True)
    assert torch.equal(pinned.at(3).vectors["s"], source().at(3).vectors["s"])
    assert asked == [True]


def test_on_a_gpu_the_step_waits_for_the_stream_that_sends(monkeypatch) -> None:
    """The order of calls, on streams that write down what they are asked."""
    said: list[str] = []

    class Stream:
        def __init__(self, device: object) -> None:
            pass

        def __enter__(self) -> None:
            said.append("beside")

        def __exit__(self, *_: object) -> None:
            said.append("back")

        def record_event(self) -> str:
            said.append("sent")
            return "event"

    now = types.SimpleNamespace(wait_event=lambda event: said.append(f"wait for {event}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now)
    rows = torch.ones(2, 2)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda rows: said.append("pinned") or rows)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda rows, stream: said.append("kept"))
    monkeypatch.setattr(VectorBatch, "to", lambda batch, device: said.append("moved") or batch)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda rows: False)
    gives = types.SimpleNamespace(steps=1, batch=2, at=lambda step: VectorBatch({"s": rows}))
    with Ahead(gives, torch.device("cuda", 0)) as ahead:
        assert ahead.at(0).vectors["s"] is rows
    assert said == ["beside", "pinned", "moved", "sent", "back", "wait for event", "kept"]
