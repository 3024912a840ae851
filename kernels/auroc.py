"""Areas under ROC and precision-recall curves with integer weights and exact ties, once and over replicates."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.sort import falling_order
from anyecg.kernels.weights import LANES

METRICS = ("auroc", "auprc")
# So that no sum of weights (at most 13 each) leaves 32 bits.
MOST_UNITS = (1 << 31) // 16
# Units of a stretch: with weights of 13 at most, half of them positive, 12 x 13 x 12 x 13 fits 16 bits.
_STRETCH = 24
# Bits of a unit: it is positive; the next one has the same score.
_POSITIVE, _TIED = np.uint8(1), np.uint8(2)


@kernel
def _measure(score, label, weight, out):
    """Fill out[2] from units sorted by falling score, each with its own weight; the slow twin of ``_lanes``.

    With integer weights the AUROC sum is an integer; a group of equal scores counts half of its own pairs.
    """
    n = len(score)
    out[:] = np.nan
    if n == 0:
        return
    zero = weight[0] * 0  # integer or float, as the weights are
    tp = fp = twice_area = zero
    precision_sum = 0.0
    i = 0
    while i < n:
        group_tp = group_fp = zero
        j = i
        while j < n and score[j] == score[i]:
            if label[j]:
                group_tp += weight[j]
            else:
                group_fp += weight[j]
            j += 1
        twice_area += group_fp * (2 * tp + group_tp)
        tp += group_tp
        fp += group_fp
        if group_tp > 0:
            precision_sum += group_tp * (tp / (tp + fp))
        i = j
    if tp > 0 and fp > 0:
        out[0] = twice_area / (2.0 * tp * fp)
        out[1] = precision_sum / tp


@kernel
def _add(total, weight_PL, p):
    for k in range(LANES):
        total[k] += weight_PL[p, k]


@kernel
def _flush(part_tp, part_fp, part_area, tp, fp, area):
    """Add a stretch of units to the totals."""
    for k in range(LANES):
        area[k] += np.int64(part_fp[k]) * np.int64(tp[k])
    for k in range(LANES):
        area[k] += part_area[k]
        part_area[k] = 0
    for k in range(LANES):
        tp[k] += part_tp[k]
        part_tp[k] = 0
    for k in range(LANES):
        fp[k] += part_fp[k]
        part_fp[k] = 0


@kernel
def _group(group_tp, group_fp, tp, fp, area, tied):
    """Count units of one score, of which a negative beats half of the positives."""
    for k in range(LANES):
        area[k] += np.int64(group_fp[k]) * np.int64(tp[k])
    for k in range(LANES):
        tied[k] += np.int64(group_fp[k]) * np.int64(group_tp[k])
    for k in range(LANES):
        tp[k] += group_tp[k]
    for k in range(LANES):
        fp[k] += group_fp[k]


@kernel
def _step(weight, positive, negative, quotient, precision_sum):
    """Add weight x precision; in loops of their own, so that LLVM turns each into vectors."""
    for k in range(LANES):
        quotient[k] = np.float64(positive[k] + negative[k]) + 1e-300  # 0 / 0 is 0 here
    for k in range(LANES):
        quotient[k] = np.float64(weight[k]) * np.float64(positive[k]) / quotient[k]
    for k in range(LANES):
        precision_sum[k] += quotient[k]


@kernel
def _lanes(kind, row, weight_PL, with_auprc, out_LM):
    """Fill (LANES, 2) from units sorted by falling score, every lane with its own weights of their clusters."""
    tp, fp = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    group_tp, group_fp = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    area, tied = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    # Of a stretch: 16 bits, so that a vector holds more lanes.
    part_tp, part_fp = np.zeros(LANES, np.int16), np.zeros(LANES, np.int16)
    part_area = np.zeros(LANES, np.int16)
    precision_sum, quotient = np.zeros(LANES), np.empty(LANES)
    n_part = 0
    i = 0
    while i < len(kind):
        if n_part == _STRETCH or kind[i] & _TIED:
            _flush(part_tp, part_fp, part_area, tp, fp, area)
            n_part = 0
        p = row[i]
        if kind[i] & _TIED:
            group_tp[:] = 0
            group_fp[:] = 0
            while kind[i] & _TIED:
                _add(group_tp if kind[i] & _POSITIVE else group_fp, weight_PL, row[i])
                i += 1
            _add(group_tp if kind[i] & _POSITIVE else group_fp, weight_PL, row[i])
            _group(group_tp, group_fp, tp, fp, area, tied)
            if with_auprc:
                _step(group_tp, tp, fp, quotient, precision_sum)
        elif kind[i]:
            for k in range(LANES):
                part_tp[k] += weight_PL[p, k]
            if with_auprc:
                for k in range(LANES):
                    group_tp[k] = tp[k] + part_tp[k]
                for k in range(LANES):
                    group_fp[k] = fp[k] + part_fp[k]
                _step(weight_PL[p], group_tp, group_fp, quotient, precision_sum)
            n_part += 1
        else:
            for k in range(LANES):
                part_area[k] += weight_PL[p, k] * part_tp[k]
            for k in range(LANES):
                part_fp[k] += weight_PL[p, k]
            n_part += 1
        i += 1
    _flush(part_tp, part_fp, part_area, tp, fp, area)
    out_LM[:] = np.nan
    for k in range(LANES):
        if tp[k] > 0 and fp[k] > 0:
            out_LM[k, 0] = (2 * area[k] + tied[k]) / (2.0 * tp[k] * fp[k])
            if with_auprc:
                out_LM[k, 1] = precision_sum[k] / tp[k]


class Ranking:
    """Units of one target sorted once by score, to be measured under any weights of their clusters.

    Parameters
    ----------
    score : float array, shape (n,)
        Finite; higher means more likely positive. float32 is sorted fastest.
    label : array, shape (n,)
        0 or 1.
    row : int array, shape (n,)
        Cluster (patient) of each unit, as a row of the weights.

    Attributes
    ----------
    score, label, row : arrays of the units by falling score
    """

    def __init__(self, score, label, row):
        score, label = _checked(score, label, row)
        order = falling_order(score)
        self.score, self.label = score[order], label[order]
        self._kind = self.label * _POSITIVE
        self._kind[:-1] |= (self.score[1:] == self.score[:-1]) * _TIED
        self.row = np.asarray(row)[order].astype(np.int32)

    def measure(self):
        """Return the METRICS, float64 (2,), every unit counted once; NaN with one class."""
        out = np.empty(len(METRICS))
        _measure(self.score, self.label, np.ones(len(self.score), np.int64), out)
        return out

    def under(self, weight_PL, *, with_auprc=True):
        """Return float64 (LANES, 2): the METRICS under each lane's int8 weights of the clusters, 0 to 13."""
        out_LM = np.empty((LANES, len(METRICS)))
        _lanes(self._kind, self.row, weight_PL, with_auprc, out_LM)
        return out_LM


def _checked(score, label, row):
    """Return scores as floats and labels as bool, refused where they do not fit together."""
    score, label = np.asarray(score), np.asarray(label)
    if score.dtype != np.float32:
        score = score.astype(np.float64)
    if score.ndim != 1 or score.shape != label.shape or score.shape != np.shape(row):
        raise ValueError(f"shapes {score.shape}, {label.shape}, {np.shape(row)}; wanted three times (n,)")
    if not np.isfinite(score).all() or not ((label == 0) | (label == 1)).all():
        raise ValueError("scores must be finite and labels 0 or 1; leave the other units out first")
    if len(score) > MOST_UNITS:
        raise ValueError(f"{len(score)} units; at most {MOST_UNITS} can be counted without overflow")
    return score, label.astype(np.bool_)


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
    weight = np.ones(len(score), np.int64) if weight is None else np.asarray(weight)
    if weight.shape != (len(score),) or not (np.isfinite(weight) & (weight >= 0)).all():
        raise ValueError(f"weights must be finite, not negative, of shape ({len(score)},)")
    weight = weight.astype(np.int64 if weight.dtype.kind in "iub" else np.float64)
    score, label = _checked(score, label, weight)
    order = falling_order(score)
    out = np.empty(len(METRICS))
    _measure(score[order], label[order], weight[order], out)
    return float(out[0])
