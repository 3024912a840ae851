"""How far a long task is: a bar with rate and time left on a terminal, plain lines in the log."""

import logging
import os
import sys
import time

from tqdm import tqdm

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0


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
