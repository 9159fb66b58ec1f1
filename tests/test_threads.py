"""How many threads a network takes for one row."""

import itertools
import time
from concurrent.futures import CancelledError
from threading import Event, Thread

import pytest
import torch

from gpc.batching import BatchThread
from gpc.inference.threads import MOST, PAUSES, Threads

SHORT, LONG = PAUSES


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the next chunk takes, by the number of threads."""
    seconds = {1: 0.03, 2: 0.02}
    now = [0.0]

    def chunk():
        count = torch.get_num_threads()
        now[0] += seconds[count]
        return count

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return seconds, chunk


def test_several_threads_after_the_start_and_one_while_a_core_is_busy(clock):
    seconds, chunk = clock
    threads = Threads(2)
    assert [threads.sample(chunk) for _ in range(4)] == [1, 1, 2, 2]
    seconds[2] = 0.4  # another process needs a core
    assert [threads.sample(chunk) for _ in range(2)] == [2, 2]
    assert {threads.sample(chunk) for _ in range(SHORT)} == {1}
    seconds[2] = 0.02
    assert [threads.sample(chunk) for _ in range(3)] == [2, 2, 2]


def test_a_single_slow_chunk_is_no_busy_core(clock):
    seconds, chunk = clock
    threads = Threads(2, pause=1)
    threads.sample(chunk)
    for _ in range(20):
        seconds[2] = 0.4
        assert threads.sample(chunk) == 2
        seconds[2] = 0.02
        assert threads.sample(chunk) == 2


def test_a_core_that_stays_busy_is_tried_more_and_more_seldom(clock):
    seconds, chunk = clock
    seconds[2] = 0.4
    threads = Threads(2)
    several = [i for i in range(12_000) if threads.sample(chunk) == 2]
    begins = several[::2]
    assert [b - a for a, b in itertools.pairwise(begins)] == [2 + n for n in (100, 200, 400, 800, 1600, LONG, LONG)]
    seconds[2] = 0.02
    for _ in range(LONG + 10):
        threads.sample(chunk)
    seconds[2] = 0.4
    assert [threads.sample(chunk) for _ in range(2)] == [2, 2]
    assert threads.pause == SHORT


def test_a_machine_that_slows_down_is_no_busy_core_for_long(clock):
    seconds, chunk = clock
    threads = Threads(2)
    for _ in range(10):
        threads.sample(chunk)
    seconds.update({1: 0.09, 2: 0.07})  # its clock
    counts = [threads.sample(chunk) for _ in range(300)]
    assert counts[:2] == [2, 2]
    assert counts[2 : 2 + SHORT] == [1] * SHORT
    assert set(counts[2 + SHORT :]) == {2}


def test_a_number_of_threads_is_bounded(clock):
    assert Threads(64).several == MOST
    assert Threads(0).several == 1


def test_the_threads_of_one_thread_are_not_those_of_another():
    torch.set_num_threads(1)
    counts = []
    other = Thread(target=lambda: (torch.set_num_threads(2), counts.append(torch.get_num_threads())))
    other.start()
    other.join()
    assert (counts, torch.get_num_threads()) == ([2], 1)


def test_what_comes_while_it_is_busy_is_the_next_batch_up_to_the_most():
    busy, started, sizes = Event(), Event(), []

    def compute(works):
        sizes.append(len(works))
        started.set()
        busy.wait(10)
        return [2 * work for work in works]

    thread = BatchThread(compute, 3, "t")
    first = thread.submit(0)
    assert started.wait(10)
    others = [thread.submit(work) for work in range(1, 6)]
    dropped = thread.submit(99)
    assert dropped.cancel()
    function = thread.call(lambda: "alone")
    busy.set()
    assert [future.result(10) for future in [first, *others]] == [0, 2, 4, 6, 8, 10]
    assert function.result(10) == "alone"
    thread.close()
    assert sizes == [1, 3, 2]
    assert not thread.alive
    with pytest.raises(CancelledError):
        dropped.result()


def test_an_interrupt_reaches_who_waits_for_the_result():
    def compute(works):
        raise KeyboardInterrupt

    thread = BatchThread(compute, 8, "t")
    with pytest.raises(KeyboardInterrupt):
        thread.submit(1).result(10)
    thread.close()


def test_work_that_fails_fails_alone():
    gate = Event()

    def compute(works):
        gate.wait(10)
        return [1 / work for work in works]

    thread = BatchThread(compute, 8, "t")
    futures = [thread.submit(work) for work in (1, 2, 0, 4)]
    gate.set()
    with pytest.raises(ZeroDivisionError):
        futures[2].result(10)
    assert [futures[i].result(10) for i in (0, 1, 3)] == [1, 0.5, 0.25]
    thread.close()
