"""An interrupt that compiled code turned into something else is an interrupt still."""

import signal
import threading

import pytest

from unweave.artifact import tensors
from unweave.artifact.interrupts import interrupts_kept


@pytest.fixture(autouse=True)
def terminal():
    """Ctrl-C as at a person's terminal, whatever shell started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def swallow(then: Exception | None) -> None:
    """Do as compiled code does with the exception of a call it made."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        if then is not None:
            raise then from None


@pytest.mark.parametrize("then", [ValueError("no shape"), None])
def test_a_swallowed_interrupt_comes_out(then):
    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        swallow(then)


def test_an_error_without_an_interrupt_stays_what_it_is():
    with pytest.raises(ValueError, match="of its own"), interrupts_kept():
        raise ValueError("of its own")


def test_an_ignored_interrupt_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_kept():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_may_use_it():
    raised = []

    def work() -> None:
        try:
            with interrupts_kept():
                raise ValueError
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(raised) == 1


@pytest.mark.parametrize("read", [tensors.load_tensors, tensors.tensor_shapes])
def test_reading_tensors_can_be_interrupted_at_its_worst_moment(read, tmp_path, monkeypatch):
    class Swallowing:
        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def keys(self) -> list[str]:
            swallow(ValueError("could not determine the shape"))
            return []

    monkeypatch.setattr(tensors, "_opened", lambda path: Swallowing())
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "weights.safetensors")
