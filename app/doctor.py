"""What this machine has, what is missing, and the remedy."""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from anyecg.loaders.errors import AnyECGError
from anyecg.slurm.launch import find_mpirun, rank_environment

GB = 1e9
COUNT_RANKS = (
    "from mpi4py import MPI; c = MPI.COMM_WORLD; n = c.allreduce(1)\n"
    "if c.rank == 0: print(n, MPI.Get_library_version().split(chr(10))[0].strip().replace(chr(9), ' '))"
)


def _python():
    return f"{platform.python_version()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}"


def _mpi():
    mpirun = find_mpirun()
    if mpirun is None:
        raise AnyECGError("mpirun is missing; pip install mpich")
    done = subprocess.run(
        [mpirun, "-n", "2", sys.executable, "-c", COUNT_RANKS],
        capture_output=True, text=True, timeout=120, check=False, env=rank_environment(2), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or not lines or not lines[-1].startswith("2 "):
        raise AnyECGError(
            f"two ranks did not meet ({(done.stderr or done.stdout).strip()[-200:]}); "
            "mpirun and mpi4py belong to different MPIs: pip install mpich mpi4py"
        )
    return f"2 ranks met, {lines[-1][2:]}, {mpirun}"


def _gpu():
    import torch

    if not torch.cuda.is_available():
        return f"none; torch {torch.__version__} runs on the CPU with gloo"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{len(names)} x {names[0]}, torch {torch.__version__}, NCCL and bf16"


def _dali():
    import numpy as np
    import torch

    from anyecg.loaders.dali import make_pipeline
    from anyecg.loaders.source import Block
    from anyecg.loaders.stream_config import AugmentConfig

    device_id = 0 if torch.cuda.is_available() else None
    window, label = np.arange(20, dtype=np.int16).reshape(1, 1, 20), np.zeros((1, 1), np.int8)
    block = Block(window, np.ones((1, 1, 1), np.float32), label, np.empty((1, 0), np.float32), 1, 0)
    make_pipeline(
        lambda _: block, batch_size=1, shape=(1, 20), fs=500, config=AugmentConfig(), device_id=device_id
    ).run()  # fmt: skip
    version = next(
        (metadata.version(name) for name in ("nvidia-dali-cuda130", "nvidia-dali-cuda120") if _installed(name)), "?"
    )
    return f"{version}, {'GPU' if device_id == 0 else 'CPU'} mode, a batch came through"


def _installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _deepspeed():
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    return deepspeed.__version__


def _hdf5():
    import h5py

    kind = "parallel build" if h5py.get_config().mpi else "serial build (one writer a shard: what we need)"
    return f"{h5py.version.hdf5_version}, h5py {h5py.__version__}, {kind}"


def _locks():
    with tempfile.NamedTemporaryFile(dir=Path.cwd()) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return f"work in {Path.cwd()}"


def _space(path, wanted):
    free = shutil.disk_usage(path).free
    if free < wanted:
        raise AnyECGError(
            f"{free / GB:.1f} GB free in {path}; wanted {wanted / GB:.1f} GB: free some, or mount a larger one"
        )
    return f"{free / GB:.1f} GB free in {path}"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": _python,
    "MPI": _mpi,
    "GPU": _gpu,
    "DALI": _dali,
    "DeepSpeed": _deepspeed,
    "HDF5": _hdf5,
    "file locks": _locks,
    "/dev/shm": lambda: _space("/dev/shm", 0.25 * GB),
    "disk": lambda: _space(Path.cwd(), 1 * GB),
}
REMEDY = {
    "MPI": "pip install mpich mpi4py",
    "DALI": "install with the extra of your CUDA version: pip install 'anyecg-lab[cuda130]' or '[cuda120]'",
    "DeepSpeed": "pip install deepspeed",
    "file locks": "use a file system with locks for run folders",
    "/dev/shm": "mount a tmpfs on /dev/shm",
}


def examine():
    """Print one line a part of the machine; return 0 when nothing is missing, else 2."""
    n_missing = 0
    for name, check in CHECKS.items():
        try:
            print(f"ok       {name:11} {check()}", flush=True)
        except Exception as cause:  # whatever is wrong with a part, the others are still examined
            n_missing += 1
            remedy = "" if isinstance(cause, AnyECGError) else f"; {REMEDY.get(name, 'install the requirements again')}"
            print(f"MISSING  {name:11} {str(cause).strip().splitlines()[0]}{remedy}", flush=True)
    print(f"doctor: {n_missing} of {len(CHECKS)} missing" if n_missing else "doctor: all there")
    return 2 if n_missing else 0
