"""Parse shards in a child process, so that a damaged or hostile file does no harm here.

HDF5's library can crash, loop or take all memory on a made-up file. The system bounds the child's memory and processor
time by the size of the file; a child that ends before it answers means one refused file.
"""

import atexit
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import h5py

from anyecg.loaders.errors import AnyECGError, ShardError, UpgradeNeeded
from anyecg.loaders.shard_parse import REMAKE, parse_draws, parse_shard

_SPARE_MEMORY, _MOST_MEMORY = 96 << 20, 1 << 30
_BYTES_PER_SECOND = 20e6
_ERRORS = {error.__name__: error for error in (ShardError, UpgradeNeeded)}
# Children that wait for their next path.
_idle: list[subprocess.Popen] = []


def parse_apart(path, parse=parse_shard):
    """Do ``parse_shard``, or ``parse_draws``, in a child process."""
    absolute = str(Path(path).absolute())
    child = _take_child()
    child.stdin.write(json.dumps([parse.__name__, absolute]).encode() + b"\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer.endswith(b"\n"):
        _end(child)
        how = signal.strsignal(-child.returncode) if child.returncode < 0 else f"exit status {child.returncode}"
        raise ShardError(f"{path}: damaged (HDF5 could not parse it: {how}); {REMAKE}")
    _idle.append(child)
    found = json.loads(answer)
    if "error" in found:
        raise _ERRORS[found["error"]](found["said"].replace(absolute, str(path)))
    return found


def _take_child():
    while _idle:
        child = _idle.pop()
        if child.poll() is None:
            return child
        _end(child)
    command = [sys.executable, "-P", "-m", "anyecg.loaders.apart"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _end(child):
    child.stdin.close()
    child.stdout.close()
    child.wait()


@atexit.register
def end_children():
    """End the children that wait; the next file starts another."""
    while _idle:
        _end(_idle.pop())


def _bound(n_bytes):
    """Allow the memory and the processor time that an honest shard of that size needs, with room."""
    n_data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    most = n_data + _SPARE_MEMORY + min(4 * n_bytes, _MOST_MEMORY)
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, 1 + n_bytes / _BYTES_PER_SECOND)


def main():
    """Answer each parse and path on standard input with one line of JSON on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # HDF5 would look for code that reads what it cannot read in folders of plugins.
    for _ in range(h5py.h5pl.size()):
        h5py.h5pl.remove(0)
    parses = {"parse_shard": parse_shard, "parse_draws": parse_draws}
    for line in sys.stdin.buffer:
        parse, path = json.loads(line)
        try:
            _bound(Path(path).stat().st_size)
            answer = parses[parse](path)
        except (AnyECGError, OSError) as cause:
            error = UpgradeNeeded if isinstance(cause, UpgradeNeeded) else ShardError
            answer = {"error": error.__name__, "said": str(cause)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
