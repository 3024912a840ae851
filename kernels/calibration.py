"""How well probabilities fit: Brier score, logistic calibration slope and expected calibration error, by clusters."""

import numpy as np
from scipy.optimize import minimize

from anyecg.kernels._jit import kernel
from anyecg.kernels.sums import weighted_sums

METRICS = ("brier", "calibration_slope", "ece")
N_BINS = 10
# Columns of the sums: squared errors; gradient and curvature of the slope's likelihood; error by bin; number of units.
_SQUARE, _GRADIENT, _CURVATURE, _BIN = 0, 1, 3, 6
_COUNT = _BIN + N_BINS


@kernel
def _likelihood(logit, label, intercept, slope, out):
    """Fill -log likelihood, its gradient (2) and its curvature (3) for label ~ intercept + slope x logit."""
    out[:] = 0
    for i in range(len(logit)):
        x = np.float64(logit[i])
        z = intercept + slope * x
        tail = np.exp(-abs(z))
        probability = (1 if z >= 0 else tail) / (1 + tail)
        left = probability - label[i]
        spread = probability * (1 - probability)
        out[0] += np.log1p(tail) + max(z, 0.0) - label[i] * z
        out[1] += left
        out[2] += left * x
        out[3] += spread
        out[4] += spread * x
        out[5] += spread * x * x


@kernel
def _columns(logit, label, row, bin_of, intercept, slope, out_PK):
    for i in range(len(logit)):
        x, p = np.float64(logit[i]), row[i]
        error = 1 / (1 + np.exp(-x)) - label[i]
        probability = 1 / (1 + np.exp(-(intercept + slope * x)))
        left = label[i] - probability
        spread = probability * (1 - probability)
        out_PK[p, _SQUARE] += error * error
        out_PK[p, _GRADIENT] += left
        out_PK[p, _GRADIENT + 1] += left * x
        out_PK[p, _CURVATURE] += spread
        out_PK[p, _CURVATURE + 1] += spread * x
        out_PK[p, _CURVATURE + 2] += spread * x * x
        out_PK[p, _BIN + bin_of[i]] += error
        out_PK[p, _COUNT] += 1


def fit_logistic(logit, label):
    """Return (intercept, slope) of the logistic regression of label on logit.

    Parameters
    ----------
    logit : float array, shape (n,)
    label : bool array, shape (n,)

    Returns
    -------
    tuple of float
        NaN where there is none: one class, or classes that the logit separates.
    """
    positive, negative = logit[label], logit[~label]
    none = float("nan"), float("nan")
    if not len(positive) or not len(negative):
        return none
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return none
    n, room = len(logit), np.empty(6)
    at: list[tuple] = [()]

    def look(theta):
        if at[0] != tuple(theta):
            _likelihood(logit, label, *theta, room)
            at[0] = tuple(theta)
        return room / n

    def curvature(theta):
        _, _, _, zero, one, two = look(theta)
        return np.array([[zero, one], [one, two]])

    prevalence = len(positive) / n
    start = np.array([np.log(prevalence / (1 - prevalence)), 0.0])
    found = minimize(
        lambda theta: look(theta)[0], start, jac=lambda theta: look(theta)[1:3].copy(), hess=curvature,
        method="trust-exact", options={"gtol": 1e-9},
    )  # fmt: skip
    return float(found.x[0]), float(found.x[1])


def equal_bins(ends):
    """Return which of ten bins of equal counts each of n sorted units is in; equal scores share the first one's.

    Parameters
    ----------
    ends : bool array, shape (n,)
        Where a group of equal scores ends.
    """
    n = len(ends)
    first = np.append(0, np.flatnonzero(ends[:-1]) + 1) if n else np.empty(0, np.int64)
    of_group = first * N_BINS // max(n, 1)
    return np.repeat(of_group, np.diff(np.append(first, n)))


class Calibration:
    """Logits of one target beside its labels, to be measured under any weights of their clusters.

    Parameters
    ----------
    logit : float array, shape (n,)
        Sorted, either way.
    label : bool array, shape (n,)
    row : int array, shape (n,)
        Cluster of each unit, as a row of the weights.
    n_clusters : int

    Attributes
    ----------
    bin_of : int array, shape (n,)
        Ten bins of equal counts by score; they stay as they are in every replicate.

    Notes
    -----
    Brier score; slope of the logistic regression of label on logit (Cox 1958), 1 where probabilities are neither too
    sure nor too unsure; expected calibration error, the mean over units of |mean probability - share of positives| of
    their bin. The slope of a replicate is one Newton step from that of the data (approximate bootstrap of Davidson and
    MacKinnon 1999), so that a replicate costs a sum over clusters.
    """

    def __init__(self, logit, label, row, n_clusters):
        self.bin_of = equal_bins(np.append(logit[1:] != logit[:-1], True)[: len(logit)])
        self.intercept, self.slope = fit_logistic(logit, label)
        self._sum_PK = np.zeros((n_clusters, _COUNT + 1))
        theta = (self.intercept, self.slope) if np.isfinite(self.slope) else (0.0, 0.0)
        _columns(logit, label, row, self.bin_of, *theta, self._sum_PK)

    def measure(self):
        """Return the METRICS, float64 (3,), every unit counted once."""
        value_M = self._of_sums(self._sum_PK.sum(0)[:, None])[0]
        value_M[1] = self.slope
        return value_M

    def under(self, weight_PL):
        """Return float64 (LANES, 3): the METRICS under each lane's int8 weights of the clusters."""
        return self._of_sums(weighted_sums(self._sum_PK, weight_PL))

    def _of_sums(self, sum_KL):
        with np.errstate(divide="ignore", invalid="ignore"):
            brier, ece = sum_KL[_SQUARE] / sum_KL[_COUNT], abs(sum_KL[_BIN:_COUNT]).sum(0) / sum_KL[_COUNT]
            zero, one, two = sum_KL[_CURVATURE:_BIN]
            first, second = sum_KL[_GRADIENT:_CURVATURE]
            step = (zero * second - one * first) / (zero * two - one * one)
        return np.stack([brier, self.slope + step, ece], axis=1)
