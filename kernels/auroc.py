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
# Bits of an entry: it is positive; it is the first of several of one score, of which one at least is positive.
_POSITIVE, _GROUP = np.uint8(1), np.uint8(2)


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
def _add(total, weight_PL, p, times):
    for k in range(LANES):
        total[k] += weight_PL[p, k] * times


@kernel
def _flush(part_tp, part_fp, part_area, part_tied, tp, fp, area, tied):
    """Add a stretch of units to the totals."""
    for k in range(LANES):
        area[k] += np.int64(part_fp[k]) * np.int64(tp[k])
    for k in range(LANES):
        area[k] += part_area[k]
        part_area[k] = 0
    for k in range(LANES):
        tied[k] += part_tied[k]
        part_tied[k] = 0
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
def _lanes(kind, row, count, size_G, total_G, weight_PL, with_auprc, out_LM):
    """Fill (LANES, 2) from entries by falling score, every lane with its own weights of their clusters."""
    tp, fp = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    group_tp, group_fp = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    area, tied = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    # Of a stretch: 16 bits, so that a vector holds more lanes.
    part_tp, part_fp = np.zeros(LANES, np.int16), np.zeros(LANES, np.int16)
    part_area, part_tied = np.zeros(LANES, np.int16), np.zeros(LANES, np.int16)
    first_tp, first_fp, weight = np.empty(LANES, np.int16), np.empty(LANES, np.int16), np.empty(LANES, np.int16)
    precision_sum, quotient = np.zeros(LANES), np.empty(LANES)
    i = group = n_part = 0
    while i < len(kind):
        n_entries, n_units = 1, count[i]
        if kind[i] & _GROUP:
            n_entries, n_units = size_G[group], total_G[group]
            group += 1
        if n_part + n_units > _STRETCH:
            _flush(part_tp, part_fp, part_area, part_tied, tp, fp, area, tied)
            n_part = 0
        if n_units > _STRETCH:
            group_tp[:] = 0
            group_fp[:] = 0
            for entry in range(i, i + n_entries):
                _add(group_tp if kind[entry] & _POSITIVE else group_fp, weight_PL, row[entry], count[entry])
            _group(group_tp, group_fp, tp, fp, area, tied)
            if with_auprc:
                _step(group_tp, tp, fp, quotient, precision_sum)
            i += n_entries
            continue
        n_part += n_units
        if n_entries > 1:
            for k in range(LANES):
                first_tp[k] = part_tp[k]
            for k in range(LANES):
                first_fp[k] = part_fp[k]
        # The negatives of a group come first: they are below the positives before it alone.
        for entry in range(i, i + n_entries):
            p, times = row[entry], np.int16(count[entry])
            for k in range(LANES):
                weight[k] = weight_PL[p, k] * times
            if kind[entry] & _POSITIVE:
                for k in range(LANES):
                    part_tp[k] += weight[k]
            else:
                for k in range(LANES):
                    part_area[k] += weight[k] * part_tp[k]
                for k in range(LANES):
                    part_fp[k] += weight[k]
        i += n_entries
        if n_entries > 1:
            for k in range(LANES):
                part_tied[k] += (part_tp[k] - first_tp[k]) * (part_fp[k] - first_fp[k])
        if with_auprc and kind[i - 1] & _POSITIVE:
            for k in range(LANES):
                group_tp[k] = tp[k] + part_tp[k]
            for k in range(LANES):
                group_fp[k] = fp[k] + part_fp[k]
            if n_entries > 1:
                for k in range(LANES):
                    weight[k] = part_tp[k] - first_tp[k]
            _step(weight, group_tp, group_fp, quotient, precision_sum)
    _flush(part_tp, part_fp, part_area, part_tied, tp, fp, area, tied)
    out_LM[:] = np.nan
    for k in range(LANES):
        if tp[k] > 0 and fp[k] > 0:
            out_LM[k, 0] = (2 * area[k] + tied[k]) / (2.0 * tp[k] * fp[k])
            if with_auprc:
                out_LM[k, 1] = precision_sum[k] / tp[k]


def _starts(is_same):
    """Return where runs begin of which each member but the first is the same as the one before, and their lengths."""
    first = np.flatnonzero(np.append(True, ~is_same))
    return first, np.diff(np.append(first, len(is_same) + 1))


def _entries(score, label, row):
    """Return what the kernel walks over: sorted units, those of one score, label and cluster as one entry.

    Windows that several draws share are such units.

    Returns
    -------
    (kind, row, count) of each entry, (size, total) in entries and units of each group of one score with a positive
    """
    if not len(score):
        return np.empty(0, np.uint8), row, row, row, row
    same_score = score[1:] == score[:-1]
    first, count = _starts(same_score & (label[1:] == label[:-1]) & (row[1:] == row[:-1]))
    kind, score = label[first] * _POSITIVE, score[first]
    group, size = _starts(score[1:] == score[:-1])
    total = np.add.reduceat(count, group)
    # The last of a group is positive if any is.
    is_group = (size > 1) & label[first][group + size - 1]
    kind[group[is_group]] |= _GROUP
    return kind, row[first], count, size[is_group], total[is_group]


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
        negatives_first = np.concatenate([np.flatnonzero(~label), np.flatnonzero(label)])
        # -0.0 is 0.0, and sorted as that.
        order = negatives_first[falling_order(score[negatives_first] + score.dtype.type(0))]
        self.score, self.label = score[order], label[order]
        self.row = np.asarray(row)[order].astype(np.int32)
        self._entries = _entries(self.score, self.label, self.row)

    def measure(self):
        """Return the METRICS, float64 (2,), every unit counted once; NaN with one class."""
        out = np.empty(len(METRICS))
        _measure(self.score, self.label, np.ones(len(self.score), np.int64), out)
        return out

    def under(self, weight_PL, *, with_auprc=True):
        """Return float64 (LANES, 2): the METRICS under each lane's int8 weights of the clusters, 0 to 13."""
        out_LM = np.empty((LANES, len(METRICS)))
        _lanes(*self._entries, weight_PL, with_auprc, out_LM)
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
