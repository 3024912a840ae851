"""Notice a rank that hangs, name it, and end the job."""

import faulthandler
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# How much later ranks that wait for others give up than the one that they wait for, so that it speaks first.
SECONDS_OF_GRACE = 8
# A process that runs shows itself every second.
SECONDS_TO_SHOW, SECONDS_TO_REACT = 1.0, 5
SECONDS_TO_PASS_ON = 0.5


class _Beat(NamedTuple):
    """What a rank shows of itself: how often, which phase, who it is."""

    n_shown: int
    n_phases: int
    since: float
    together: bool
    process: int
    host: bytes
    name: bytes


_FORM = struct.Struct("<QQd?q64s64s")


class Watch:
    """Ends this process, and thereby the job, when a phase of it lasts too long.

    A thread of every rank shows each second, in its place of one small file beside the checkpoint, which phase the
    rank is in. A rank that has waited too long for the others says from it whose process no longer runs, or else who is
    behind; if that is on the same machine, it is made to print where it stands before the job ends.

    Parameters
    ----------
    path : path
        The file, on a disk that all ranks see; what an earlier job left there must be gone.
    rank, n_ranks : int
    seconds : float
        Longest time of a phase; 0 watches nothing.
    """

    def __init__(self, path, rank, n_ranks, seconds):
        self.path, self.rank, self.n_ranks, self.seconds = Path(path), rank, n_ranks, seconds
        self._host, self._n_shown, self._count = socket.gethostname().encode()[:64], 0, 0
        self.phase("starting", allowed=20)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")
        if seconds:
            # Its C code prints where the threads stand, even while one of them holds the interpreter.
            faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
            self._show()
            self._thread.start()

    def phase(self, name, *, together=False, allowed=1.0):
        """Enter a phase; ``together`` if it waits for other ranks; ``allowed`` times the usual time."""
        self._count += 1
        self._now = self._count, name, together, time.monotonic(), allowed

    def close(self):
        """Watch no longer."""
        if not self._ended.is_set():
            self._ended.set()
            if self._thread.is_alive():
                self._thread.join()
            os.close(self._descriptor)

    def _look(self):
        while not self._ended.wait(SECONDS_TO_SHOW):
            count, name, together, since, allowed = self._now
            self._show()
            seconds = time.monotonic() - since
            grace = SECONDS_OF_GRACE if together else 0
            if seconds > self.seconds * allowed + grace or (
                # A long phase is no reason to wait for a process that does not run.
                together and seconds > self.seconds + grace and self._still()
            ):
                self._end(count, name, together, seconds)

    def _show(self):
        count, name, together, since, _ = self._now
        self._n_shown += 1
        beat = _Beat(
            self._n_shown, count, time.time() - (time.monotonic() - since), together, os.getpid(), self._host,
            name.encode()[:64],
        )  # fmt: skip
        # A disk that fails is noticed where something is saved.
        with suppress(OSError):
            os.pwrite(self._descriptor, _FORM.pack(*beat), self.rank * _FORM.size)

    def _end(self, count, name, together, seconds):
        said, to_blame = f"rank {self.rank} has been in '{name}' for {seconds:.0f} s", []
        if together:
            to_blame, what = self._behind(count)
            said += f", waiting for {what}"
        print(f"anyecg finetune: {said}; the job ends. Where it stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=2, all_threads=True)
        print(
            "anyecg finetune: run the same command again; a longer finetune.hang_seconds if the machine is that slow",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        for beat in to_blame:
            if beat.n_shown and beat.host.rstrip(b"\0") == self._host:
                print(f"anyecg finetune: where process {beat.process} stands:", file=sys.stderr, flush=True)
                with suppress(OSError):
                    os.kill(beat.process, signal.SIGUSR2)
                    os.kill(beat.process, signal.SIGCONT)
        time.sleep(SECONDS_TO_PASS_ON)
        os._exit(1)

    def _behind(self, count):
        """Return the beats of the ranks that are waited for, and a sentence on them."""
        still, now = self._still(), self._beats()
        behind = [
            rank for rank, beat in enumerate(now)
            if rank != self.rank and (beat.n_phases < count or not beat.together)
        ]  # fmt: skip
        found = still or behind
        said = [f"rank {rank} ({_where(now[rank])}{', which does not run' if rank in still else ''})" for rank in found]
        return [now[rank] for rank in found], ", ".join(said) or "the others, which are as far as this one"

    def _still(self):
        """Return the ranks that show nothing for a while, while this one does."""
        before = self._beats()
        for _ in range(SECONDS_TO_REACT):
            time.sleep(1.0)
            self._show()
        now = self._beats()
        return [rank for rank in range(self.n_ranks) if rank != self.rank and now[rank].n_shown == before[rank].n_shown]

    def _beats(self):
        # Opened anew: a shared disk then shows what other machines have written.
        n_bytes = self.n_ranks * _FORM.size
        data = self.path.read_bytes().ljust(n_bytes, b"\0")
        return [_Beat(*_FORM.unpack_from(data, rank * _FORM.size)) for rank in range(self.n_ranks)]


def _where(beat):
    if not beat.n_shown:
        return "never seen"
    name, host = (text.rstrip(b"\0").decode(errors="replace") for text in (beat.name, beat.host))
    return f"process {beat.process} on {host}, in '{name}' for {time.time() - beat.since:.0f} s"
