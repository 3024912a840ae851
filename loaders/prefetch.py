"""Batches prepared ahead by one thread of this process, in buffers that are used again."""

import os
import queue
import threading
import weakref
from concurrent.futures import Future


def _work(tasks):
    """Do one task after the other until there comes None; what goes wrong is kept for whoever asks for the result."""
    while (task := tasks.get()) is not None:
        future, source, number, buffer = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(source(number, buffer))
        except BaseException as cause:
            future.set_exception(cause)
        del task, future, source, buffer


def _end(tasks, pending, thread, pid):
    """Let the thread finish what it is at, and wait for it; not in a child process, which has no such thread."""
    if pid != os.getpid():
        return
    for future in pending.values():
        future.cancel()
    tasks.put(None)
    # A read from a dead disk may never end.
    thread.join(timeout=10)


class Prefetcher:
    """Call ``source(number, buffer)`` in a thread for the numbers that will be asked for next.

    It overlaps with the rest of the process because reading, checksums and gathering release the interpreter's lock.

    Parameters
    ----------
    source : callable of (number, buffer)
    buffers : list
        What ``source`` may write into; used in turn, so what batch n was made in is written to again when batch
        n + len(buffers) is prepared. At least two: ``len(buffers) - 1`` batches are prepared ahead, and the last one
        that was given out stays whole until the next is asked for.
    """

    def __init__(self, source, buffers):
        self._source, self._buffers = source, buffers
        self._pid: int | None = None
        self._pending: dict[int, Future] = {}
        self._tasks: queue.SimpleQueue = queue.SimpleQueue()
        self._next = 0
        self._end: weakref.finalize | None = None

    def _start(self):
        self._pid, self._pending, self._tasks = os.getpid(), {}, queue.SimpleQueue()
        thread = threading.Thread(target=_work, args=(self._tasks,), name="anyecg-prefetch", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._tasks, self._pending, thread, self._pid)

    def get(self, number):
        """Return the source's batch ``number``; any other than the next one starts over from there.

        Raises
        ------
        Whatever the source raised for that batch.
        """
        if self._pid != os.getpid():
            self._start()
        if number not in self._pending:
            for future in self._pending.values():
                future.cancel()
            # One may be at work, into a buffer that is due again.
            for future in self._pending.values():
                if not future.cancelled():
                    future.exception()
            self._pending.clear()
            self._next = number
        while self._next < number + len(self._buffers):
            future = Future()
            self._pending[self._next] = future
            self._tasks.put((future, self._source, self._next, self._buffers[self._next % len(self._buffers)]))
            self._next += 1
        return self._pending.pop(number).result()

    def close(self):
        """End the thread and wait for it; the next ``get`` starts another."""
        if self._end:
            self._end()
        self._pid = None
