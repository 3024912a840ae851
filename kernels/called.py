"""Decisions at a fixed threshold, by clusters: sensitivity, specificity, F1, balanced accuracy."""

import numpy as np

from anyecg.kernels.sums import weighted_sums

METRICS = ("sensitivity", "specificity", "f1", "balanced_accuracy")


class Called:
    """Units of one target, called positive or not, to be measured under any weights of their clusters.

    Parameters
    ----------
    called, label : bool arrays, shape (n,)
    row : int array, shape (n,)
        Cluster of each unit, as a row of the weights.
    n_clusters : int

    Notes
    -----
    Sums of integers below 2^53 are exact; equal to scikit-learn's weighted metrics.
    """

    def __init__(self, called, label, row, n_clusters):
        parts = label & called, label, ~label & called, ~label
        counts = [np.bincount(row[part], minlength=n_clusters) for part in parts]
        self._count_PK = np.stack(counts, axis=1).astype(np.float64)

    def measure(self):
        """Return the METRICS, float64 (4,), every unit counted once; NaN without the class that one is about."""
        return _of_counts(self._count_PK.sum(0)[:, None])[0]

    def under(self, weight_PL):
        """Return float64 (LANES, 4): the METRICS under each lane's int8 weights of the clusters."""
        return _of_counts(weighted_sums(self._count_PK, weight_PL))


def _of_counts(count_KL):
    tp, positive, fp, negative = count_KL
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity, specificity = tp / positive, (negative - fp) / negative
        f1 = np.where(positive > 0, 2 * tp / (positive + tp + fp), np.nan)
    return np.stack([sensitivity, specificity, f1, (sensitivity + specificity) / 2], axis=1)
