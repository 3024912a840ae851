"""Time the way to the model's input: checked, scaled, standardised float32 torch tensors, on this machine's cores.

    python -m benchmarks.stream_input

Beside it, in turns in one run: the same DALI graph fed with one block in memory again and again, windows that pass DALI
as int16, the plain torch loader, and the source alone. Each way runs on without end over epochs of a set larger than
what the reader keeps, and says how many bytes it read by byte that it gave. CPU time and bytes are those of this
process, without its workers. A new way is one line in ``all_ways``.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anyecg.loaders.dali import DaliBatches
from anyecg.loaders.index import open_index
from anyecg.loaders.plain import TorchBatches
from anyecg.loaders.prefetch import Prefetcher
from anyecg.loaders.source import PairSource
from anyecg.loaders.stream_config import StreamConfig
from benchmarks.kernels import processor
from benchmarks.stream_read import bytes_read
from benchmarks.stream_set import make_set, make_signal

BATCH = 256
ORDER = {"seed": 0, "batch_size": BATCH, "split": "train", "horizon_min": 60}
OURS, CONSTANT, INT16, SOURCE = "shards through DALI", "one block through DALI", "int16 through DALI", "source alone"
# (way, at least so many windows/s, or times the windows/s of another way)
GOALS = ((OURS, 60_000, None), (OURS, 0.9, CONSTANT), (INT16, 100_000, None))
# Bytes that must be read for each byte given: an epoch of a small set begins with what the last one left in memory.
LEAST_READ = 0.8


class Turn(NamedTuple):
    """What a way did in one turn."""

    windows_per_s: float
    cpu_us: float
    bytes_read: float


class Constant:
    """A source that gives its first block again and again, from memory."""

    def __init__(self, source):
        self._source, self._block = source, source(0)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __call__(self, step, buffer=None):
        return self._block


def source_of(folder, config=None):
    """Return the source of training batches of a set."""
    return PairSource(open_index(folder), config or StreamConfig(), ORDER)


@contextmanager
def closing_both(loader, source):
    """Yield what gives the next windows of a loader; close it, then its source."""
    try:
        yield lambda: loader.next().x_BLT
    finally:
        loader.close()
        source.close()


@contextmanager
def dali(folder, config=None, *, constant=False):
    """Send batches through the graph of training."""
    source = source_of(folder, config)
    given = Constant(source) if constant else source
    with closing_both(DaliBatches(given, prefetch=source.config.prefetch), source) as following:
        yield following


@contextmanager
def plain(folder, config=None, *, workers=0):
    """Send batches through torch's DataLoader, prepared by torch."""
    source = source_of(folder, config)
    loader = TorchBatches(source, workers=workers, prefetch=source.config.prefetch)
    with closing_both(loader, source) as following:
        yield following


@contextmanager
def int16(folder, config=None):
    """Send the windows through DALI as they are stored."""
    import torch
    from nvidia.dali import fn, pipeline_def, types

    source = source_of(folder, config)
    ahead = Prefetcher(source, [source.buffer() for _ in range(source.config.prefetch + 1)])

    @pipeline_def(batch_size=BATCH, num_threads=2, device_id=None, prefetch_queue_depth=2, exec_dynamic=True)
    def pipeline():
        return fn.external_source(
            source=lambda info: ahead.get(info.iteration).signal_BLT, batch=True, batch_info=True, dtype=types.INT16,
            ndim=2,
        )  # fmt: skip

    built = pipeline()
    built.build()
    try:
        yield lambda: torch.from_dlpack(built.run()[0].as_tensor())
    finally:
        ahead.close()
        source.close()


@contextmanager
def alone(folder, config=None):
    """Read and gather batches in this thread, and leave them there."""
    source, steps = source_of(folder, config), itertools.count()
    buffer = source.buffer()
    try:
        yield lambda: source(next(steps), buffer).signal_BLT
    finally:
        source.close()


def all_ways(folder, config, workers):
    """Return name -> context manager that yields what gives the next batch."""
    return {
        OURS: lambda: dali(folder, config),
        CONSTANT: lambda: dali(folder, config, constant=True),
        INT16: lambda: int16(folder, config),
        "shards through torch": lambda: plain(folder, config),
        f"shards through torch, {workers} workers": lambda: plain(folder, config, workers=workers),
        SOURCE: lambda: alone(folder, config),
    }


def turn(following, n_batches):
    """Take some batches; return the Turn."""
    before, cpu, start, n = bytes_read(), time.process_time(), time.perf_counter(), 0
    for _ in range(n_batches):
        n += len(following())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return Turn(n / seconds, 1e6 * cpu / n, (bytes_read() - before) / (10_000 * n))


def check(folder):
    """Stop unless the first batch through DALI is the first batch of the shards, standardised by NumPy."""
    source = source_of(folder)
    mv_BLT = source(0).signal_BLT.astype(np.float64)
    source.close()
    wanted = (mv_BLT - mv_BLT.mean(-1, keepdims=True)) / mv_BLT.std(-1, keepdims=True)
    for name, way in (("DALI", dali), ("torch", plain)):
        with way(folder) as following:
            found = following()
        if str(found.dtype) != "torch.float32" or not np.allclose(found.numpy(), wanted, atol=1e-3):
            sys.exit(f"{name}: the first batch is not that of the shards")


def measure(ways, *, rounds, n_batches):
    """Return the turns of each way, all open at once, in another order each round."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    names, rng = list(ways), np.random.default_rng(0)
    with ExitStack() as stack:
        following = {name: stack.enter_context(ways[name]()) for name in names}
        for number in range(rounds + 1):
            for name in rng.permutation(names):
                found = turn(following[name], n_batches)
                if number:  # the first round starts workers and fills the memory of the readers
                    turns[name].append(found)
    return turns


def median(turns, field):
    """Return the median of one field of a way's turns."""
    return statistics.median(getattr(each, field) for each in turns)


def print_table(turns):
    """Print a row for each way."""
    print(f"{'':<34} windows/s   of ours  CPU us a window  bytes read a byte")
    for name, found in turns.items():
        ratio = statistics.median(a.windows_per_s / b.windows_per_s for a, b in zip(found, turns[OURS], strict=True))
        read = median(found, "bytes_read")
        print(
            f"{name:<34} {median(found, 'windows_per_s'):9.0f} {ratio:8.2f}x {median(found, 'cpu_us'):15.1f} "
            f"{read:18.2f}"
        )


def print_limit(turns, n_cores):
    """Say which stage, alone, comes nearest to the rate of the whole, and how busy the cores are."""
    rates = {name: median(turns[name], "windows_per_s") for name in (OURS, CONSTANT, SOURCE)}
    busy = rates[OURS] * median(turns[OURS], "cpu_us") / 1e6
    names = {CONSTANT: "the DALI graph", SOURCE: "reading, checking and gathering"}
    slowest = min(names, key=rates.get)
    print(f"\nlimits: {names[slowest]} alone reaches {rates[slowest]:.0f} windows/s, ours {rates[OURS]:.0f}; ", end="")
    print(f"{busy:.1f} of {n_cores} cores are busy" + (", which is all there is" if busy > 0.9 * n_cores else ""))


def print_goals(turns):
    """Print each goal; return whether all are met, by ways that read what they gave."""
    kept = [name for name in (OURS, INT16, SOURCE) if median(turns[name], "bytes_read") < LEAST_READ]
    if kept:
        print(f"no verdict: {', '.join(kept)} gave windows that the reader kept from before; take more --windows")
        return False
    all_met = True
    for name, wanted, other in GOALS:
        if other:
            found = statistics.median(
                a.windows_per_s / b.windows_per_s for a, b in zip(turns[name], turns[other], strict=True)
            )
            said = f"{found:.2f} of {other}; wanted {wanted}"
        else:
            found = median(turns[name], "windows_per_s")
            said = f"{found:.0f} windows/s; wanted {wanted}"
        all_met &= found >= wanted
        print(f"{'met' if found >= wanted else 'MISSED'}: {name} {said}")
    return all_met


def main():
    """Print the table, what limits, and the goals; exit 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=163_840, help="of the set, 10 kB each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=0, help="of one turn; 0: an epoch's, whose work is uneven")
    parser.add_argument("--workers", type=int, default=2, help="of the torch loader's second row")
    parser.add_argument("--shift-seconds", type=float, default=0.0, help="augment: shift each window by up to this")
    parser.add_argument("--folder", type=Path, help="where to make the set")
    arguments = parser.parse_args()
    n_cores = len(os.sched_getaffinity(0))
    print(f"{processor()}, {n_cores} cores; load {os.getloadavg()[0]:.1f}")
    n_batches = arguments.batches or -(-arguments.windows // BATCH)
    config = StreamConfig(shift_seconds=arguments.shift_seconds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make_set(Path(folder), [("train", make_signal(arguments.windows))])
        check(folder)
        ways = all_ways(folder, config, arguments.workers)
        turns = measure(ways, rounds=arguments.rounds, n_batches=n_batches)
    print(f"{arguments.windows} windows, turns of {n_batches} batches; medians of {arguments.rounds} rounds\n")
    print_table(turns)
    print_limit(turns, n_cores)
    sys.exit(0 if print_goals(turns) else 1)


if __name__ == "__main__":
    main()
