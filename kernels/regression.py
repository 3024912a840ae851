"""How well values are estimated, with integer weights and exact ties, once and over bootstrap replicates."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.weights import POISSON_64, fill_weights, seed_bits

METRICS = ("mae", "r2", "spearman")


@kernel
def _below_minus_above(order, ends, row, weight_P, out):
    """Fill for each unit the weight of those below it minus that of those above: twice its centred midrank.

    ``order`` sorts the units; ``ends`` says where a group of equals ends in that order.
    """
    total = 0
    for u in range(len(row)):
        total += weight_P[row[u]]
    below = 0
    first = 0
    group = 0
    for i in range(len(order)):
        group += weight_P[row[order[i]]]
        if ends[i]:
            for j in range(first, i + 1):
                out[order[j]] = 2 * below + group - total
            below += group
            first = i + 1
            group = 0


@kernel
def _measure(value, score, by_value, value_ends, by_score, score_ends, row, weight_P, of_value, of_score, out):
    """Fill out[3]; ``of_value`` and ``of_score`` are room for the ranks."""
    out[:] = np.nan
    total = 0
    error = square = mean = 0.0
    for u in range(len(row)):
        weight = weight_P[row[u]]
        total += weight
        error += weight * abs(score[u] - value[u])
        square += weight * (score[u] - value[u]) ** 2
        mean += weight * value[u]
    if total == 0:
        return
    out[0] = error / total
    mean /= total
    _below_minus_above(by_value, value_ends, row, weight_P, of_value)
    _below_minus_above(by_score, score_ends, row, weight_P, of_score)
    spread = products = value_squares = score_squares = 0.0
    for u in range(len(row)):
        weight = weight_P[row[u]]
        spread += weight * (value[u] - mean) ** 2
        products += weight * of_value[u] * of_score[u]
        value_squares += weight * of_value[u] ** 2
        score_squares += weight * of_score[u] ** 2
    # Ranks are exact, so without two values their squares are zero, while the spread may keep an error of rounding.
    if value_squares > 0:
        out[1] = 1.0 - square / spread
        if score_squares > 0:
            out[2] = products / np.sqrt(value_squares * score_squares)


@kernel
def _replicates(value, score, by_value, value_ends, by_score, score_ends, row, cluster_P, seed, first, poisson, out_RM):
    weight_P = np.empty(len(cluster_P), np.int64)
    of_value = np.empty(len(row))
    of_score = np.empty(len(row))
    for r in range(len(out_RM)):
        fill_weights(seed, first + r, cluster_P, poisson, weight_P)
        _measure(
            value, score, by_value, value_ends, by_score, score_ends, row, weight_P, of_value, of_score, out_RM[r]
        )  # fmt: skip


class Agreement:
    """Estimates of one component beside its measured values, to be measured under any weights of their clusters.

    Parameters
    ----------
    value, score : float arrays, shape (n,)
        Measured and estimated, finite.
    cluster : uint64 array, shape (n,)
        Key of the cluster (patient) of each unit.

    Notes
    -----
    Mean absolute error; R2 = 1 - sum of squared errors / sum of squares about the mean; Spearman's correlation of
    midranks. With integer weights all are those of the units repeated as often as their weight says.
    """

    def __init__(self, value, score, cluster):
        value, score = np.asarray(value, np.float64), np.asarray(score, np.float64)
        if value.ndim != 1 or value.shape != score.shape or value.shape != np.shape(cluster):
            raise ValueError(f"shapes {value.shape}, {score.shape}, {np.shape(cluster)}; wanted three times (n,)")
        if not (np.isfinite(value) & np.isfinite(score)).all():
            raise ValueError("values and scores must be finite; leave the other units out first")
        self.clusters, row = np.unique(np.asarray(cluster, np.uint64), return_inverse=True)
        self._units = value, score, *_sorted(value), *_sorted(score), row.astype(np.int32)

    def measure(self, weight_P=None):
        """Return the METRICS, float64 (3,), under int64 cluster weights (default 1); NaN where there is none."""
        weight_P = np.ones(len(self.clusters), np.int64) if weight_P is None else weight_P
        out, room = np.empty(len(METRICS)), np.empty((2, len(self._units[0])))
        _measure(*self._units, weight_P, *room, out)
        return out

    def replicates(self, first, last, *, seed):
        """Return float64 (last - first, 3): the METRICS of replicates first..last-1 (Poisson bootstrap of clusters)."""
        out_RM = np.empty((last - first, len(METRICS)))
        _replicates(*self._units, self.clusters, seed_bits(seed), first, POISSON_64, out_RM)
        return out_RM


def _sorted(values):
    """Return the order of values, and where groups of equal ones end in it."""
    order = np.argsort(values, kind="stable")
    return order, np.append(np.diff(values[order]) != 0, True)[: len(values)]
