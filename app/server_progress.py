"""Long computations of the page: how far they are, and their end as soon as nobody waits for them any more."""

import asyncio
import json
import logging
import time
import traceback
from pathlib import Path

from anyecg.loaders.errors import AnyECGError

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 0.4


class Ended(Exception):
    """Nobody waits for this computation any more."""


class Watch:
    """What a computation calls with its share that is done, from 0 to 1; raises Ended where nobody waits any more.

    Attributes
    ----------
    share : float
    is_wanted : bool
    """

    def __init__(self):
        self.share, self.is_wanted = 0.0, True
        self._began = 0.0

    def __call__(self, share):
        """Note how far the computation is."""
        if not self.is_wanted:
            raise Ended
        self._began = self._began or time.monotonic()
        self.share = share

    def told(self):
        """Return share and seconds left, None before there is a rate."""
        seconds = time.monotonic() - self._began
        return {"share": self.share, "seconds_left": seconds * (1 / self.share - 1) if self.share else None}


def said_of(cause):
    """Return what the page says of an error; that of a fault of ours tells no names, which may be a recording's."""
    if isinstance(cause, AnyECGError):
        return str(cause)
    last = traceback.extract_tb(cause.__traceback__)[-1]
    log.error("fault error=%s at=%s:%s", type(cause).__name__, Path(last.filename).name, last.lineno)
    return f"a fault of the server ({type(cause).__name__})"


async def lines(begin, watch):
    """Yield lines of JSON: share and seconds left of a computation as it goes on; last its ``result`` or ``error``.

    Parameters
    ----------
    begin : function that returns the awaitable computation
    watch : Watch
        That the computation calls. Whoever reads the lines no longer ends it: the browser has closed the connection.
    """
    task = asyncio.ensure_future(begin())
    try:
        while not (await asyncio.wait([task], timeout=SECONDS_BETWEEN_LINES))[0]:
            yield _line(watch.told())
        try:
            last = {"result": task.result()}
        except Exception as cause:  # the answer has begun: its last line says what went wrong
            last = {"error": said_of(cause)}
        yield _line(last)
    finally:
        watch.is_wanted = False
        task.cancel()


def _line(said):
    return json.dumps(said).encode() + b"\n"
