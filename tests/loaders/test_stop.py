import os
import signal
import subprocess
import sys

import pytest

from anyecg.loaders.errors import Stopped
from anyecg.loaders.stop import Asked, ending, share_stop, unheard

# Ends by a signal in the state that the first argument names.
PROCESS = """
import ctypes, os, signal, sys, threading, time
from anyecg.loaders import stop

stop.SECONDS_TO_END = 0.5
try:
    with stop.ending("shard"):
        if sys.argv[1] == "blocked":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            # A lock that is locked already waits in C, as MPI does for other ranks.
            lock = ctypes.create_string_buffer(64)
            ctypes.CDLL(None).pthread_mutex_lock(lock)
            ctypes.CDLL(None).pthread_mutex_lock(lock)
        if sys.argv[1] == "swallowed":
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(600)
            except BaseException:
                time.sleep(600)
        if sys.argv[1] == "plain":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
except stop.Ended:
    sys.exit(stop.end_process())
"""


@pytest.mark.parametrize("how", ["plain", "swallowed", "blocked"])
def test_a_signal_ends_a_process_with_code_75_and_one_line(how):
    done = subprocess.run([sys.executable, "-c", PROCESS, how], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 75, done.stderr
    number = 15 if how == "plain" else 10
    assert done.stderr.splitlines() == [
        f"anyecg shard: ended by signal {number}; what was finished is kept; run the same command again to go on"
    ]


def test_while_one_listens_a_signal_ends_nothing_and_handlers_come_back():
    before = signal.getsignal(signal.SIGUSR1)
    with ending("shard"), Asked().listening() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) == before


def test_processes_started_unheard_do_not_hear_the_signals():
    with unheard():
        child = subprocess.Popen(["sleep", "30"])
    for number in (signal.SIGTERM, signal.SIGUSR1):
        child.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_job_stops_only_where_work_is_left():
    from mpi4py import MPI

    share_stop(MPI.COMM_SELF, 0, "all is there")
    with pytest.raises(
        Stopped, match="asked to stop by signal 10; shards are kept; run the same command again"
    ) as found:
        share_stop(MPI.COMM_SELF, 10, "shards are kept")
    assert found.value.on_every_rank
    assert found.value.code == 75
