"""Signals that ask a stage to stop: SIGTERM, or the SIGUSR1 that a batch system sends before a time limit."""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

from anyecg.loaders.errors import Stopped
from anyecg.loaders.ranks import is_first, under_launcher

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SECONDS_TO_END, SECONDS_TO_PASS_ON = 5.0, 0.3
AGAIN = "run the same command again to go on"


class Ended(BaseException):
    """A signal ends this process at once; no ``Exception``, so that nothing takes it for an error of its own."""


class Asked:
    """Whether a signal has asked this process to stop in order, as soon as a unit of its work is whole."""

    def __init__(self):
        self.number = 0

    @contextmanager
    def listening(self):
        """Take note of the signals for a while, instead of ending."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS} if _is_main() else {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, _):
        self.number = number


def share_stop(comm, number, kept):
    """Stop on every rank if a signal made any rank leave work undone.

    Parameters
    ----------
    number : int
        The signal that made this rank leave work; 0 where it left none.
    kept : str
        What the next run finds.

    Raises
    ------
    Stopped
    """
    number = max(comm.allgather(number))
    if number:
        raise Stopped(f"asked to stop by signal {number}; {kept}; {AGAIN}")


@contextmanager
def unheard():
    """Start processes that do not hear the signals: a batch system sends them to all processes of a task."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ending(what):
    """Let the signals end this process: ``Ended`` is raised, and rank 0 says so, unless an ``Asked`` listens.

    A process that waits for other ranks, or that a library keeps, cannot raise; it ends all the same, with the code of
    ``Stopped``, when it has not raised within a few seconds.
    """
    if not _is_main():
        yield
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    ender = _Ender(what, receiver)
    handlers = {number: signal.signal(number, ender.hear) for number in SIGNALS}
    # Written to by the system's handler, also while Python's own cannot run.
    waker = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    thread = threading.Thread(target=ender.watch, daemon=True, name="ender")
    thread.start()
    try:
        yield
    except Ended:
        ender.say()
        raise
    finally:
        signal.set_wakeup_fd(waker)
        if not ender.number:
            for number, handler in handlers.items():
                # A rank that has come to its end says how it went, whatever is sent to it while it leaves.
                signal.signal(number, signal.SIG_IGN if under_launcher() else handler)
            os.close(sender)
            thread.join()
            os.close(receiver)


def end_process():
    """End this process after ``Ended``, without waiting for other ranks: MPI would, as it ends."""
    if not is_first():
        # The first one speaks for all, and mpirun ends all with the first that leaves.
        time.sleep(SECONDS_TO_PASS_ON)
    elif not under_launcher():
        return Stopped.code
    sys.stdout.flush()
    os._exit(Stopped.code)


class _Ender:
    def __init__(self, what, receiver):
        self._what, self._receiver, self.number = what, receiver, 0
        self._saying, self._said = threading.Lock(), False

    def say(self):
        with self._saying:
            if is_first() and not self._said:
                said = f"anyecg {self._what}: ended by signal {self.number}; what was finished is kept; {AGAIN}"
                print(said, file=sys.stderr, flush=True)
            self._said = True

    def hear(self, number, _):
        self.number = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise Ended

    def watch(self):
        while heard := os.read(self._receiver, 1):
            number = heard[0]
            if number in SIGNALS and (self.number or signal.getsignal(number) == self.hear):
                break
        else:
            return
        self.number = number
        self.say()
        time.sleep(SECONDS_TO_END)
        os._exit(Stopped.code)


def _is_main():
    """Say whether this thread may set handlers of signals."""
    return threading.current_thread() is threading.main_thread()
