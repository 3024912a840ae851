"""Decisions of a model of exclusive labels: each unit goes to the class of its highest score."""

import numpy as np

from anyecg.kernels.auroc import poisson_weights
from anyecg.loaders.errors import ConfigError
from anyecg.train.intervals import mean_of
from anyecg.train.units import clusters_of, fewer_clusters, of_level

METRICS = ("f1", "sensitivity")
# Rows below those of the classes: pooled over all classes (both metrics are the accuracy then), and the mean.
ALL, MEAN = "all", "mean"
# Replicates that are worked out together.
_BLOCK = 64


def check_classes(names, targets):
    """Return the numbers of the classes of the mean F1, all without names; refuse unknown ones."""
    unknown = [name for name in names if name not in targets]
    if unknown:
        raise ConfigError(f"evaluate.f1_classes: {unknown[0]!r} is none of the targets; found {', '.join(targets)}")
    return [targets.index(name) for name in names or targets]


def decided(units, level):
    """Return (rows, class called, true class) of the units that count: scored, and with just one label 1."""
    one_class = (units.label == 1).sum(1) == 1
    rows = of_level(units, np.flatnonzero(one_class & ~np.isnan(units.logit).any(1)), level)
    if not len(rows):
        return rows, rows, rows
    return rows, units.logit[rows].argmax(1), units.label[rows].argmax(1)


class Decisions:
    """Decisions of units in clusters, counted once, to be measured under any weights of the clusters.

    Parameters
    ----------
    called, true : int arrays, shape (n,)
        Classes, 0 to ``n_classes`` - 1.
    cluster : uint64 array, shape (n,)
    """

    def __init__(self, called, true, cluster, n_classes):
        self.n_classes = n_classes
        self.clusters, row = np.unique(cluster, return_inverse=True)
        count = np.zeros((3, len(self.clusters), n_classes))
        np.add.at(count[0], (row[called == true], true[called == true]), 1)
        np.add.at(count[1], (row, called), 1)
        np.add.at(count[2], (row, true), 1)
        self._count_PK = count.transpose(1, 0, 2).reshape(len(self.clusters), 3 * n_classes)

    def measure(self, weight_RP=None):
        """Return the METRICS, float64 (R, classes + 1, 2), under integer weights (default one row of 1).

        The last class is all of them together. NaN for a class that no unit has.
        """
        weight_RP = np.ones((1, len(self.clusters))) if weight_RP is None else weight_RP
        # Sums of integers below 2^53 are exact, in any order.
        sums = (weight_RP.astype(np.float64) @ self._count_PK).reshape(-1, 3, self.n_classes)
        hit, called, true = np.concatenate([sums, sums.sum(2, keepdims=True)], axis=2).transpose(1, 0, 2)
        true = np.where(true > 0, true, np.nan)
        return np.stack([2 * hit / (called + true), hit / true], axis=2)

    def replicates(self, first, last, *, seed):
        """Return float64 (last - first, classes + 1, 2): the METRICS of replicates first..last-1."""
        blocks = [np.empty((0, self.n_classes + 1, len(METRICS)))]
        for start in range(first, last, _BLOCK):
            weight_RP = poisson_weights(self.clusters, start, min(start + _BLOCK, last), seed=seed)
            blocks.append(self.measure(weight_RP))
        return np.concatenate(blocks)


def decision_rows(units, targets, level, *, unit, f1_classes, bootstrap):
    """Return the rows of one horizon and level: the classes, all of them pooled, the mean of ``f1_classes``."""
    rows, called, true = decided(units, level)
    cluster = clusters_of(units, rows, unit)
    decisions = Decisions(called, true, cluster, len(targets))
    value_CM, replicates_RCM = decisions.measure()[0], bootstrap.replicates(decisions.replicates)
    df_C = [fewer_clusters((true == number).astype(int), cluster) - 1 for number in range(len(targets))]
    parts = [*df_C, len(decisions.clusters) - 1]
    n_C = np.append(np.bincount(true, minlength=len(targets)), len(rows))
    table = [
        {
            "target": name, "n": len(rows), "n_positive": int(n_C[number]),
            **_metrics(bootstrap, value_CM[number], replicates_RCM[:, number], [parts[number]] * len(METRICS)),
        }
        for number, name in enumerate((*targets, ALL))
    ]  # fmt: skip
    of_mean = [
        mean_of(value_CM[f1_classes, m], replicates_RCM[:, f1_classes, m], np.array(df_C)[f1_classes], within=True)
        for m in range(len(METRICS))
    ]
    values, replicates, df = zip(*of_mean, strict=True)
    table.append(
        {
            "target": MEAN, "n": len(rows), "n_positive": int(n_C[f1_classes].sum()),
            **_metrics(bootstrap, values, np.stack(replicates, axis=1), df),
        }
    )  # fmt: skip
    return table


def _metrics(bootstrap, values, replicates_RM, df_M):
    found: dict = {}
    for number, metric in enumerate(METRICS):
        found |= bootstrap.columns(metric, values[number], replicates_RM[:, number], df=df_M[number])
    return {**found, "n_replicates": int((~np.isnan(replicates_RM[:, 0])).sum())}
