"""Keep what MPICH says to Slurm short enough: a process between the two, as long as the rank lives.

Slurm's pmi2 plugin reads 1,024 bytes of a request and takes the rest for another one, but tells MPICH that a value
alone may be as long (src/plugins/mpi/pmi2/pmi1.c). Whether a request is that long hangs on the network addresses in it:
one start in some dozens failed, or hung. So MPICH is told of shorter values.
"""

import os
import signal
import socket
import subprocess
import sys
import threading

# The process between runs this file alone, without the package, and starts in a few milliseconds.
_TOLD, _TELL = b"vallen_max=1024", b"vallen_max=512"


def keep_requests_short():
    """Put a process between MPICH and the socket that Slurm gave it; to be called before MPI starts."""
    number = os.environ.get("PMI_FD", "")
    if not number.isdecimal():
        return
    ours, theirs = socket.socketpair()
    # It must outlive the signals that ask the rank to stop.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
    try:
        subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, number, str(theirs.fileno())],
            pass_fds=(int(number), theirs.fileno()), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    os.close(int(number))
    os.environ["PMI_FD"] = str(ours.detach())


def _pass_on(source, target, told=b"", tell=b""):
    while data := source.recv(65536):
        target.sendall(data.replace(told, tell) if told else data)
    # The other side sees that this one has gone, and the process ends.
    os._exit(0)


def _between(slurm, rank):
    threading.Thread(target=_pass_on, args=(slurm, rank, _TOLD, _TELL)).start()
    _pass_on(rank, slurm)


if __name__ == "__main__":
    _between(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]))
