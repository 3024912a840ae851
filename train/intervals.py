"""Confidence intervals from bootstrap replicates: each metric on a scale that keeps its interval within its range."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Not scipy.stats, which takes a second to import.
from scipy.special import expit, logit, ndtr, stdtrit


class Scale(NamedTuple):
    """A scale for a metric: the open range it is for, the map to it, the slope of that, and the way back."""

    low: float
    high: float
    forth: Callable
    slope: Callable
    back: Callable


# Share of the replicates that must have a value.
LEAST_VALID = 0.5

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
    "percentile": quantiles of the replicates. None at all where fewer than half of the replicates have a value.
    """
    if no_interval(value, replicates, df=df, interval=interval, scale=scale):
        return float("nan"), float("nan")
    valid = replicates[~np.isnan(replicates)]
    if interval == "percentile":
        low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
    on = SCALES[scale]
    half = stdtrit(df, (1 + level) / 2) * valid.std(ddof=1) * on.slope(value)
    return float(on.back(on.forth(value) - half)), float(on.back(on.forth(value) + half))


def no_interval(value, replicates, *, df, interval, scale="logit"):
    """Say why a metric has no interval; empty where it has one. Parameters as for ``interval_of``."""
    valid = replicates[~np.isnan(replicates)]
    if np.isnan(value):
        return "no value"
    if len(valid) < max(2, LEAST_VALID * len(replicates)):
        return f"only {len(valid)} of {len(replicates)} replicates have a value"
    if interval == "percentile":
        return ""
    on = SCALES[scale]
    if not on.low < value < on.high:
        return f"the value {value:g} is the end of its range"
    if df < 1:
        return "fewer than two clusters of a class"
    if valid.std(ddof=1) == 0 and scale != "plain":
        return "no replicate differs from another"
    return ""


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


def holm(p):
    """Return p-values adjusted for their number by Holm's step-down rule; NaN stays and does not count."""
    p = np.asarray(p, float)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: int((~np.isnan(p)).sum())]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


@dataclass(frozen=True)
class Intervals:
    """How intervals are made from replicates."""

    level: float
    interval: str

    def columns(self, name, value, replicates, *, df, scale="logit"):
        """Return a metric and its interval as the columns NAME, NAME_low and NAME_high."""
        low, high = interval_of(value, replicates, df=df, level=self.level, interval=self.interval, scale=scale)
        return {name: float(value), f"{name}_low": low, f"{name}_high": high}

    def difference(self, value, replicates, *, df):
        """Return a paired difference with its interval, z = itself / the SD of its replicates, and the p-value of z."""
        columns = self.columns("difference", value, replicates, df=df, scale="plain")
        valid = replicates[~np.isnan(replicates)]
        spread = valid.std(ddof=1) if len(valid) > 1 else float("nan")
        z = 0.0 if value == 0 else value / spread if spread > 0 and df >= 1 else float("nan")
        return {**columns, "z": float(z), "p": 1.0 if value == 0 else float(2 * ndtr(-abs(z)))}
