"""The queue of two priorities: order, errors, ends; and work begun without waiting for it."""

import threading

import pytest

from unweave.activations.pool import Pool
from unweave.activations.workers import Workers


@pytest.fixture
def gate():
    return threading.Event()


def held_pool(gate, begun=None):
    """One thread that is busy until the gate opens."""
    pool = Pool(1, lambda: None)
    started = begun or threading.Event()
    pool.submit(lambda _: started.set() or gate.wait(10), None)
    assert started.wait(10)
    return pool


def test_what_is_urgent_goes_first_and_each_kind_in_its_order(gate):
    done = []
    pool = held_pool(gate)
    for name, urgent in (("a", False), ("b", True), ("c", False), ("d", True)):
        pool.submit(done.append, name, urgent=urgent)
    gate.set()
    pool.submit(done.append, "end", urgent=False).result(10)
    assert done == ["b", "d", "a", "c", "end"]
    pool.close()


def test_closing_drops_what_has_not_begun_and_waits_for_what_has(gate):
    done = []
    begun = threading.Event()
    pool = held_pool(gate, begun)
    waiting = [pool.submit(done.append, i, urgent=i > 1) for i in range(4)]
    threading.Timer(0.05, gate.set).start()
    pool.close()
    assert gate.is_set()  # close returned only after the one that had begun
    assert all(future.cancelled() for future in waiting)
    assert done == []


def test_an_error_reaches_whoever_asks_and_the_thread_lives_on():
    pool = Pool(1, lambda: None)
    failed = pool.submit(lambda i: 1 // i, 0)
    assert pool.submit(lambda i: i + 1, 1).result(10) == 2
    with pytest.raises(ZeroDivisionError):
        failed.result(10)
    pool.close()


def test_a_cancelled_job_is_not_done(gate):
    done = []
    pool = held_pool(gate)
    dropped = pool.submit(done.append, "dropped")
    assert dropped.cancel()
    gate.set()
    pool.submit(done.append, "kept").result(10)
    assert done == ["kept"]
    pool.close()


def test_every_thread_begins_once():
    seen = []
    pool = Pool(3, lambda: seen.append(threading.get_ident()))
    pool.close()
    assert len(set(seen)) == 3


def test_workers_map_overtakes_what_can_wait(gate):
    done = []
    with Workers(1) as crew:
        hold = crew.begin(lambda _: gate.wait(10), [None])
        later = crew.begin(done.append, ["x", "y"], urgent=False)
        threading.Timer(0.05, gate.set).start()
        for _ in crew.map(done.append, ["1", "2"]):
            pass
        for future in (*hold, *later):
            future.result(10)
    assert done == ["1", "2", "x", "y"]
