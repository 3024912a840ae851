"""Kill processes that read, and look for what they left in /dev/shm."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")
LOADERS = ("dali", "torch", "torch with workers")
# Forks a reader for each line of its input, so that only one process has to import everything.
READ = """
import os, sys, torch, nvidia.dali.fn, torch.utils.data, torch.nn.functional
from anyecg.loaders.dali import DaliBatches
from anyecg.loaders.plain import TorchBatches
from anyecg.loaders.source import PairSource
from anyecg.loaders.stream import open_index
from anyecg.loaders.stream_config import StreamConfig

order = {"seed": 5, "batch_size": 16, "split": "train", "horizon_min": 60}
source = PairSource(open_index(sys.argv[1]), StreamConfig(noise_mv=0.1, shift_seconds=1.0), order)
source(0)

def read(loader):
    if loader == "dali":
        batches = DaliBatches(source, prefetch=2)
    else:
        # Forked like the reader itself: others would import everything again.
        batches = TorchBatches(source, workers=2 if "workers" in loader else 0, prefetch=2, start_method="fork")
    for number in range(1_000_000_000):
        batches.next()
        if number == 2:
            print(os.getpid(), flush=True)

for line in sys.stdin:
    child = os.fork()
    if not child:
        read(line.strip())
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


def _in_use():
    """Return the names in /dev/shm that a living process has open or mapped."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (process / "maps").read_text().splitlines()
            paths = [line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line]
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    paths.append(str(link.readlink()).partition("/dev/shm/")[2])
            found |= {path.split("/")[0].removesuffix(" (deleted)") for path in paths}
    return found


def _names():
    # MPI's files are other programs': no reader starts MPI.
    return {path.name for path in SHARED.iterdir() if not path.name.startswith("mpich")}


def _left_since(before):
    new = _names() - before
    return sorted(new - _in_use()) if new else []


def kill_readers(folder, loader, *, n_cycles, rng):
    """Start a process that reads without end, kill it with -9 at a random moment, again and again.

    Returns
    -------
    list of str
        Names in /dev/shm that were not there before and that no living process uses, when all workers are gone.
    """
    before, workers = _names(), []
    command = [sys.executable, "-c", READ, str(folder)]
    # Workers of a killed reader tell on stderr of connections that broke.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        for _ in range(n_cycles):
            server.stdin.write(f"{loader}\n")
            server.stdin.flush()
            reader = int(server.stdout.readline())
            time.sleep(0.1 * rng.random())
            workers += Path(f"/proc/{reader}/task/{reader}/children").read_text().split()
            os.kill(reader, signal.SIGKILL)
            assert server.stdout.readline() == "gone\n"
        server.stdin.close()
    assert len(workers) == (2 * n_cycles if "workers" in loader else 0)
    # Workers look every 5 s whether their parent lives; files of other programs come and go meanwhile.
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) or _left_since(before):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return _left_since(before) + [worker for worker in workers if Path(f"/proc/{worker}").exists()]
