"""Ranking metrics with integer weights and exact ties, once and over bootstrap replicates."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.counter import mix_pair

METRICS = ("auroc", "auprc", "sensitivity", "specificity", "f1")

# Distribution function of Poisson(1) at 0, 1, 2, ..., scaled to 64 bits; beyond 12 lies less than 1e-10.
_POISSON = np.array([sum(np.exp(-1.0) / np.prod(np.arange(1.0, k + 1)) for k in range(n + 1)) for n in range(13)])
POISSON_64 = np.minimum(np.floor(_POISSON * 2.0**64), np.nextafter(2.0**64, 0)).astype(np.uint64)


@kernel
def fill_weights(seed, replicate, cluster_P, poisson, weight_P):
    """Fill each cluster's Poisson(1) weight, a function of (seed, replicate, cluster key)."""
    key = mix_pair(seed, np.uint64(replicate))
    for p in range(len(cluster_P)):
        bits = mix_pair(key, cluster_P[p])
        weight = 0
        while weight < len(poisson) and bits >= poisson[weight]:
            weight += 1
        weight_P[p] = weight


@kernel
def _measure(score, label, row, weight_P, n_called, out):
    """Fill out[5] from units sorted by falling score; the first ``n_called`` are at or above the threshold.

    With integer weights the AUROC sum is an integer; a group of equal scores counts half of its own pairs.
    """
    n = len(score)
    out[:] = np.nan
    if n == 0:
        return
    zero = weight_P[0] * 0  # integer or float, as the weights are
    tp = fp = called_tp = called_fp = twice_area = zero
    precision_sum = 0.0
    i = 0
    while i < n:
        group_tp = group_fp = zero
        j = i
        while j < n and score[j] == score[i]:
            if label[j]:
                group_tp += weight_P[row[j]]
            else:
                group_fp += weight_P[row[j]]
            j += 1
        twice_area += group_fp * (2 * tp + group_tp)
        tp += group_tp
        fp += group_fp
        if group_tp > 0:
            precision_sum += group_tp * (tp / (tp + fp))
        if j <= n_called:
            called_tp, called_fp = tp, fp
        i = j
    if tp > 0 and fp > 0:
        out[0] = twice_area / (2.0 * tp * fp)
        out[1] = precision_sum / tp
        if n_called >= 0:
            out[2] = called_tp / tp
            out[3] = (fp - called_fp) / fp
            out[4] = 2.0 * called_tp / (tp + called_tp + called_fp)


@kernel
def _replicates(score, label, row, cluster_P, seed, first, n_called, poisson, out_RM):
    weight_P = np.empty(len(cluster_P), np.int64)
    for r in range(len(out_RM)):
        fill_weights(seed, first + r, cluster_P, poisson, weight_P)
        _measure(score, label, row, weight_P, n_called, out_RM[r])


@kernel
def _fill_rows(seed, first, cluster_P, poisson, weight_RP):
    for r in range(len(weight_RP)):
        fill_weights(seed, first + r, cluster_P, poisson, weight_RP[r])


def poisson_weights(cluster_P, first, last, *, seed):
    """Return int64 (last - first, clusters): the weights of uint64 cluster keys in replicates first..last-1."""
    weight_RP = np.empty((last - first, len(cluster_P)), np.int64)
    _fill_rows(np.uint64(seed & 0xFFFFFFFFFFFFFFFF), first, cluster_P, POISSON_64, weight_RP)
    return weight_RP


class Ranking:
    """Units of one target sorted once by score, to be measured under any weights of their clusters.

    Parameters
    ----------
    score : float array, shape (n,)
        Finite; higher means more likely positive.
    label : array, shape (n,)
        0 or 1.
    cluster : uint64 array, shape (n,)
        Key of the cluster (patient) of each unit.
    threshold : float
        Units at or above it are called positive; NaN leaves sensitivity, specificity and F1 NaN.
    """

    def __init__(self, score, label, cluster, threshold=float("nan")):
        score, label = np.asarray(score, np.float64), np.asarray(label)
        if score.ndim != 1 or score.shape != label.shape or score.shape != np.shape(cluster):
            raise ValueError(f"shapes {score.shape}, {label.shape}, {np.shape(cluster)}; wanted three times (n,)")
        if not np.isfinite(score).all() or not np.isin(label, (0, 1)).all():
            raise ValueError("scores must be finite and labels 0 or 1; leave the other units out first")
        order = np.argsort(-score, kind="stable")
        self.score, self.label = score[order], label[order].astype(np.bool_)
        self.clusters, row = np.unique(np.asarray(cluster, np.uint64), return_inverse=True)
        self.row = row[order].astype(np.int32)
        called = int((self.score >= threshold).sum())
        self.n_called = -1 if np.isnan(threshold) else called

    def measure(self, weight_P=None):
        """Return the METRICS, float64 (5,), under int64 or float64 cluster weights (default 1); NaN with one class."""
        weight_P = np.ones(len(self.clusters), np.int64) if weight_P is None else weight_P
        out = np.empty(len(METRICS))
        _measure(self.score, self.label, self.row, weight_P, self.n_called, out)
        return out

    def replicates(self, first, last, *, seed):
        """Return float64 (last - first, 5): the METRICS of replicates first..last-1 (Poisson bootstrap of clusters)."""
        out_RM = np.empty((last - first, len(METRICS)))
        key = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        _replicates(
            self.score, self.label, self.row, self.clusters, key, first, self.n_called, POISSON_64, out_RM
        )  # fmt: skip
        return out_RM


def auroc(score, label, weight=None):
    """Return the area under the ROC curve, ties counted half, NaN with one class.

    Parameters
    ----------
    score : float array, shape (n,)
    label : array of 0 and 1, shape (n,)
    weight : array of non-negative numbers, shape (n,), optional

    Notes
    -----
    Equal to ``sklearn.metrics.roc_auc_score`` (Mann-Whitney); with integer weights the sum is kept in integers.
    """
    units = np.arange(len(score), dtype=np.uint64)
    if weight is not None:
        weight = np.asarray(weight)
        if weight.shape != units.shape or not (np.isfinite(weight) & (weight >= 0)).all():
            raise ValueError(f"weights must be finite, not negative, of shape ({len(units)},)")
        weight = weight.astype(np.int64 if weight.dtype.kind in "iub" else np.float64)
    return float(Ranking(score, label, units).measure(weight)[0])
