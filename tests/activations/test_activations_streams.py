"""Harvesting beside training on a GPU keeps both orders, on streams that write down the calls."""

import pytest
import torch

from unweave.activations import streams
from unweave.activations.streams import Aside

GPU = torch.device("cuda", 0)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams are asked, in order: `main` is the one that trains."""
    calls: list[str] = []

    class Stream:
        def __init__(self, device: object = None, name: str = "") -> None:
            self.name = name or "side"

        def __enter__(self) -> None:
            calls.append(f"{self.name} on")

        def __exit__(self, *_: object) -> None:
            calls.append(f"{self.name} off")

        def record_event(self) -> str:
            calls.append(f"{self.name} mark")
            return f"{self.name}'s mark"

        def wait_event(self, event: str) -> None:
            calls.append(f"{self.name} waits for {event}")

    main = Stream(name="main")
    streams._beside.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    return calls


def test_work_begins_after_what_was_given_before_and_ends_before_it_is_read(said: list[str]):
    aside = Aside(GPU)
    said.append("training")
    for piece in range(2):
        with aside.stream():
            said.append(f"piece {piece}")
    aside.join()
    assert said == [
        "main mark", "training",
        "side on", "side waits for main's mark", "piece 0", "side mark", "side off",
        "side on", "side waits for main's mark", "piece 1", "side mark", "side off",
        "main waits for side's mark", "main waits for side's mark",
    ]  # fmt: skip


def test_on_the_processor_there_is_nothing_to_order(said: list[str]):
    aside = Aside(torch.device("cpu"))
    with aside.stream():
        said.append("piece")
    aside.join()
    assert said == ["piece"]
