"""Time shuffled int16 batches of 256 windows: ours, others, and the memory's own limit, interleaved in one run.

    pip install --no-deps --target PEERS -r benchmarks/requirements-peers.txt
    PYTHONPATH=PEERS python -m benchmarks.stream_read            # files in the page cache
    PYTHONPATH=PEERS python -m benchmarks.stream_read --cold     # files dropped from it before every epoch

Before the clock runs, one epoch of each way is read through and must hold each window once, as int16 (256, 5000).
Ours follows the order of training; before each of its epochs the reader is made to read as many windows of another
split, so that nothing it holds from the last epoch saves it work. Its clock starts before the first batch. The clock
of a loader that has to start (torch, MosaicML, WebDataset) starts when its first batch is there.
"""

import argparse
import functools
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyecg.loaders.index import open_index
from anyecg.loaders.stream import slots_of_rank
from benchmarks import stream_peers as peers
from benchmarks.kernels import processor
from benchmarks.page_cache import disk_rate, drop, flush, resident
from benchmarks.stream_peers import BATCH, batches_of
from benchmarks.stream_set import CHOICE, checksums, make_set, make_signal, open_reader, read_batches

COPY, CHECKED, UNCHECKED, MEMMAP = (
    "np.copyto into one buffer",
    "ours, checked",
    "ours, not checked",
    "numpy memmap X[idx]",
)
# (ours, at least so many times, the fastest of those whose name starts so)
GOALS = (
    (CHECKED, 0.25, COPY),
    (UNCHECKED, 0.50, COPY),
    (UNCHECKED, 1.0, MEMMAP),
    (CHECKED, 1.5, "h5py + Fletcher32"),
    (CHECKED, 3.0, "DataLoader + h5py rows"),
    (CHECKED, 15.0, "MosaicML"),
    (CHECKED, 15.0, "WebDataset"),
)


@dataclass(frozen=True)
class Way:
    """One way to batches: how to open it, the files it reads, and whether its workers have to start."""

    name: str
    open: Callable
    files: tuple = ()
    starts: bool = False


@contextmanager
def from_memory(signal, *, shuffled=False, kept=False):
    """Copy batches out of an array in memory: blocks in order or shuffled rows, into one buffer or kept apart."""
    out = np.empty(signal.shape if kept else (BATCH, signal.shape[1]), np.int16)

    def in_order(number):
        for first in range(0, len(signal), BATCH):
            batch_ = out[first : first + BATCH] if kept else out
            np.copyto(batch_, signal[first : first + BATCH])
            yield batch_

    def in_disorder(number):
        for rows in batches_of(np.random.default_rng(number).permutation(len(signal))):
            yield np.take(signal, rows, axis=0, out=out, mode="clip")

    yield in_disorder if shuffled else in_order


@contextmanager
def ours(folder, *, check, threads):
    """Read the batches of training: the order and the reader, into one buffer."""
    index = open_index(folder)
    # As many as the epoch has runs, where training would keep more: so the windows of the other split replace them all.
    n_slots = min(slots_of_rank(CHOICE, batch_size=BATCH, n_ranks=1), len(index.windows_of("train")) // 128)
    reader = open_reader(index, n_slots=n_slots, check=check, threads=threads)
    out = np.empty((BATCH, 1, index.head["samples"]), np.int16)
    others = index.windows_of("val")

    def epoch(number):
        for windows in read_batches(index, reader, number, out):
            yield windows[:, 0]

    def forget():
        for rows in batches_of(others):
            reader.read(rows, out=out[: len(rows)])

    epoch.before = forget
    try:
        yield epoch
    finally:
        reader.close()


def all_ways(folder, signal, threads):
    """Return every way that can run here; the first is the limit."""
    shards = tuple(sorted(folder.glob("shard-*.h5")))
    ways = [
        Way(COPY, lambda: from_memory(signal)),
        Way("np.copyto to as much memory", lambda: from_memory(signal, kept=True)),
        Way("random rows from memory", lambda: from_memory(signal, shuffled=True)),
        Way(CHECKED, lambda: ours(folder, check=True, threads=threads), shards),
        Way(UNCHECKED, lambda: ours(folder, check=False, threads=threads), shards),
        Way("one thread of ours, checked", lambda: ours(folder, check=True, threads=1), shards),
    ]
    ways += [
        Way(f"h5py + Fletcher32, {chunk} rows", functools.partial(peers.blocks, folder, chunk),
            (folder / f"blocks{chunk}.h5",)) for chunk in (64, 256)
    ]  # fmt: skip
    ways.append(Way(MEMMAP, lambda: peers.memmap(folder), (folder / "rows.npy",)))
    loaders = (
        ("DataLoader + h5py rows", peers.torch_rows, "rows.h5"),
        ("DataLoader + h5py rows together", functools.partial(peers.torch_rows, together=True), "rows.h5"),
        ("MosaicML streaming", peers.mosaic, "mds/*.mds"),
        ("WebDataset", peers.tars, "tars/*.tar"),
    )
    for name, opened, pattern in loaders:
        files = tuple(sorted(folder.glob(pattern)))
        for n_workers in (0, 2) if files else ():
            way = functools.partial(opened, folder, n_workers)
            ways.append(Way(f"{name}, {n_workers} workers", way, files, starts=True))
    return ways


def bytes_read():
    """Return how many bytes this process has read through read calls, from wherever (``rchar``)."""
    return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])


def read_through(name, epoch, wanted):
    """Read an epoch whole; stop unless it has each window once, in whole batches. Return bytes read by byte wanted."""
    prepare(epoch)
    before, found = bytes_read(), []
    for windows in epoch(0):
        windows = np.asarray(windows)
        if windows.shape != (BATCH, 5000) or windows.dtype != np.int16 or not windows.flags.c_contiguous:
            sys.exit(f"{name}: {windows.dtype} {windows.shape} is no batch")
        found.append(checksums(windows))
    amplification = (bytes_read() - before) / (10_000 * len(wanted))
    if not np.array_equal(np.sort(np.concatenate(found)), np.sort(wanted)):
        sys.exit(f"{name}: an epoch has not each window once")
    return amplification


def prepare(epoch):
    """Let a way that keeps windows forget those of the last epoch."""
    getattr(epoch, "before", lambda: None)()


def rate(epoch, number, n_windows, *, starts):
    """Return the windows/s of one epoch; a way that starts workers is timed from its first batch on."""
    prepare(epoch)
    batches, start, n = iter(epoch(number)), time.perf_counter(), 0
    if starts:
        next(batches)
        start, n_windows = time.perf_counter(), n_windows - BATCH
    for windows in batches:
        n += len(windows)
    seconds = time.perf_counter() - start
    if n != n_windows:
        sys.exit(f"{n} windows, not {n_windows}")
    return n / seconds


def check_all(ways, signal):
    """Read an epoch of each way whole; return the ways that ran, and the bytes each read by byte of the set."""
    wanted, kept, amplification = checksums(signal), [], {}
    for way in ways:
        try:
            with way.open() as epoch:
                amplification[way.name] = read_through(way.name, epoch, wanted)
            kept.append(way)
        except ImportError as cause:
            print(f"{way.name} is skipped: {cause}")
        if way.name.startswith("ours") and way.name in amplification and amplification[way.name] < 0.99:
            sys.exit(f"{way.name}: read {amplification[way.name]:.2f} of the windows, kept the others from before")
    return kept, amplification


def measure_warm(ways, n_windows, rounds):
    """Return windows/s by way and round; all stay open, and take turns in another order each round."""
    rates, order = {way.name: [] for way in ways}, np.random.default_rng(0)
    with ExitStack() as stack:
        epochs = {way.name: stack.enter_context(way.open()) for way in ways}
        for number in range(rounds + 1):
            for place in order.permutation(len(ways)):
                way = ways[place]
                found = rate(epochs[way.name], number, n_windows, starts=way.starts)
                if number:  # the first round starts the workers and maps the pages
                    rates[way.name].append(found)
    return rates


def measure_cold(ways, n_windows, rounds):
    """Return windows/s by way and round, each opened after its files were dropped, and the disk's own."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    disk, order = [], np.random.default_rng(0)
    for number in range(rounds):
        shards = next(way.files for way in ways if way.name == CHECKED)
        drop(shards)
        disk.append(disk_rate(shards) / 10_000)
        for place in order.permutation(len(ways)):
            way = ways[place]
            drop(way.files)
            if way.files and (share := resident(way.files)) > 0.01:
                sys.exit(f"{way.name}: {share:.0%} of its files is still in the page cache")
            with way.open() as epoch:
                rates[way.name].append(rate(epoch, number, n_windows, starts=way.starts))
    return rates, disk


def ratio(rates, name, other):
    """Return the median, over rounds, of how many times the rate of another a way has."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))


def print_table(rates, amplification):
    """Print a row for each way."""
    print(f"\n{'':<44} windows/s   MB/s  of np.copyto  ours, checked, is  bytes read a byte")
    for name, found in rates.items():
        median = statistics.median(found)
        read = f"{amplification[name]:.2f}" if amplification[name] > 0.1 else "-"
        print(
            f"{name:<44} {median:9.0f} {median / 100:6.0f} {ratio(rates, name, COPY):12.3f} "
            f"{ratio(rates, CHECKED, name):16.2f}x {read:>17}"
        )


def print_goals(rates):
    """Print each goal, against the fastest form of the other; return whether all that were measured are met."""
    print()
    met = True
    for name, wanted, other in GOALS:
        others = [each for each in rates if each.startswith(other)]
        if name not in rates or not others:
            print(f"not measured: {name} >= {wanted:g} x {other}")
            continue
        fastest = max(others, key=lambda each: statistics.median(rates[each]))
        found = ratio(rates, name, fastest)
        met &= found >= wanted
        print(f"{'met' if found >= wanted else 'MISSED'}: {name} {found:.2f} x {fastest}; wanted {wanted:g}")
    return met


def print_disk(rates, disk, ways):
    """Print the disk's own rate; return whether every way that reads files in this process is below it."""
    best = statistics.median(disk)
    print(f"\nthe disk, O_DIRECT, best of 1 to 8 reads at a time: {best:.0f} windows/s, {best / 100:.0f} MB/s")
    above = [way.name for way in ways if way.files and statistics.median(rates[way.name]) > best]
    print(f"faster than the disk, so not cold: {above}" if above else "all ways that read files are slower: cold")
    return not above


def main():
    """Print the table and the goals; exit 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=40_960, help="a multiple of 256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="threads that read ahead for ours")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument(
        "--only", default="", help="regular expression of the ways to measure beside np.copyto and ours"
    )
    parser.add_argument("--folder", type=Path, help="where to make the set (10 times 10 kB a window), then removed")
    arguments = parser.parse_args()
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}; NumPy {np.__version__}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        met = run(Path(folder), arguments)
    sys.exit(0 if met else 1)


def run(folder, arguments):
    """Make the set, check every way, measure them; return whether every goal is met."""
    signal = make_signal(2 * arguments.windows)
    signal, others = np.split(signal, 2)
    make_set(folder, [("train", signal), ("val", others)])
    for line in peers.write_all(folder, signal):
        print(line)
    ways = all_ways(folder, signal, arguments.threads)
    ways = [way for way in ways if way.name in (COPY, CHECKED) or re.search(arguments.only, way.name)]
    flush({path for way in ways for path in way.files})
    ways, amplification = check_all(ways, signal)
    print(f"{len(signal)} windows, {signal.nbytes / 1e6:.0f} MB; medians of {arguments.rounds} rounds")
    if arguments.cold:
        rates, disk = measure_cold(ways, len(signal), arguments.rounds)
        print_table(rates, amplification)
        return print_disk(rates, disk, ways)
    rates = measure_warm(ways, len(signal), arguments.rounds)
    print_table(rates, amplification)
    return print_goals(rates)


if __name__ == "__main__":
    main()
