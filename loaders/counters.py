"""How long each stage of the data path takes: counters that are always on, and a trace when one is asked for."""

import threading
import time
from typing import NamedTuple

# "feed" is DALI waiting for a block of the reader, "wait" the consumer waiting for a batch: nobody works in them.
STAGES = ("order", "read", "check", "unpack", "gather", "feed", "dali", "copy", "wait", "step")


class Total(NamedTuple):
    """What one stage has done so far."""

    events: int = 0
    seconds: float = 0.0
    n_bytes: int = 0
    n_windows: int = 0


class Event(NamedTuple):
    """One piece of work of one thread; times in ns of ``time.perf_counter_ns``."""

    stage: str
    start: int
    end: int
    thread: int
    n_bytes: int = 0
    n_windows: int = 0


class _Own(threading.local):
    totals: dict[str, list[int]]
    thread: int


class Counters:
    """Totals by stage, of all threads of a process; each thread adds to numbers of its own, without a lock.

    Parameters
    ----------
    traced : bool
        Also keep every event, for a picture of a short run.

    Attributes
    ----------
    events : list of Event, or None
    """

    def __init__(self, *, traced=False):
        self.events: list[Event] | None = [] if traced else None
        self._own = _Own()
        self._of_threads: list[dict[str, list[int]]] = []

    def _start_thread(self):
        self._own.totals = {stage: [0, 0, 0, 0] for stage in STAGES}
        self._own.thread = threading.get_native_id()
        self._of_threads.append(self._own.totals)

    def add(self, stage, start, *, n_bytes=0, n_windows=0):
        """Count one event of a stage that began at ``start`` (``time.perf_counter_ns``) and ends now."""
        end = time.perf_counter_ns()
        own = self._own
        try:
            total = own.totals[stage]
        except AttributeError:
            self._start_thread()
            total = own.totals[stage]
        total[0] += 1
        total[1] += end - start
        total[2] += n_bytes
        total[3] += n_windows
        if self.events is not None:
            self.events.append(Event(stage, start, end, own.thread, n_bytes, n_windows))

    def totals(self):
        """Return stage -> Total; exact once the threads have come to rest, before that at most one event behind."""
        found = {}
        for stage in STAGES:
            sums = [sum(own[stage][column] for own in tuple(self._of_threads)) for column in range(4)]
            found[stage] = Total(sums[0], sums[1] * 1e-9, sums[2], sums[3])
        return found
