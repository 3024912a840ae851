"""Measure how often intervals of an AUROC cover it, over data sets whose truth is known.

    python -m benchmarks.coverage --out coverage.csv --jobs 2
    python -m benchmarks.coverage --out coverage.csv --cells 30,70,0.5 --data-sets 200
    python -m benchmarks.coverage --out coverage.csv --print-only

A cell is (positive patients, windows a patient, correlation); beside the positive patients stand 300 negative ones. A
window's score is shift x label + sqrt(rho) x its patient's effect + sqrt(1 - rho) x its own, both standard normal, and
all windows of a patient have one label. What is to be covered is the pooled AUROC of all windows of the population,
Phi(shift / sqrt 2) = 0.70 whatever rho and the number of windows; a million patients are drawn to confirm it.

Cells are written as they are done, and not done again. A data set is a function of the seed, its cell and its number.
"""

import argparse
import csv
import itertools
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import norm

from anyecg.kernels.auroc import auroc
from anyecg.loaders.files import append_line
from anyecg.train.evaluate import bootstrap_auroc
from anyecg.train.intervals import interval_of
from benchmarks.kernels import processor

POSITIVE, WINDOWS, RHO = (3, 10, 30, 100, 300), (1, 15, 70), (0.1, 0.5)
N_NEGATIVE, AUROC, LEVEL = 300, 0.70, 0.95
SHIFT = np.sqrt(2) * norm.ppf(AUROC)
METHODS = {
    "default": "logit-t, patients resampled", "percentile": "percentile, patients resampled",
    "window": "logit-t, windows resampled",
}  # fmt: skip
CELL = ("n_positive", "n_windows", "rho", "method")
# Of the intervals, how many lie below and above the truth; the SD of the AUROCs over the data sets, and the mean SD
# of their replicates.
FOUND = ("data_sets", "replicates", "n_none", "n_below", "n_above", "mean_width", "auroc", "auroc_sd", "mean_se")
# From 30 positive patients on, and below.
ENOUGH, WANTED, WANTED_BELOW = 30, (0.93, 0.97), (0.90, 1.0)


def data_set(n_positive, n_negative, n_windows, rho, rng):
    """Return the scores, labels and patients of all windows."""
    n_patients = n_positive + n_negative
    patient = np.repeat(np.arange(n_patients), n_windows)
    label = patient < n_positive
    of_patient, of_window = rng.standard_normal(n_patients), rng.standard_normal(len(patient))
    return SHIFT * label + np.sqrt(rho) * of_patient[patient] + np.sqrt(1 - rho) * of_window, label, patient


def pooled_auroc(n_windows, rho, *, n_patients=1_000_000, n_parts=20, seed=0):
    """Return the AUROC of the population and its standard error: the mean over parts, each of its own patients."""
    rng = np.random.default_rng([seed, n_windows, round(100 * rho)])
    n_class = n_patients // n_parts // 2
    found = [auroc(*data_set(n_class, n_class, n_windows, rho, rng)[:2]) for _ in range(n_parts)]
    return np.mean(found), np.std(found, ddof=1) / np.sqrt(n_parts)


def intervals(number, *, cell, n_replicates, seed):
    """Return, for each method, (low, high, AUROC, SD of the replicates) of one data set."""
    n_positive, n_windows, rho = cell
    rng = np.random.default_rng([seed, n_positive, n_windows, round(100 * rho), number])
    score, label, patient = data_set(n_positive, N_NEGATIVE, n_windows, rho, rng)
    options = {"n_replicates": n_replicates, "seed": int(rng.integers(2**62)), "level": LEVEL}
    patients = bootstrap_auroc(score, label, patient, **options)
    low_high = interval_of(patients.value, patients.replicates, df=np.nan, level=LEVEL, interval="percentile")
    # With one window a patient both resample the same.
    windows = patients if n_windows == 1 else bootstrap_auroc(score, label, np.arange(len(score)), **options)
    spread = [np.nanstd(one.replicates, ddof=1) for one in (patients, windows)]
    return [
        (patients.low, patients.high, patients.value, spread[0]), (*low_high, patients.value, spread[0]),
        (windows.low, windows.high, windows.value, spread[1]),
    ]  # fmt: skip


def summary(found_N4):
    """Return the FOUND numbers but the first two, from (low, high, AUROC, SD of the replicates) of each data set."""
    low, high, value, se = np.transpose(found_N4)
    has = ~np.isnan(low)
    width = float(np.mean((high - low)[has])) if has.any() else float("nan")
    return int((~has).sum()), int((high < AUROC).sum()), int((low > AUROC).sum()), width, *(
        float(number) for number in (value.mean(), value.std(ddof=1), np.nanmean(se))
    )  # fmt: skip


def measure(path, cells, arguments):
    """Append the cells that the table does not have."""
    done = {tuple(row[name] for name in CELL[:3]) for row in read_table(path)}
    if not path.exists():
        append_line(path, ",".join((*CELL, *FOUND, "seconds")))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for cell in cells:
            if cell in done:
                continue
            start = time.perf_counter()
            one = partial(intervals, cell=cell, n_replicates=arguments.replicates, seed=arguments.seed)
            found_NM4 = np.array(list(pool.map(one, range(arguments.data_sets), chunksize=10)))
            seconds = round(time.perf_counter() - start)
            head = arguments.data_sets, arguments.replicates
            lines = [
                ",".join(map(str, (*cell, method, *head, *summary(found_NM4[:, number]), seconds)))
                for number, method in enumerate(METHODS)
            ]
            append_line(path, "\n".join(lines))
            print(f"{cell}: {seconds} s", flush=True)


def read_table(path):
    """Return the rows of the table; none where there is no table yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: text if name == "method" else float(text) if "." in text or text == "nan" else int(text)
             for name, text in row.items()}
            for row in csv.DictReader(file)
        ]  # fmt: skip


def coverage(row):
    """Return the share that covers among the intervals there are, its Monte Carlo error, and the share among all."""
    n = row["data_sets"] - row["n_none"]
    n_covered = n - row["n_below"] - row["n_above"]
    share = n_covered / n if n else float("nan")
    return share, np.sqrt(share * (1 - share) / n) if n else float("nan"), n_covered / row["data_sets"]


def say(rows):
    """Print the grid of each method, as Markdown, and whether the default keeps what is wanted of it."""
    print("coverage in % +- Monte Carlo error; mean width; SD of the replicates over that of the AUROCs; where some "
          "data sets have no interval, how many, and coverage with these as misses")  # fmt: skip
    for method, words in METHODS.items():
        own = {tuple(row[name] for name in CELL[:3]): row for row in rows if row["method"] == method}
        print(f"\n{method} ({words})\n")
        print(f"| windows | rho | {' | '.join(f'{n} positive' for n in POSITIVE)} |\n|---|---|{'---|' * len(POSITIVE)}")
        for n_windows, rho in itertools.product(WINDOWS, RHO):
            cells = [_cell(own.get((n, n_windows, rho))) for n in POSITIVE]
            print(f"| {n_windows} | {rho} | {' | '.join(cells)} |")
    missed = []
    for row in (row for row in rows if row["method"] == "default"):
        low, high = WANTED if row["n_positive"] >= ENOUGH else WANTED_BELOW
        share, error, _ = coverage(row)
        if not low <= share <= high:
            missed.append(f"{tuple(row[name] for name in CELL[:3])}: {100 * share:.1f} +- {100 * error:.1f} %")
    print(f"\nwanted of the default: {WANTED} from {ENOUGH} positive patients on, {WANTED_BELOW} below; missed in "
          f"{len(missed)} of {len(rows) // len(METHODS)} cells", *missed, sep="\n")  # fmt: skip


def _cell(row):
    if row is None:
        return ""
    share, error, of_all = coverage(row)
    text = f"{100 * share:.1f} +- {100 * error:.1f}; {row['mean_width']:.3f}; {row['mean_se'] / row['auroc_sd']:.2f}"
    return text + (f"; {row['n_none']} none, {100 * of_all:.1f}" if row["n_none"] else "")


def main():
    """Measure the cells that are missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV, made or appended to")
    parser.add_argument("--cells", nargs="*", metavar="POSITIVE,WINDOWS,RHO", help="default: all 30")
    parser.add_argument("--data-sets", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print-only", action="store_true")
    arguments = parser.parse_args()
    cells = list(itertools.product(POSITIVE, WINDOWS, RHO))
    if arguments.cells:
        wanted = [(int(n), int(w), float(rho)) for n, w, rho in (text.split(",") for text in arguments.cells)]
        if not set(wanted) <= set(cells):
            parser.error(f"cells {wanted}; wanted of {POSITIVE} x {WINDOWS} x {RHO}")
        cells = wanted
    if not arguments.print_only:
        measure(arguments.out, cells, arguments)
    print(f"{processor()}; {LEVEL:.0%} intervals, {N_NEGATIVE} negative patients")
    for n_windows, rho in itertools.product(WINDOWS, RHO):
        value, error = pooled_auroc(n_windows, rho)
        print(f"pooled AUROC of a million patients, {n_windows} windows, rho {rho}: {value:.5f} +- {error:.5f}")
    say(read_table(arguments.out))


if __name__ == "__main__":
    main()
