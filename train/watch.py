"""Notice a rank that hangs, name it, and end the job; notice a signal that asks for a stop."""

import faulthandler
import os
import signal
import struct
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

# count of phases, seconds since 1970, waits for others, name
_BEAT = struct.Struct("<Qd?47s")
# How much later ranks that wait for others give up than the one that they wait for, so that it speaks first.
SECONDS_OF_GRACE = 8
SECONDS_TO_PASS_ON = 0.5


class Watch:
    """Ends this process, and thereby the job, when a phase of it lasts too long.

    Every rank writes which phase it is in to its place in one small file beside the checkpoint; a rank that has waited
    too long for the others says from it which of them is behind, and where that one was last seen.

    Parameters
    ----------
    path : path
        The file, on a disk that all ranks see.
    rank, n_ranks : int
    seconds : float
        Longest time of a phase; 0 watches nothing.
    """

    def __init__(self, path, rank, n_ranks, seconds):
        self.path, self.rank, self.n_ranks, self.seconds = Path(path), rank, n_ranks, seconds
        self._count, self._now, self._allowed = 0, ("starting", False, time.monotonic()), 10.0
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._ended = threading.Event()
        if seconds:
            threading.Thread(target=self._look, daemon=True, name="watch").start()

    def phase(self, name, *, together=False, allowed=1.0):
        """Enter a phase; ``together`` if it waits for other ranks; ``allowed`` times the usual time."""
        self._count += 1
        self._now, self._allowed = (name, together, time.monotonic()), allowed
        os.pwrite(
            self._descriptor, _BEAT.pack(self._count, time.time(), together, name.encode()[:47]),
            self.rank * _BEAT.size,
        )  # fmt: skip

    def close(self):
        """Watch no longer."""
        if not self._ended.is_set():
            self._ended.set()
            os.close(self._descriptor)

    def _look(self):
        while not self._ended.wait(1.0):
            name, together, since = self._now
            seconds = time.monotonic() - since
            if seconds > self.seconds * self._allowed + (SECONDS_OF_GRACE if together else 0):
                self._end(name, together, seconds)

    def _end(self, name, together, seconds):
        said = f"rank {self.rank} has been in '{name}' for {seconds:.0f} s"
        if together:
            said += f", waiting for {self._behind()}"
        print(f"anyecg finetune: {said}; the job ends. Where it stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        print(
            "anyecg finetune: run the same command again; a longer finetune.hang_seconds if the machine is that slow",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        time.sleep(SECONDS_TO_PASS_ON)
        os._exit(1)

    def _behind(self):
        """Say which ranks are in an earlier phase, or in one of their own."""
        data = os.pread(self._descriptor, self.n_ranks * _BEAT.size, 0).ljust(self.n_ranks * _BEAT.size, b"\0")
        beats = [_BEAT.unpack_from(data, rank * _BEAT.size) for rank in range(self.n_ranks)]
        behind = [
            f"rank {rank} (last seen {time.time() - at:.0f} s ago in '{name.rstrip(bytes(1)).decode()}')"
            for rank, (count, at, together, name) in enumerate(beats)
            if rank != self.rank and (count < self._count or not together)
        ]
        return ", ".join(behind) or "the others, which are as far as this one"


class Asked:
    """Whether a signal has asked this process to stop in order: SIGTERM, or the SIGUSR1 that a batch system sends."""

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self):
        self.number = 0

    @contextmanager
    def listening(self):
        """Take note of the signals for a while, instead of ending."""
        before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, _):
        self.number = number
