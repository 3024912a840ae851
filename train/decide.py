"""Decisions of a model of exclusive labels: each unit goes to the class of its highest score."""

import numpy as np

from anyecg.kernels.weights import poisson_weights
from anyecg.loaders.errors import ConfigError
from anyecg.train.intervals import mean_of
from anyecg.train.units import clusters_of, fewer_clusters, of_level
from anyecg.train.work import Measured, Task

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


def decided(units, level, logit_UC=None, label_UC=None):
    """Return (rows, class called, true class) of the units that count: scored, and with just one label 1.

    ``logit_UC`` and ``label_UC`` stand for those of the units, where other classes or units are wanted.
    """
    logit_UC = units.logit if logit_UC is None else logit_UC
    label_UC = units.label if label_UC is None else label_UC
    one_class = (label_UC == 1).sum(1) == 1
    rows = of_level(units, np.flatnonzero(one_class & ~np.isnan(logit_UC).any(1)), level)
    if not len(rows):
        return rows, rows, rows
    return rows, logit_UC[rows].argmax(1), label_UC[rows].argmax(1)


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


def measure_decisions(units, level, n_classes, *, unit, seed):
    """Return what is measured of the decisions of some units: of every class, and of all of them pooled."""
    rows, called, true = decided(units, level)
    cluster = clusters_of(units, rows, unit)
    decisions = Decisions(called, true, cluster, n_classes)
    facts = {
        "n": len(rows), "n_of": np.bincount(true, minlength=n_classes).tolist(),
        "df": [fewer_clusters((true == number).astype(int), cluster) - 1 for number in range(n_classes)],
        "df_all": len(decisions.clusters) - 1,
    }  # fmt: skip
    return Measured(
        facts, decisions.measure()[0], lambda first, last: decisions.replicates(first, last, seed=seed)
    )  # fmt: skip


def decision_task(evaluation, horizon_min, level):
    """Return the task of one horizon and level."""
    n_draws, n_classes = len(evaluation.index.tables["draw_visit"]), len(evaluation.targets)

    def build():
        units, unit = evaluation.units("test", horizon_min, level), evaluation.config.unit
        return measure_decisions(units, level, n_classes, unit=unit, seed=evaluation.seed)

    return Task(("decisions", horizon_min, level), n_draws, n_draws, build)


def decision_rows(done, targets, f1_classes, intervals):
    """Return the rows of a finished task: the classes, all of them pooled, the mean of ``f1_classes``."""
    facts, value_CM, replicates_RCM = done.facts, done.value, done.replicates
    parts, n_C = [*facts["df"], facts["df_all"]], [*facts["n_of"], facts["n"]]
    table = [
        {
            "target": name, "n": facts["n"], "n_positive": n_C[number],
            **_metrics(intervals, value_CM[number], replicates_RCM[:, number], [parts[number]] * len(METRICS)),
        }
        for number, name in enumerate((*targets, ALL))
    ]  # fmt: skip
    df_C = np.array(facts["df"])[f1_classes]
    of_mean = [
        mean_of(value_CM[f1_classes, m], replicates_RCM[:, f1_classes, m], df_C, within=True)
        for m in range(len(METRICS))
    ]
    values, replicates, df = zip(*of_mean, strict=True)
    table.append(
        {
            "target": MEAN, "n": facts["n"], "n_positive": sum(n_C[number] for number in f1_classes),
            **_metrics(intervals, values, np.stack(replicates, axis=1), df),
        }
    )  # fmt: skip
    return table


def _metrics(intervals, values, replicates_RM, df_M):
    found: dict = {}
    for number, metric in enumerate(METRICS):
        found |= intervals.columns(metric, values[number], replicates_RM[:, number], df=df_M[number])
    return {**found, "n_replicates": int((~np.isnan(replicates_RM[:, 0])).sum())}
