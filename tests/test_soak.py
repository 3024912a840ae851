"""The statistics of the soak benchmark."""

import numpy as np
import pytest
from scipy.stats import linregress
from scipy.stats import t as student

from benchmarks.soak import Row, growth, newey_west_lags, slope, verdict


def wandering(rng, n, memory):
    """Return values of which each remembers the one before."""
    values = rng.standard_normal(n)
    for i in range(1, n):
        values[i] += memory * values[i - 1]
    return values


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_slope_and_interval_are_those_of_linregress(level):
    rng = np.random.default_rng(0)
    x = np.arange(55.0)
    y = 0.3 * x + rng.standard_normal(55)
    wanted = linregress(x, y)
    half = student.ppf((1 + level) / 2, 53) * wanted.stderr
    np.testing.assert_allclose(
        slope(x, y, level=level), (wanted.slope, wanted.slope - half, wanted.slope + half), rtol=1e-12
    )


def test_newey_west_is_the_sum_over_neighbours_written_out():
    rng = np.random.default_rng(1)
    x, y, lags = np.arange(30.0), wandering(rng, 30, 0.5), 3
    fit = linregress(x, y)
    residual = y - fit.intercept - fit.slope * x
    design = np.stack([np.ones(30), x], axis=1)
    middle = sum(
        max(0, 1 - abs(i - j) / (lags + 1)) * residual[i] * residual[j] * np.outer(design[i], design[j])
        for i in range(30)
        for j in range(30)
    )
    outer = np.linalg.inv(design.T @ design)
    error = np.sqrt((outer @ middle @ outer)[1, 1] * 30 / 28)
    found = slope(x, y, lags=lags)
    assert found.high - found.value == pytest.approx(student.ppf(0.975, 28) * error, rel=1e-9)


def test_the_interval_covers_zero_more_often_when_it_knows_of_neighbours():
    rng = np.random.default_rng(2)
    x, covered = np.arange(55.0), {0: 0, newey_west_lags(55): 0}
    for _ in range(400):
        y = wandering(rng, 55, 0.6)
        for lags in covered:
            found = slope(x, y, lags=lags)
            covered[lags] += found.low <= 0 <= found.high
    plain, allowed = covered.values()
    assert plain < allowed < 400


def rows(ratios, memory, files=9):
    return [Row(i, 0, 0, ratio, mb, files, 4) for i, (ratio, mb) in enumerate(zip(ratios, memory, strict=True))]


def test_a_steady_run_passes_and_a_slowing_a_growing_or_a_leaking_one_does_not():
    ratios, flat = 0.3 + 0.01 * np.random.default_rng(3).standard_normal(55), np.full(55, 800.0)
    assert verdict(rows(ratios, flat))[1]
    assert not verdict(rows(ratios - 0.001 * np.arange(55), flat))[1]
    assert not verdict(rows(ratios, flat + 0.4 * np.arange(55)))[1]
    assert not verdict([row._replace(files=9 + row.minute // 20) for row in rows(ratios, flat)])[1]


def test_growth_compares_the_last_fifth_with_the_first():
    assert growth([100, 100, 100, 100, 101]) == pytest.approx(0.01)
    assert growth([5.0]) == 0
