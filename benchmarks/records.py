"""Time open_record on one hour of format 16 at 500 Hz: a random window against wfdb, the whole against numpy."""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import wfdb

from anyecg.loaders.records import open_record

FS, HOURS, GAIN, BASELINE = 500, 1, 217.3, 12
WINDOW = 10 * FS


def write_record(folder):
    """Write one hour of a wandering lead; return its path without suffix."""
    steps = np.random.default_rng(0).integers(-20, 21, HOURS * 3600 * FS)
    counts = np.cumsum(steps) % 3000 - 1500
    wfdb.wrsamp(
        "hour", fs=FS, units=["mV"], sig_name=["II"], d_signal=counts[:, None], fmt=["16"], adc_gain=[GAIN],
        baseline=[BASELINE], write_dir=str(folder),
    )  # fmt: skip
    return Path(folder) / "hour"


def median_us(calls, *, rounds, repeats):
    """Time the calls in turns of ``repeats``, in another order each round; return the median microseconds of a call."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(2)
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            for _ in range(repeats):
                start = time.perf_counter()
                calls[name]()
                spent[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) * 1e6 for name, times in spent.items()}


def windows(path, rounds, repeats):
    """Read a window at random: both sides from the header on, and ours from a record that was opened before."""
    rng = np.random.default_rng(1)
    record = open_record(path)
    n_samples = record.n_samples

    def ours():
        start = int(rng.integers(n_samples - WINDOW))
        return open_record(path).read(start, start + WINDOW)

    def opened():
        start = int(rng.integers(n_samples - WINDOW))
        return record.read(start, start + WINDOW)

    def theirs():
        start = int(rng.integers(n_samples - WINDOW))
        return wfdb.rdrecord(str(path), sampfrom=start, sampto=start + WINDOW)

    return median_us({"ours": ours, "opened": opened, "wfdb": theirs}, rounds=rounds // repeats, repeats=repeats)


def wholes(path, rounds, repeats):
    """Read the whole record, checksum verified, against the bare minimum without header, checksum and NaN."""
    data = path.with_suffix(".dat")

    def bare():
        mv = np.fromfile(data, "<i2").astype(np.float32)
        mv -= np.float32(BASELINE)
        mv *= np.float32(1 / GAIN)
        return mv

    calls = {
        "ours": lambda: open_record(path).read(),
        "numpy": lambda: (np.fromfile(data, "<i2").astype(np.float32) - np.float32(BASELINE)) / np.float32(GAIN),
        "numpy in place": bare,
        "wfdb": lambda: wfdb.rdrecord(str(path)),
    }
    return median_us(calls, rounds=rounds // repeats, repeats=repeats)


def main():
    """Print medians and ratios, all interleaved in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_record(folder)
        for repeats in (1, 20):
            found = windows(path, arguments.rounds, repeats)
            print(f"turns of {repeats}: 10-s window {found['ours']:.0f} us; wfdb {found['wfdb']:.0f} us, ", end="")
            print(f"{found['wfdb'] / found['ours']:.1f}x; opened before {found['opened']:.0f} us, ", end="")
            print(f"{found['wfdb'] / found['opened']:.1f}x")
            found = wholes(path, arguments.rounds // 5, repeats)
            print(f"turns of {repeats}: whole hour {found['ours']:.0f} us", end="")
            for name in ("numpy", "numpy in place", "wfdb"):
                print(f"; {name} {found[name]:.0f} us, our rate {found[name] / found['ours']:.2f} of it", end="")
            print()


if __name__ == "__main__":
    main()
