"""Start a stage on several MPI ranks of this machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.progress import on_terminal


def find_mpirun():
    """Return the path of mpirun: the one that pip installed beside this Python, else the one on PATH, else None."""
    beside = Path(sys.prefix) / "bin" / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


def rank_environment(n_ranks):
    """Return the environment of the ranks: threads shared out, nothing imported from the working folder."""
    n_threads = max(1, len(os.sched_getaffinity(0)) // n_ranks)
    environment = {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(n_threads)),
        "NUMBA_NUM_THREADS": os.environ.get("NUMBA_NUM_THREADS", str(n_threads)),
    }
    if on_terminal():
        environment["ANYECG_TERMINAL"] = "1"
    return environment


def start_ranks(arguments, n_ranks):
    """Run ``anyecg ARGUMENTS`` on ``n_ranks`` MPI ranks here, wait, and return the exit code.

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
    return subprocess.run(command, env=rank_environment(n_ranks), stdin=subprocess.DEVNULL, check=False).returncode
