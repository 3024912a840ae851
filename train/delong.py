"""Standard errors of an AUROC without replicates: DeLong's, and Obuchowski's for clusters; a check on the bootstrap."""

import numpy as np

from anyecg.kernels.sort import falling_order


def delong_se(score, label):
    """Return the standard error of the AUROC of independent units.

    Parameters
    ----------
    score : float array, shape (n,)
        Finite. Scores that fall already are not sorted again.
    label : array, shape (n,)
        0 or 1.

    Returns
    -------
    float
        NaN with fewer than two units of a class.

    Notes
    -----
    DeLong, DeLong and Clarke-Pearson (1988), by the counts of one sort as in Sun and Xu (2014); ties count half.
    """
    score, label = _checked(score, label)
    positive, twice_beaten = _placements(*_falling(score, label == 1))
    parts = twice_beaten[positive], twice_beaten[~positive]
    n_positive, n_negative = map(len, parts)
    if min(n_positive, n_negative) < 2:
        return float("nan")
    of_positive, of_negative = (part.var(ddof=1) / len(part) for part in parts)
    return float(np.sqrt(of_positive / (2 * n_negative) ** 2 + of_negative / (2 * n_positive) ** 2))


def clustered_se(score, label, cluster):
    """Return the standard error of the AUROC of units that come in independent clusters.

    Parameters
    ----------
    score : float array, shape (n,)
        Finite. Scores that fall already are not sorted again.
    label : array, shape (n,)
        0 or 1; a cluster may hold both.
    cluster : int array, shape (n,)
        Row of each unit's cluster, 0 .. clusters - 1.

    Returns
    -------
    float
        NaN with fewer than two clusters of a class. Where every unit is its own cluster, that of ``delong_se``.

    Notes
    -----
    Obuchowski (1997). Placements are summed as whole numbers, so the order of the units does not matter.
    """
    score, label = _checked(score, label)
    cluster = np.asarray(cluster)
    if cluster.shape != score.shape or cluster.dtype.kind not in "iu" or (cluster.size and cluster.min() < 0):
        raise ValueError(f"clusters {cluster.dtype} {cluster.shape}; wanted rows from 0 on, of shape {score.shape}")
    positive, twice_beaten, cluster = _placements(*_falling(score, label == 1, cluster))
    n_rows = 2 * (int(cluster.max(initial=-1)) + 1)
    # Two rows a cluster: its negative and its positive units.
    row = 2 * cluster.astype(np.int64) + positive
    n_negative_P, n_positive_P = np.bincount(row, minlength=n_rows).reshape(-1, 2).T
    negative_P, positive_P = np.bincount(row, twice_beaten, n_rows).reshape(-1, 2).T
    if min(np.count_nonzero(n_positive_P), np.count_nonzero(n_negative_P)) < 2:
        return float("nan")
    n_positive, n_negative = int(n_positive_P.sum()), int(n_negative_P.sum())
    area = positive_P.sum() / (2.0 * n_positive * n_negative)
    # What each cluster's units of a class add to the deviation from the area.
    positive_P = (positive_P / (2 * n_negative) - n_positive_P * area) / n_positive
    negative_P = (negative_P / (2 * n_positive) - n_negative_P * area) / n_negative
    variance = (
        _few(n_positive_P) * (positive_P**2).sum()
        + _few(n_negative_P) * (negative_P**2).sum()
        + 2 * _few(n_positive_P + n_negative_P) * (positive_P * negative_P).sum()
    )
    return float(np.sqrt(max(variance, 0.0)))


def _checked(score, label):
    score, label = np.asarray(score), np.asarray(label)
    if score.ndim != 1 or score.shape != label.shape:
        raise ValueError(f"shapes {score.shape} and {label.shape}; wanted twice (n,)")
    if not np.isfinite(score).all() or not ((label == 0) | (label == 1)).all():
        raise ValueError("scores must be finite and labels 0 or 1; leave the other units out first")
    return score, label


def _falling(score, *others):
    """Return the units by falling score."""
    if (score[1:] <= score[:-1]).all():
        return score, *others
    order = falling_order(score)
    return score[order], *(other[order] for other in others)


def _placements(score, positive, *others):
    """Return ``positive``, and twice the units of the other class that each unit is on the right side of; ties half.

    The sum over either class is twice the Mann-Whitney statistic.
    """
    first = np.flatnonzero(np.append(True, score[1:] != score[:-1])) if score.size else np.empty(0, int)
    n_tied = np.diff(np.append(first, len(score)))
    n_above = np.append(0, np.cumsum(positive))  # positive units, before each unit and in all
    positive_above, positive_tied = n_above[first], n_above[first + n_tied] - n_above[first]
    negative_below = len(score) - n_above[-1] - (first + n_tied - n_above[first + n_tied])
    of_positive = np.repeat(2.0 * negative_below + n_tied - positive_tied, n_tied)
    of_negative = np.repeat(2.0 * positive_above + positive_tied, n_tied)
    return positive, np.where(positive, of_positive, of_negative), *others


def _few(n_P):
    """Return k / (k - 1) for the k clusters that have units."""
    n_clusters = np.count_nonzero(n_P)
    return n_clusters / (n_clusters - 1)
