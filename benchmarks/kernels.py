"""Time each kernel against its peers, interleaved in one run on real windows, and print medians and ratios."""

import argparse
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter
from scipy.signal import butter, filtfilt, iirnotch, medfilt, resample_poly

from anyecg.kernels.median import running_median
from anyecg.kernels.prepare import prepare
from anyecg.kernels.resample import resample
from anyecg.kernels.segment import grid, quality_at, quantise
from anyecg.loaders.records import Record, open_record
from anyecg.loaders.windows import find_windows, store_windows

DEMO = Path(__file__).parent.parent / "app" / "demo" / "records"
FILTERS = [iirnotch(50, 30, 500), butter(4, [0.67, 40], "bandpass", fs=500)]
WIDTH = 201


def processor():
    """Return the processor's name as Linux gives it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def real_windows(folder, n_windows):
    """Return float32 mV (n_windows, 5000): recordings at 500 Hz cut on the grid, repeated where there are too few."""
    found = []
    for header in sorted(folder.glob("*.hea")):
        record = open_record(header.with_suffix(""))
        signal = resample(np.nan_to_num(record.read()), fs_in=record.fs, fs_out=500)
        found += [signal[s : s + 5000] for s in grid(len(signal), fs=500)]
        if len(found) >= n_windows:
            break
    return np.stack([found[i % len(found)] for i in range(n_windows)])


def compare(title, ways, *, n_windows, repeats, clock=time.thread_time):
    """Run the ways in turn, ``repeats`` times; print microseconds a window and how many times the last one is faster.

    A ratio is the median of the ratios within a turn: on a shared machine the speed changes from turn to turn. One
    thread is measured by its own processor time, which does not count the turns that other programs take.
    """
    for way in ways.values():
        way()
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name].append(clock() - start)
    *_, ours = seconds.values()
    print(f"\n{title}")
    for name, times in seconds.items():
        ratio = statistics.median(t / o for t, o in zip(times, ours, strict=True))
        print(f"  {name:<44} {1e6 * statistics.median(times) / n_windows:9.2f} us a window   {ratio:6.2f}x ours")
    return {name: statistics.median(times) for name, times in seconds.items()}


def filtered(x):
    """Notch and band-pass, forward and backward, along the last axis."""
    for b, a in FILTERS:
        x = filtfilt(b, a, x)
    return x


def zscored(x):
    """Standardise along the last axis."""
    return (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-8)


def chain_of_one(window_WT):
    """Prepare as the model's published code does: one window a call."""
    prepared = []
    for window_T in window_WT:
        x_T = filtered(window_T)
        prepared.append(zscored(x_T - medfilt(x_T, WIDTH)))
    return prepared


def chain_batched(window_WT):
    """Prepare all windows a call; ``medfilt`` has no batched form that is not slower."""
    x_WT = filtered(window_WT)
    return zscored(x_WT - np.stack([medfilt(x_T, WIDTH) for x_T in x_WT]))


def chain_fastest(window_WT):
    """Prepare with the fastest exact median that SciPy has, which upstream does not use."""
    x_WT = filtered(window_WT)
    return zscored(x_WT - np.stack([median_filter(x_T, WIDTH, mode="constant") for x_T in x_WT]))


def on_threads(way, window_WT, n_threads):
    """Return a call that gives each thread an equal share of the windows."""
    parts = np.array_split(window_WT, n_threads)
    pool = ThreadPoolExecutor(n_threads)
    return lambda: list(pool.map(way, parts))


def compare_both(title, ways, *, n_windows, repeats, n_threads):
    """Compare one thread, then ``n_threads`` that each do the same whole work, by the clock on the wall."""
    compare(f"{title}, one thread", ways, n_windows=n_windows, repeats=repeats)
    pool = ThreadPoolExecutor(n_threads)

    def together(way):
        return lambda: [done.result() for done in [pool.submit(way) for _ in range(n_threads)]]

    compare(
        f"{title}, {n_threads} threads", {name: together(way) for name, way in ways.items()},
        n_windows=n_windows * n_threads, repeats=repeats, clock=time.perf_counter,
    )  # fmt: skip


def compare_prepare(window_WT, repeats, n_threads):
    """Compare filters, median and z-score; then say how far the copy of the same bytes is."""
    wide_WT = window_WT.astype(float)
    n = len(window_WT)
    out_WT = np.empty_like(window_WT)
    seconds = compare(
        "prepare, preset ecgfounder with z-score, one thread",
        {
            "SciPy chain, one window a call": lambda: chain_of_one(wide_WT),
            "SciPy chain, batched": lambda: chain_batched(wide_WT),
            "SciPy chain, batched, ndimage's median": lambda: chain_fastest(wide_WT),
            "np.copyto of the same windows": lambda: np.copyto(out_WT, window_WT),
            "ours": lambda: prepare(window_WT),
        },
        n_windows=n,
        repeats=repeats,
    )
    ours, copy = seconds["ours"], seconds["np.copyto of the same windows"]
    # A sample: notch and band-pass (5 and 11 multiplications, 4 and 12 additions), twice each.
    operations = 2 * (9 + 23) * window_WT.size
    print(
        f"  in + out {2 * window_WT.nbytes / ours / 1e9:.2f} GB/s, {100 * copy / ours:.1f} % of np.copyto's rate; "
        f"the filters are {operations / ours / 1e9:.1f} Gflop/s of float64 over the whole time"
    )
    compare(
        f"prepare, {n_threads} threads each, by the clock on the wall: only an idle machine shows the true speed",
        {
            "SciPy chain, one window a call": on_threads(chain_of_one, wide_WT, n_threads),
            "SciPy chain, batched": on_threads(chain_batched, wide_WT, n_threads),
            "ours, one thread": lambda: prepare(window_WT),
            "ours": on_threads(prepare, window_WT, n_threads),
        },
        n_windows=n,
        repeats=repeats,
        clock=time.perf_counter,
    )
    for few in (1, 4):
        compare(
            f"prepare, {few} a call, one thread",
            {
                "SciPy chain, batched": lambda: [chain_batched(wide_WT[w : w + few]) for w in range(0, n, few)],  # noqa: B023
                "ours": lambda: [prepare(window_WT[w : w + few]) for w in range(0, n, few)],  # noqa: B023
            },
            n_windows=n,
            repeats=repeats,
        )
    x_WT = filtered(wide_WT)
    compare(
        f"running median of {WIDTH}, one thread",
        {
            "scipy.signal.medfilt": lambda: [medfilt(x_T, WIDTH) for x_T in x_WT],
            "scipy.ndimage.median_filter": lambda: [median_filter(x_T, WIDTH, mode="constant") for x_T in x_WT],
            "ours": lambda: running_median(x_WT, WIDTH),
        },
        n_windows=n,
        repeats=repeats,
    )


def numpy_flags(raw_WT, fs):
    """Judge windows as ``quality`` does, in NumPy."""
    flags_W = np.zeros(len(raw_WT), np.uint8)
    flags_W[~np.isfinite(raw_WT).all(1)] = 4
    low_W, high_W = raw_WT.min(1), raw_WT.max(1)
    flags_W[high_W - low_W < 0.01] |= 1
    largest_W = np.maximum(abs(low_W), abs(high_W))
    flags_W[largest_W > 20] |= 2
    flags_W[(largest_W > 4) & (largest_W <= 20)] |= 16
    extreme_WT = (raw_WT == low_W[:, None]) | (raw_WT == high_W[:, None])
    same_WT = extreme_WT[:, 1:] & (raw_WT[:, 1:] == raw_WT[:, :-1])
    run = max(3, int(0.04 * fs)) - 1
    sums_WT = np.cumsum(np.pad(same_WT, ((0, 0), (1, 0))), 1)
    flags_W[(sums_WT[:, run:] - sums_WT[:, :-run] == run).any(1)] |= 8
    step = max(1, int(0.02 * fs))
    blocks = raw_WT[:, : raw_WT.shape[1] // step * step].reshape(len(raw_WT), -1, step)
    low, high = blocks.min(2), blocks.max(2)
    around = np.lib.stride_tricks.sliding_window_view
    high = around(np.pad(high, ((0, 0), (1, 2)), mode="edge"), 4, 1).max(2)
    low = around(np.pad(low, ((0, 0), (1, 2)), mode="edge"), 4, 1).min(2)
    spread = high - low
    threshold_W = np.maximum(0.15, 2.5 * np.median(spread, 1))
    flags_W[~(spread > threshold_W[:, None]).any(1)] |= 32
    return flags_W


def store_numpy(counts, fs):
    """Judge, resample, cut and quantise a recording of int16 microvolts with SciPy and NumPy."""
    signal = counts.astype(np.float32) * np.float32(0.001)
    starts = np.floor(np.arange(int(len(signal) / fs / 10 + 1e-9)) * 10 * fs).astype(int)
    flags_W = numpy_flags(np.stack([signal[s : s + int(10 * fs)] for s in starts]), fs)
    ratio = Fraction(500) / Fraction(fs)
    rate = resample_poly(signal, ratio.numerator, ratio.denominator)
    window_WT = rate[: len(starts) * 5000].reshape(-1, 5000)
    scale_W = abs(window_WT).max(1) / 32767
    return flags_W, np.rint(window_WT / scale_W[:, None]).astype(np.int16), scale_W


def store_ours(counts, fs):
    """Do the same with our kernels."""
    signal = counts.astype(np.float32) * np.float32(0.001)
    starts = grid(len(signal), fs=fs)
    flags_W = quality_at(signal, starts, int(10 * fs), fs=fs)
    rate = resample(signal, fs_in=fs, fs_out=500)
    return flags_W, *quantise(rate[: len(starts) * 5000].reshape(-1, 5000))


def compare_store(window_WT, repeats, n_threads):
    """Compare raw counts to stored windows, without the filters, at several rates."""
    whole = window_WT.reshape(-1)
    for fs in (128, 250, 257, 300, 360, 1000):
        counts = np.clip(1000 * resample(whole, fs_in=500, fs_out=fs), -32767, 32767).astype(np.int16)
        wanted, found = store_numpy(counts, fs), store_ours(counts, fs)
        if not (wanted[0] == found[0]).all() or abs(wanted[1].astype(int) - found[1]).max() > 1:
            sys.exit(f"{fs} Hz: the two ways do not agree")
        compare_both(
            f"judge + resample + cut + int16 from {fs} Hz",
            {"SciPy and NumPy": lambda: store_numpy(counts, fs), "ours": lambda: store_ours(counts, fs)},  # noqa: B023
            n_windows=len(found[0]),
            repeats=repeats,
            n_threads=n_threads,
        )


def compare_record(window_WT, repeats):
    """Say what an hour at 500 Hz costs between reading and filtering: judged, cut and stored, as a shard does it."""
    n_windows = 360
    mv_T = np.resize(window_WT, n_windows * 5000)
    record = Record("hour", 500.0, len(mv_T), ("II",), None, lambda start, stop: mv_T[start:stop])
    found, chosen_W = find_windows(record, pad_short=False), np.ones(n_windows, bool)
    whole_WT, out_WT = mv_T.reshape(-1, 5000), np.empty((n_windows, 5000), np.float32)
    seconds = compare(
        "an hour at 500 Hz, one thread",
        {
            "np.copyto of the same windows": lambda: np.copyto(out_WT, whole_WT),
            "prepare, preset none": lambda: [
                prepare(part, preset="none", zscore=False) for part in in_groups(whole_WT)
            ],
            "store_windows, preset none": lambda: store_windows(found, chosen_W, fs=500, preset="none"),
            "find_windows": lambda: find_windows(record, pad_short=False),
        },
        n_windows=n_windows,
        repeats=repeats,
    )
    ours = seconds["find_windows"] + seconds["store_windows, preset none"] - seconds["prepare, preset none"]
    print(f"  found and stored, without prepare: {1e6 * ours / n_windows:.2f} us a window")


def in_groups(window_WT):
    """Return the windows 64 at a time, as they are stored."""
    return [window_WT[first : first + 64] for first in range(0, len(window_WT), 64)]


def compare_high_quality(window_WT, repeats, n_threads):
    """Compare the 120-dB filter with soxr, where soxr happens to be installed; it is LGPL, never a dependency."""
    try:
        import soxr
    except ImportError:
        print("\nhigh-quality resampling: soxr is not installed, so it is not compared")
        return
    whole = window_WT.reshape(-1)
    for fs in (128, 250, 257, 300, 360, 1000):
        signal = resample(whole, fs_in=500, fs_out=fs)
        compare_both(
            f"high-quality resampling from {fs} Hz",
            {
                "soxr HQ": lambda: soxr.resample(signal, fs, 500, quality="HQ"),  # noqa: B023
                "ours": lambda: resample(signal, fs_in=fs, fs_out=500, quality="high"),  # noqa: B023
            },
            n_windows=len(window_WT),
            repeats=repeats,
            n_threads=n_threads,
        )


def main():
    """Print the machine and every comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, default=DEMO, help="folder of WFDB recordings")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    n_threads = len(os.sched_getaffinity(0))
    window_WT = real_windows(arguments.records, arguments.windows)
    print(f"{processor()}, {n_threads} cores; NumPy {np.__version__}; load {os.getloadavg()[0]:.1f}")
    print(f"{len(window_WT)} windows of 10 s at 500 Hz from {arguments.records}; medians of {arguments.repeats} turns")
    compare_prepare(window_WT, arguments.repeats, n_threads)
    compare_store(window_WT, arguments.repeats, n_threads)
    compare_record(window_WT, arguments.repeats)
    compare_high_quality(window_WT, arguments.repeats, n_threads)


if __name__ == "__main__":
    main()
