"""Parse files from elsewhere in a child process, so that a damaged or hostile one does no harm here.

HDF5's library can crash, loop or take all memory on a made-up file. The system bounds the child's memory and processor
time by the size of the file; a child that ends before it answers means one refused file. The clock does not count, as
honest files wait on a busy machine; but a child that sleeps on and on is ended too.
"""

import atexit
import contextlib
import json
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import h5py

from anyecg.loaders.errors import AnyECGError, ShardError, UpgradeNeeded
from anyecg.loaders.shard_parse import REMAKE, parse_draws, parse_shard
from anyecg.loaders.stop import unheard

_SPARE_MEMORY, _MOST_MEMORY = 96 << 20, 1 << 30
_BYTES_PER_SECOND = 20e6
# So long may all threads of a child sleep, as when the file's store does not answer; how often is looked.
_SECONDS_ASLEEP, _SECONDS_A_LOOK = 10.0, 0.25
_ERRORS = {error.__name__: error for error in (ShardError, UpgradeNeeded)}


class Died(Exception):
    """A child ended before it answered; says how."""


class Children:
    """The child processes that run one module; each serves one caller at a time, on as many threads as there are.

    Attributes
    ----------
    idle : list of Popen
        Those that wait for their next request.
    """

    def __init__(self, module):
        self._command, self.idle = [sys.executable, "-P", "-m", module], []

    def ask(self, request, receive):
        """Send a request, JSON-like, to a child; return what ``receive`` makes of its standard output.

        Raises
        ------
        Died
            ``receive`` gave None, as the answer was cut short.
        """
        child = self._take()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            _await(child)
            answer = receive(child.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            _end(child)
            code = child.returncode
            raise Died((signal.strsignal(-code) or f"signal {-code}") if code < 0 else f"exit status {code}")
        self.idle.append(child)
        return answer

    def _take(self):
        while self.idle:
            child = self.idle.pop()
            if child.poll() is None:
                return child
            _end(child)
        with unheard():
            return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self):
        """End those that wait; the next request starts another."""
        while self.idle:
            _end(self.idle.pop())


def _await(child):
    """Wait until a child begins to answer or has ended; end one that sleeps for too long."""
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    n_looks, before = 0, None
    while not poll.poll(_SECONDS_A_LOOK * 1000):
        now = _asleep(child.pid)
        n_looks, before = (n_looks + 1 if now == before and now is not None else 0), now
        if n_looks * _SECONDS_A_LOOK >= _SECONDS_ASLEEP:
            child.kill()


def _asleep(pid):
    """Return the processor time of a process whose threads all sleep, in ticks; None where one runs or has to wait.

    proc(5): "R" runs or waits for a processor, "D" for a disk.
    """
    ticks = 0
    try:
        for path in Path(f"/proc/{pid}/task").glob("*/stat"):
            state, *fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
            if state in "RD":
                return None
            ticks += int(fields[10]) + int(fields[11])
    except (OSError, ValueError, IndexError):
        return None
    return ticks


def _end(child):
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    child.stdout.close()
    child.wait()


def read_line(stream):
    """Return the JSON of one whole line, None where it was cut short."""
    line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


_children = Children("anyecg.loaders.apart")
_idle = _children.idle


@atexit.register
def end_children():
    """End the children that wait; the next file starts another."""
    _children.end()


def parse_apart(path, parse=parse_shard):
    """Do ``parse_shard``, or ``parse_draws``, in a child process."""
    absolute = str(Path(path).absolute())
    try:
        found = _children.ask([parse.__name__, absolute], read_line)
    except Died as how:
        raise ShardError(f"{path}: damaged (HDF5 could not parse it: {how}); {REMAKE}") from None
    if "error" in found:
        raise _ERRORS[found["error"]](found["said"].replace(absolute, str(path)))
    return found


def limit(n_bytes, *, spare, most, seconds):
    """Bound this process from now on: ``spare`` bytes of memory and some of the file's size, and processor time."""
    n_data = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (n_data + spare + min(4 * n_bytes, most), resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, seconds + n_bytes / _BYTES_PER_SECOND)


def _bound(n_bytes):
    """Allow the memory and the processor time that an honest shard of that size needs, with room."""
    limit(n_bytes, spare=_SPARE_MEMORY, most=_MOST_MEMORY, seconds=1)


def settle():
    """Make this process a child that leaves no core, heeds no interrupt and lets HDF5 load no code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # HDF5 would look for code that reads what it cannot read in folders of plugins.
    for _ in range(h5py.h5pl.size()):
        h5py.h5pl.remove(0)


def main():
    """Answer each parse and path on standard input with one line of JSON on standard output."""
    settle()
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
