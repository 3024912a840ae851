"""Start a stage on several MPI ranks of this machine."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.progress import on_terminal
from anyecg.loaders.ranks import by_torchrun
from anyecg.loaders.stop import SIGNALS, Ended

PR_SET_PDEATHSIG = 1
# Of the launcher around us: inside a Slurm job too the ranks are this machine's alone.
_PREFIXES = ("SLURM_", "PMI_", "PMIX_", "TORCHELASTIC_", "GROUP_", "ROLE_")
_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _is_launchers(name):
    return name.startswith(_PREFIXES) or (by_torchrun() and name in _NAMES)


def find_mpirun():
    """Return the path of mpirun: the one that pip installed beside this Python, else the one on PATH, else None."""
    beside = Path(sys.prefix) / "bin" / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def ranks_wanted(otherwise):
    """Return how many ranks torchrun asks for, else ``otherwise``.

    Raises
    ------
    AnyECGError
        torchrun on several machines.
    """
    if not by_torchrun():
        return otherwise
    n_ranks, n_here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if n_ranks != n_here:
        raise AnyECGError(
            f"torchrun started {n_ranks} processes, {n_here} of them on this machine; on several machines start the "
            "stage with srun --mpi=pmi2"
        )
    return n_ranks


def is_spare():
    """Say whether torchrun started this process beside the one that starts the MPI ranks."""
    return by_torchrun() and os.environ.get("LOCAL_RANK", "0") != "0"


def rank_environment(n_ranks):
    """Return the environment of the ranks: threads shared out, nothing imported from the working folder."""
    n_threads = max(1, len(os.sched_getaffinity(0)) // n_ranks)
    environment = {
        **{name: value for name, value in os.environ.items() if not _is_launchers(name)},
        "ANYECG_LOCKED": "1",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(n_threads)),
        "NUMBA_NUM_THREADS": os.environ.get("NUMBA_NUM_THREADS", str(n_threads)),
    }
    if on_terminal():
        environment["ANYECG_TERMINAL"] = "1"
    return environment


def _end_with_parent():
    """Ask Linux to end mpirun, and so its ranks, when the command that started it is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start_ranks(arguments, n_ranks):
    """Run ``anyecg ARGUMENTS`` on ``n_ranks`` MPI ranks here, wait, and return the exit code.

    SIGTERM and SIGUSR1 are passed on; mpirun passes them to the ranks, which may save before they end.

    Raises
    ------
    AnyECGError
        No mpirun on this machine.
    """
    mpirun = find_mpirun()
    if mpirun is None:
        raise AnyECGError(
            "mpirun is missing; install the project's requirements (pip brings mpich), see 'anyecg doctor'"
        )
    command = [mpirun, "-n", str(n_ranks), sys.executable, "-m", "anyecg.app.cli", *arguments]
    with _passing_on() as started:
        ranks = subprocess.Popen(
            command, env=rank_environment(n_ranks), stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent
        )
        started.append(ranks)
        return ranks.wait()


@contextmanager
def _passing_on():
    """Pass the signals that ask for an end on to the processes of a list for a while; only the main thread can."""
    processes: list[subprocess.Popen] = []
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: _tell(processes, number)) for number in numbers}
    try:
        yield processes
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
            process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(processes, number):
    if not processes:
        # Nothing runs that could save.
        raise Ended
    for process in processes:
        process.send_signal(number)
