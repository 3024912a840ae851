import gc
import os
import threading

import numpy as np
import pytest

from anyecg.loaders.errors import ShardError
from anyecg.loaders.prefetch import Prefetcher


def n_threads():
    return sum(thread.name == "anyecg-prefetch" for thread in threading.enumerate())


def numbered(number, buffer):
    buffer[:] = number
    return buffer


@pytest.fixture
def buffers():
    return [np.zeros(3) for _ in range(3)]


def test_batches_come_in_the_order_they_are_asked_for(buffers):
    prefetcher = Prefetcher(numbered, buffers)
    # The next one, a jump ahead, back, far back, the same again, and on.
    for number in (*range(20), 100, 101, 50, 3, 3, 4, 5, 6, 200, 201):
        found = prefetcher.get(number)
        assert found.tolist() == [number] * 3
        assert any(found is buffer for buffer in buffers)
    prefetcher.close()


def test_as_many_batches_are_prepared_ahead_as_there_are_spare_buffers(buffers):
    made, more = [], threading.Semaphore(0)

    def source(number, buffer):
        made.append(number)
        more.release()
        return number

    prefetcher = Prefetcher(source, buffers)
    for number in range(5):
        assert prefetcher.get(number) == number
        while len(made) < number + 3:
            assert more.acquire(timeout=30)
    prefetcher.close()
    assert made == list(range(7))


def test_a_batch_is_whole_until_the_next_is_asked_for(buffers):
    """Two workers of the ring are never given the same buffer: the thread runs ahead as far as it can meanwhile."""
    prefetcher = Prefetcher(numbered, buffers)
    for number in range(200):
        found = prefetcher.get(number)
        prefetcher._pending[number + 2].result()
        assert found.tolist() == [number] * 3
    prefetcher.close()


def test_an_error_keeps_its_type_and_stands_at_its_batch(buffers):
    def source(number, buffer):
        if number == 2:
            raise ShardError("windows 3 to 9 are damaged")
        return number

    prefetcher = Prefetcher(source, buffers)
    assert [prefetcher.get(number) for number in (0, 1)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ShardError, match="windows 3 to 9 are damaged"):
            prefetcher.get(2)
    assert prefetcher.get(3) == 3
    prefetcher.close()


def test_no_thread_is_left_after_closing_or_when_nobody_holds_it(buffers):
    before = n_threads()
    prefetcher = Prefetcher(numbered, buffers)
    assert n_threads() == before
    prefetcher.get(0)
    assert n_threads() == before + 1
    prefetcher.close()
    prefetcher.close()
    assert n_threads() == before
    assert prefetcher.get(7).tolist() == [7] * 3
    assert n_threads() == before + 1
    del prefetcher
    gc.collect()
    assert n_threads() == before


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_process_starts_a_thread_of_its_own(buffers):
    prefetcher = Prefetcher(numbered, buffers)
    prefetcher.get(0)
    child = os.fork()
    if not child:
        good = all((prefetcher.get(number) == number).all() for number in (1, 2, 3, 9)) and n_threads() == 1
        prefetcher.close()
        os._exit(0 if good and not n_threads() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert prefetcher.get(1).tolist() == [1] * 3
    prefetcher.close()
