"""How long each stage of the data path takes: counters that are always on, and a trace when one is asked for."""

import threading
import time
from typing import NamedTuple

STAGES = ("order", "read", "check", "unpack", "gather", "dali", "copy", "step", "wait")


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


class Counters:
    """Totals by stage, of all threads of a process.

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
        self._totals = {stage: [0, 0, 0, 0] for stage in STAGES}
        self._lock = threading.Lock()

    def add(self, stage, start, *, n_bytes=0, n_windows=0):
        """Count one event of a stage that began at ``start`` (``time.perf_counter_ns``) and ends now."""
        end = time.perf_counter_ns()
        with self._lock:
            total = self._totals[stage]
            total[0] += 1
            total[1] += end - start
            total[2] += n_bytes
            total[3] += n_windows
            if self.events is not None:
                self.events.append(Event(stage, start, end, threading.get_native_id()))

    def totals(self):
        """Return stage -> Total."""
        with self._lock:
            return {
                stage: Total(events, ns * 1e-9, n_bytes, n_windows)
                for stage, (events, ns, n_bytes, n_windows) in self._totals.items()
            }
