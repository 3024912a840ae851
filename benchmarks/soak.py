"""Stream training batches, checked, for an hour, and say whether it slows down or grows.

    python -m benchmarks.soak --minutes 60 --csv soak.csv
    python -m benchmarks.soak --minutes 60 --csv soak.csv --dali      # to the model's input

Each minute the stream and np.copyto take turns of a second and of a tenth; the ratio of their rates does not know how
busy the machine is. The rest of a run's rows after the warm-up is judged: zero must lie in the 95 % CI of the slope of
the ratio (Newey-West, so that minutes that resemble their neighbours do not count as independent), memory may grow by
1 %, open files and threads by none. Exits 1 otherwise.
"""

import argparse
import csv
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from anyecg.loaders.index import open_index
from benchmarks.kernels import processor
from benchmarks.stream_set import copy_seconds, make_set, make_signal, open_reader, read_batches

BATCH = 256
STREAM_SECONDS, COPIED_WINDOWS = 1.0, 40_960
MAX_GROWTH = 0.01


class Slope(NamedTuple):
    """A slope and its confidence interval."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """One minute."""

    minute: float
    windows_per_s: float
    copied_per_s: float
    ratio: float
    rss_mb: float
    files: int
    threads: int


def slope(x, y, *, level=0.95, lags=0):
    """Return the least-squares slope of ``y`` on ``x`` and its CI, Student t with n - 2 degrees of freedom.

    Parameters
    ----------
    x, y : sequence of float, at least 3
    lags : int
        0: errors independent and of one size. More: Newey and West's (1987) errors with a Bartlett kernel over so many
        neighbours, scaled by n / (n - 2).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    n, dx = len(x), x - x.mean()
    value = dx @ y / (dx @ dx)
    residual = y - y.mean() - value * dx
    if lags:
        score = dx * residual
        weights = 1 - np.arange(1, lags + 1) / (lags + 1)
        neighbours = [score[lag:] @ score[:-lag] for lag in range(1, lags + 1)]
        variance = (score @ score + 2 * weights @ neighbours) / (dx @ dx) ** 2 * n / (n - 2)
    else:
        variance = residual @ residual / (n - 2) / (dx @ dx)
    half = student.ppf((1 + level) / 2, n - 2) * math.sqrt(variance)
    return Slope(float(value), float(value - half), float(value + half))


def newey_west_lags(n):
    """Return how many neighbours to allow for among ``n`` values: Newey and West's (1994) 4 (n / 100)^(2/9)."""
    return max(1, math.floor(4 * (n / 100) ** (2 / 9)))


def growth(values):
    """Return by what share the last fifth of the values is larger than the first, in medians."""
    some = max(1, len(values) // 5)
    return statistics.median(values[-some:]) / statistics.median(values[:some]) - 1


def verdict(rows):
    """Judge the rows after the warm-up; return lines to print and whether all goals are met."""
    minutes, ratios = [row.minute for row in rows], [row.ratio for row in rows]
    lags = newey_west_lags(len(rows))
    found, plain = slope(minutes, ratios, lags=lags), slope(minutes, ratios)
    scale = 6000 / statistics.mean(ratios)
    grown = growth([row.rss_mb for row in rows])
    files, threads = (
        max(values) - values[0] for values in ([row.files for row in rows], [row.threads for row in rows])
    )
    steady, small, closed = found.low <= 0 <= found.high, grown <= MAX_GROWTH, files <= 0 and threads <= 0
    lines = [
        f"stream / np.copyto: mean {statistics.mean(ratios):.4f} over {len(rows)} minutes",
        f"{_met(steady)}: slope {found.value * scale:+.2f} % an hour, 95 % CI [{found.low * scale:+.2f}, "
        f"{found.high * scale:+.2f}] (Newey-West, {lags} lags; independent minutes would give "
        f"[{plain.low * scale:+.2f}, {plain.high * scale:+.2f}]); wanted zero within",
        f"{_met(small)}: resident memory {grown:+.2%} to {rows[-1].rss_mb:.0f} MB; wanted at most {MAX_GROWTH:+.0%}",
        f"{_met(closed)}: open files {files:+d}, threads {threads:+d}; wanted no more than after the warm-up",
    ]
    return lines, steady and small and closed


def _met(is_met):
    return "met" if is_met else "MISSED"


def process_state():
    """Return resident memory in MB, and how many files are open and threads run."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    files = len(list(Path("/proc/self/fd").iterdir()))
    return int(values["VmRSS"].split()[0]) / 1e3, files, int(values["Threads"])


@contextmanager
def read_stream(folder):
    """Yield an endless iterator of checked int16 batches in the order of training."""
    index = open_index(folder)
    reader = open_reader(index)
    out = np.empty((BATCH, len(index.leads), index.head["samples"]), np.int16)

    def batches():
        for epoch in itertools.count():
            yield from read_batches(index, reader, epoch, out, batch_size=BATCH)

    try:
        yield batches()
    finally:
        reader.close()


@contextmanager
def dali_stream(folder):
    """Yield an endless iterator of float32 batches for the model, through DALI."""
    from benchmarks.stream_input import dali

    with dali(folder) as following:
        yield (following() for _ in itertools.count())


def measure(batches, signal, out, seconds):
    """Return windows/s of the stream and of np.copyto over ``seconds``, in turns."""
    until = time.perf_counter() + seconds
    n_read, n_copied, reading, copying = 0, 0, 0.0, 0.0
    while time.perf_counter() < until:
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < STREAM_SECONDS:
            n_read += len(next(batches))
        reading += spent
        for _ in range(5):
            copying += copy_seconds(signal, out)
            n_copied += len(signal) // len(out) * len(out)
    return n_read / reading, n_copied / copying


def sample(batches, signal, *, minutes, seconds):
    """Yield a Row for every ``seconds`` of the run."""
    out, start = np.empty((BATCH, *signal.shape[1:]), signal.dtype), time.perf_counter()
    next(batches)
    for _ in range(math.ceil(minutes * 60 / seconds)):
        read, copied = measure(batches, signal, out, seconds)
        yield Row((time.perf_counter() - start) / 60, read, copied, read / copied, *process_state())


def run(arguments, folder, signal):
    """Sample the whole run, each row written as it comes; return the rows."""
    rows = []
    stream = dali_stream if arguments.dali else read_stream
    with stream(folder) as batches, arguments.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for row in sample(batches, signal, minutes=arguments.minutes, seconds=arguments.seconds):
            writer.writerow(row)
            file.flush()
            rows.append(row)
    return rows


def main():
    """Print the verdict; exit 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=60, help="of one row")
    parser.add_argument("--warm-up", type=int, default=5, help="rows that are not judged")
    parser.add_argument("--windows", type=int, default=163_840, help="of the set that is made, 10 kB each")
    parser.add_argument("--folder", type=Path, help="where to make it")
    parser.add_argument("--index", type=Path, help="folder of shards to stream instead")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--dali", action="store_true")
    arguments = parser.parse_args()
    if arguments.minutes * 60 / arguments.seconds < arguments.warm_up + 10:
        parser.error("a verdict needs at least ten rows after the warm-up")
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}", flush=True)
    signal = make_signal(COPIED_WINDOWS)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if not arguments.index:
            make_set(Path(folder), [("train", make_signal(arguments.windows))])
        rows = run(arguments, arguments.index or Path(folder), signal)
    lines, met = verdict(rows[arguments.warm_up :])
    print("\n".join(lines))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
