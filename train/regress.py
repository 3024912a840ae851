"""How well a regression estimates the values of components."""

import numpy as np

from anyecg.kernels.regression import METRICS, Agreement
from anyecg.train.units import clusters_of, one_target

SCALE = {"mae": "log", "r2": "log-rest", "spearman": "atanh"}


def regression_row(units, number, level, *, unit, bootstrap):
    """Return the counts and metrics of one component, as columns."""
    rows = one_target(units, number, level)
    cluster = clusters_of(units, rows, unit)
    agreement = Agreement(units.label[rows, number], units.logit[rows, number], cluster)
    values, replicates = agreement.measure(), bootstrap.replicates(agreement.replicates)
    row: dict = {"n": len(rows), "n_patients": len(np.unique(units.patient[rows]))}
    for place, metric in enumerate(METRICS):
        row |= bootstrap.columns(
            metric, values[place], replicates[:, place], df=len(agreement.clusters) - 1, scale=SCALE[metric]
        )  # fmt: skip
    return {**row, "n_replicates": int((~np.isnan(replicates[:, -1])).sum())}
