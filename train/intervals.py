"""Confidence intervals from bootstrap replicates: each metric on a scale that keeps its interval within its range."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t


class Scale(NamedTuple):
    """A scale for a metric: the open range it is for, the map to it, the slope of that, and the way back."""

    low: float
    high: float
    forth: Callable
    slope: Callable
    back: Callable


SCALES = {
    # AUROC, F1 and other shares
    "logit": Scale(0, 1, logit, lambda value: 1 / (value * (1 - value)), expit),
    # absolute errors
    "log": Scale(0, np.inf, np.log, lambda value: 1 / value, np.exp),
    # R2: 1 - R2 is a ratio of sums of squares
    "log-rest": Scale(
        -np.inf, 1, lambda value: -np.log(1 - value), lambda value: 1 / (1 - value), lambda x: 1 - np.exp(-x)
    ),
    # correlations (Fisher)
    "atanh": Scale(-1, 1, np.arctanh, lambda value: 1 / (1 - value**2), np.tanh),
    # differences
    "plain": Scale(-np.inf, np.inf, lambda value: value, lambda value: 1.0, lambda x: x),
}


def interval_of(value, replicates, *, df, level, interval, scale="logit"):
    """Return (low, high) of a metric.

    Parameters
    ----------
    value : float
    replicates : float array
        NaN where a replicate has none.
    df : float
        Degrees of freedom; for two classes the smaller number of positive and negative clusters, minus one.
    level : float
    interval : {"logit-t", "percentile"}
    scale : str
        One of ``SCALES``.

    Notes
    -----
    "logit-t": on the metric's scale f, f(value) +- t * SD(replicates) * f'(value), the delta method; for AUROC and
    other shares f is the logit. None for a value at the end of its range, with less than one degree of freedom, or
    where no replicate differs from another (a difference of 0 in all of them is one, though).
    "percentile": quantiles of the replicates.
    """
    valid = replicates[~np.isnan(replicates)]
    if np.isnan(value) or len(valid) < 2:
        return float("nan"), float("nan")
    if interval == "percentile":
        low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
    on = SCALES[scale]
    if not on.low < value < on.high or df < 1:
        return float("nan"), float("nan")
    spread = valid.std(ddof=1)
    if spread == 0 and scale != "plain":
        return float("nan"), float("nan")
    half = t.ppf((1 + level) / 2, df) * spread * on.slope(value)
    return float(on.back(on.forth(value) - half)), float(on.back(on.forth(value) + half))


def mean_of(values, replicates_RC, df_C, *, within=False):
    """Return the mean of several metrics: (value, replicates (R,), degrees of freedom).

    Parts without a value do not count. Where a part has none in a replicate, the mean of the other parts' deviations
    from their values stands for it, so that the mean does not jump as rare targets come and go. The degrees of freedom
    are Welch's and Satterthwaite's for a sum of the parts; ``within`` makes them 0, so that there is no interval, where
    a part is 0 or 1: its replicates hardly move then, and say nothing of its error.
    """
    if len(values) == 1:
        return float(values[0]), replicates_RC[:, 0], df_C[0]
    counted = np.flatnonzero(~np.isnan(values))
    if not len(counted):
        return float("nan"), np.full(len(replicates_RC), np.nan), 0.0
    values, replicates_RC = np.asarray(values)[counted], replicates_RC[:, counted]
    df_C = np.maximum(np.asarray(df_C, float)[counted], 1)
    at_end = within and bool(np.isin(values, (0, 1)).any())
    seen_RC = ~np.isnan(replicates_RC)
    n_R = seen_RC.sum(1)
    deviation_R = np.where(seen_RC, replicates_RC - values, 0).sum(1) / np.maximum(n_R, 1)
    mean_R = np.where(n_R > 0, values.mean() + deviation_R, np.nan)
    variance_C = np.array([part[~np.isnan(part)].var(ddof=1) if seen.sum() > 1 else 0.0 for part, seen in
                           zip(replicates_RC.T, seen_RC.T, strict=True)])  # fmt: skip
    least = (variance_C**2 / df_C).sum()
    df = float(variance_C.sum() ** 2 / least) if least else float(df_C.min())
    return float(values.mean()), mean_R, 0.0 if at_end else df


@dataclass(frozen=True)
class Bootstrap:
    """How replicates are made, and intervals from them.

    Attributes
    ----------
    comm : MPI communicator or None
        Its ranks share the replicates; all get all of them.
    """

    n_replicates: int
    seed: int
    level: float
    interval: str
    comm: Any = None

    def replicates(self, measure):
        """Return ``measure(first, last, seed=...)`` for all replicates, each worked out by one rank."""
        if self.comm is None:
            return measure(0, self.n_replicates, seed=self.seed)
        n, rank, size = self.n_replicates, self.comm.rank, self.comm.size
        mine = measure(rank * n // size, (rank + 1) * n // size, seed=self.seed)
        return np.concatenate(self.comm.allgather(mine))

    def columns(self, name, value, replicates, *, df, scale="logit"):
        """Return a metric and its interval as the columns NAME, NAME_low and NAME_high."""
        low, high = interval_of(value, replicates, df=df, level=self.level, interval=self.interval, scale=scale)
        return {name: float(value), f"{name}_low": low, f"{name}_high": high}
