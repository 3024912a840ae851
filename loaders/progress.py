"""How far a long task is: a bar with rate and time left on a terminal, plain lines in the log."""

import logging
import os
import sys
import time
from collections import Counter

from tqdm import tqdm

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0
_TAG = 4711


def on_terminal():
    """Say whether a person watches: standard error is a terminal, here or where the ranks were started from."""
    return sys.stderr.isatty() or os.environ.get("ANYECG_TERMINAL") == "1"


class Progress:
    """Count ``total`` things; silent on ranks that are not ``shown``."""

    def __init__(self, what, total, unit, *, shown=True):
        self.what, self.total, self.unit, self.shown = what, total, unit, shown
        self.done, self.note = 0, ""
        self.start = self.last_line = time.monotonic()
        self.bar = None
        if shown and on_terminal():
            self.bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, mininterval=0.5, file=sys.stderr)

    def advance(self, n, note=""):
        """Add ``n`` finished things and say what else is worth knowing."""
        self.done += n
        self.note = note
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(n)
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self):
        self.last_line = time.monotonic()
        if self.shown:
            rate = self.done / max(self.last_line - self.start, 1e-9)
            left = (self.total - self.done) / rate if rate else float("nan")
            log.info(
                "%s done=%d of=%d %s_per_s=%.1f seconds_left=%.0f %s",
                self.what, self.done, self.total, self.unit.strip(), rate, left, self.note,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._line()
        if self.bar is not None:
            self.bar.close()


class SharedProgress:
    """Progress of all ranks of a job together, shown by rank 0, with counts of what was found on the way.

    Every rank calls ``advance`` as often as it likes and ``finish`` once; nobody waits for anybody before that.

    Parameters
    ----------
    comm : MPI communicator
    describe : function of (counts, seconds) to str
        What to say beside the bar.
    """

    def __init__(self, what, total, unit, comm, describe):
        self._comm, self._describe = comm, describe
        self._shown = Progress(what, total, unit, shown=comm.rank == 0)
        self._counts: Counter = Counter()
        self._unsent = 0
        self._unsent_counts: Counter = Counter()
        self._sent = time.monotonic()
        self._requests: list = []
        self._n_finished = 0

    def advance(self, n, counts):
        """Add ``n`` finished things and add to the counts."""
        self._unsent += n
        self._unsent_counts.update(counts)
        if self._comm.rank == 0 or time.monotonic() - self._sent > 1.0:
            self._send(False)

    def _send(self, is_last):
        update = (self._unsent, dict(self._unsent_counts), is_last)
        self._unsent, self._unsent_counts, self._sent = 0, Counter(), time.monotonic()
        if self._comm.rank == 0:
            self._take(update)
            while self._n_finished < self._comm.size - 1 and self._comm.iprobe(tag=_TAG):
                self._take(self._comm.recv(tag=_TAG))
        else:
            self._requests = [request for request in self._requests if not request.test()[0]]
            self._requests.append(self._comm.isend(update, 0, tag=_TAG))

    def _take(self, update):
        n, counts, is_last = update
        self._counts.update(counts)
        self._n_finished += is_last
        self._shown.advance(n, self._describe(self._counts, time.monotonic() - self._shown.start))

    def finish(self):
        """Send what is left; rank 0 shows the others' progress until all have finished."""
        self._send(self._comm.rank != 0)
        for request in self._requests:
            request.wait()
        while self._comm.rank == 0 and self._n_finished < self._comm.size - 1:
            time.sleep(0.05)
            self._send(False)
        self._shown.__exit__()
