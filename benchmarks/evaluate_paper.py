"""Time bootstrap AUROCs at the paper's full size beside named peers, all in one run.

    python -m benchmarks.evaluate_set --out FOLDER
    python -m benchmarks.evaluate_paper --set FOLDER

A few targets, small and large, are timed in turn by every method, round after round. A method's seconds a unit and
replicate, median over the rounds, times the units of all 108 targets and 1,000 replicates are its time for the table:
extrapolated for the peers, whose loops would take hours. ``--whole`` runs ours over all targets for real.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats
from sklearn.metrics import roc_auc_score

from anyecg.kernels.binned import LEAST_UNITS, BinnedRanking
from anyecg.kernels.weights import Resampling
from anyecg.loaders.stream import open_index
from anyecg.train.measures import Areas, replicates_of
from anyecg.train.scores import read_scores
from benchmarks.kernels import processor

N_REPLICATES = 1000


class Units(NamedTuple):
    """The windows of one target: score, label, the row of each one's patient among all, and the patients' weights."""

    score: np.ndarray
    label: np.ndarray
    row: np.ndarray
    resampling: Resampling


def scikit_learn(units, n_replicates):
    """Weigh patients by Poisson numbers, in a loop over scikit-learn's AUROC."""
    rng = np.random.default_rng(0)
    n_patients = units.row.max() + 1
    return [
        roc_auc_score(units.label, units.score, sample_weight=rng.poisson(1, n_patients)[units.row])
        for _ in range(n_replicates)
    ]


def scipy_bootstrap(units, n_replicates):
    """Let SciPy resample patients; the statistic is scikit-learn's AUROC with each patient as often as drawn."""
    n_patients = units.row.max() + 1

    def statistic(patients):
        weight_P = np.bincount(patients, minlength=n_patients)
        return roc_auc_score(units.label, units.score, sample_weight=weight_P[units.row])

    return scipy.stats.bootstrap(
        (np.arange(n_patients),), statistic, n_resamples=n_replicates, vectorized=False, method="percentile", rng=0
    ).bootstrap_distribution  # fmt: skip


def exact(units, n_replicates):
    """Return the replicates of the exact kernel."""
    areas = Areas(units.score, units.label, units.row, with_auprc=False)
    return replicates_of(areas, units.resampling, 0, n_replicates)[:, 0]


class BinnedAreas(BinnedRanking):
    """The binned kernel, without the area under the precision-recall curve."""

    def under(self, weight_PL):
        """Return the areas under each lane's weights."""
        return super().under(weight_PL, with_auprc=False)


def binned(units, n_replicates):
    """Return the replicates of the binned kernel, as the evaluation does: the exact one's with few units."""
    if len(units.score) < LEAST_UNITS:
        return exact(units, n_replicates)
    areas = BinnedAreas(units.score, units.label, units.row)
    return replicates_of(areas, units.resampling, 0, n_replicates)[:, 0]


# Name: function, and the replicates that are timed of it.
METHODS = {
    "scikit-learn, a loop": (scikit_learn, 2),
    "scipy.stats.bootstrap": (scipy_bootstrap, 2),
    "exact": (exact, N_REPLICATES),
    "binned": (binned, N_REPLICATES),
}


class Table:
    """The windows of the test split at one horizon, a target at a time."""

    def __init__(self, folder, horizon_min=60):
        index = open_index(folder / "shards")
        self.targets = index.targets
        rows, self._logit_WC = read_scores(folder / "scores.h5", index).windows["test"]
        pairs = index.pairs_of("test", horizon_min)
        self._window = np.searchsorted(rows, index.tables["pair_window"][pairs])
        self._draw = np.asarray(index.tables["pair_draw"])[pairs]
        patient = np.asarray(index.tables["visit_patient"])[np.asarray(index.tables["draw_visit"])[self._draw]]
        patients, self._row = np.unique(patient, return_inverse=True)
        self._resampling = Resampling(patients, seed=1)
        self._label_DC = np.asarray(index.tables["draw_labels"])

    def units(self, number):
        """Return the windows in which a target was measured, and that have a score."""
        label, score = self._label_DC[:, number][self._draw], self._logit_WC[:, number][self._window]
        kept = (label >= 0) & ~np.isnan(score)
        return Units(score[kept], label[kept], self._row[kept].astype(np.int32), self._resampling)


def seconds_each(table, numbers, n_rounds):
    """Return, for each method, seconds a unit and replicate: a median over rounds for each of some targets."""
    found: dict = {name: [] for name in METHODS}
    for number in numbers:
        units = table.units(number)
        rounds: dict = {name: [] for name in METHODS}
        exact(units, 64), binned(units, 64)  # loads compiled code
        for _ in range(n_rounds):
            for name, (method, n_replicates) in METHODS.items():
                start = time.perf_counter()
                method(units, n_replicates)
                rounds[name].append((time.perf_counter() - start) / n_replicates / len(units.score))
        for name, seconds in rounds.items():
            found[name].append(statistics.median(seconds))
        said = ", ".join(f"{name} {1e9 * found[name][-1]:.3g}" for name in METHODS)
        print(f"{table.targets[number]}: {len(units.score)} windows; ns a window and replicate: {said}", flush=True)
    return found


def run_whole(table, loop_seconds):
    """Run ours over all targets, on one core, and print the time and the error of the bins."""
    seconds, errors = {exact: 0.0, binned: 0.0}, []
    for number in range(len(table.targets)):
        found, units = {}, table.units(number)
        for method in seconds:
            start = time.perf_counter()
            found[method] = method(units, N_REPLICATES)
            seconds[method] += time.perf_counter() - start
        errors.append(float(np.nanmax(abs(found[exact] - found[binned]))))
    for method, each in seconds.items():
        print(f"{method.__name__}, for real: {each:.4g} s, {loop_seconds / each:.4g}x the extrapolated loop")
    print(
        f"binned: largest error of any replicate {max(errors):.1e}; its median over the targets "
        f"{statistics.median(errors):.1e}"
    )


def main():
    """Print the times, extrapolated and real."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of benchmarks.evaluate_set")
    parser.add_argument("--targets", type=int, default=5, help="how many targets are timed by every method")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="run ours over all targets")
    arguments = parser.parse_args()
    table = Table(arguments.set)
    n_C = np.array([len(table.units(number).score) for number in range(len(table.targets))])
    by_size = np.argsort(n_C, kind="stable")
    chosen = by_size[np.linspace(0, len(by_size) - 1, arguments.targets).astype(int)].tolist()
    print(f"{processor()}; {len(n_C)} targets, {n_C.sum()} windows, {N_REPLICATES} replicates")
    found = seconds_each(table, chosen, arguments.rounds)
    # Targets between two that were timed cost what lies between.
    whole = {name: float(np.interp(n_C, n_C[chosen], each) @ n_C) * N_REPLICATES for name, each in found.items()}
    for name, seconds in whole.items():
        print(f"{name}: {seconds:.4g} s for the table, extrapolated; {whole['scikit-learn, a loop'] / seconds:.4g}x")
    if arguments.whole:
        run_whole(table, whole["scikit-learn, a loop"])
    print(
        f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, the scores of all windows included"
    )


if __name__ == "__main__":
    main()
