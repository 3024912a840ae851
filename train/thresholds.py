"""Thresholds of a score, chosen on validation units; a unit at or above the threshold is called positive."""

import numpy as np

from anyecg.kernels.sort import falling_order

RULES = ("youden", "sensitivity", "f1")


def threshold_of(score, label, rule, sensitivity=0.9):
    """Return the threshold that a rule chooses among the scores themselves; of equally good ones the highest.

    Parameters
    ----------
    score : float array, shape (n,)
        Finite.
    label : array, shape (n,)
        0 or 1.
    rule : {"youden", "sensitivity", "f1"}
        The largest sensitivity + specificity; the highest threshold with at least ``sensitivity``; the largest F1.
    sensitivity : float
        Above 0, at most 1.

    Returns
    -------
    float
        NaN with one class.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r}; wanted one of {RULES}")
    if rule == "youden":
        return youden(score, label)
    return best_f1(score, label) if rule == "f1" else at_sensitivity(score, label, sensitivity)


def youden(score, label):
    """Return the score at which sensitivity + specificity is largest, the highest of equals; NaN with one class."""
    score, tp, fp = _called(score, label)
    # Whole numbers: equals are equal.
    return float(score[np.argmax(tp * fp[-1] - fp * tp[-1])]) if len(score) else float("nan")


def at_sensitivity(score, label, sensitivity):
    """Return the highest score at which the sensitivity is at least ``sensitivity``; NaN with one class."""
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity {sensitivity}; wanted above 0, at most 1")
    score, tp, _ = _called(score, label)
    return float(score[np.argmax(tp / tp[-1] >= sensitivity)]) if len(score) else float("nan")


def best_f1(score, label):
    """Return the score at which F1 is largest, the highest of equals; NaN with one class."""
    score, tp, fp = _called(score, label)
    return float(score[np.argmax(2 * tp / (tp + fp + tp[-1]))]) if len(score) else float("nan")


def _called(score, label):
    """Return each score once, falling, and how many positive and negative units are called there; none with one class.

    Returns
    -------
    (float array, int64 array, int64 array)
    """
    score, label = np.asarray(score), np.asarray(label)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"shapes {score.shape} and {label.shape}; wanted twice (n,)")
    if not np.isfinite(score).all() or not ((label == 0) | (label == 1)).all():
        raise ValueError("scores must be finite and labels 0 or 1; leave the other units out first")
    order = falling_order(score)
    score, positive = score[order], label[order] == 1
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if score.size else np.empty(0, np.int64)
    tp = np.cumsum(positive)[last]
    fp = last + 1 - tp
    if not score.size or tp[-1] == 0 or fp[-1] == 0:
        last = last[:0]
    return score[last], tp[: len(last)], fp[: len(last)]
