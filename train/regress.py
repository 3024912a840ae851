"""How well a regression estimates the values of components."""

import numpy as np

from anyecg.kernels.regression import METRICS, Agreement
from anyecg.train.units import clusters_of, n_distinct, one_target
from anyecg.train.work import Measured, Task

SCALE = {"mae": "log", "r2": "log-rest", "spearman": "atanh"}


def regression_task(evaluation, target, horizon_min, level, n_units, n_read):
    """Return the task of one component."""

    def build():
        units = evaluation.units("test", horizon_min, level)
        one = one_target(units, target, level)
        agreement = Agreement(one.label, one.logit, clusters_of(units, one.rows, evaluation.config.unit))
        facts = {
            "n": len(one.rows), "n_patients": n_distinct(evaluation.clusters.patients(units, one.rows)),
            "n_unscored": one.n_unscored, "df": len(agreement.clusters) - 1,
        }  # fmt: skip
        return Measured(
            facts, agreement.measure(), lambda first, last: agreement.replicates(first, last, seed=evaluation.seed)
        )

    # Three sorted passes a replicate, one at a time.
    return Task(("regression", evaluation.targets[target], horizon_min, level), 100 * n_units, n_read, build)


def regression_row(done, intervals):
    """Return the counts and metrics of one component, as columns."""
    facts = done.facts
    row: dict = {"n": facts["n"], "n_patients": facts["n_patients"]}
    for place, metric in enumerate(METRICS):
        row |= intervals.columns(
            metric, done.value[place], done.replicates[:, place], df=facts["df"], scale=SCALE[metric]
        )  # fmt: skip
    n_replicates = int((~np.isnan(done.replicates[:, -1])).sum())
    return {**row, "n_unscored": facts["n_unscored"], "n_replicates": n_replicates}
