import numpy as np
import pytest
from scipy.stats import t

from anyecg.train.intervals import SCALES, Intervals, interval_of, mean_of, no_interval


@pytest.mark.parametrize(
    ("scale", "values"), [("logit", (0.01, 0.7)), ("log", (0.3, 8)), ("log-rest", (-3, 0.9)), ("atanh", (-0.6, 0.9)),
                          ("plain", (-1, 2))],
)  # fmt: skip
def test_slopes_and_ways_back_are_those_of_the_scales(scale, values):
    on = SCALES[scale]
    for value in values:
        assert on.back(on.forth(value)) == pytest.approx(value)
        assert on.slope(value) == pytest.approx((on.forth(value + 1e-6) - on.forth(value - 1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(("scale", "value"), [("log", 0.2), ("log-rest", 0.9), ("log-rest", -0.5), ("atanh", 0.95)])
def test_intervals_keep_within_the_range_of_their_metric(scale, value):
    replicates = value + np.random.default_rng(1).normal(0, 0.3, 400)
    low, high = interval_of(value, replicates, df=5, level=0.95, interval="logit-t", scale=scale)
    assert SCALES[scale].low < low < value < high < SCALES[scale].high


def test_the_plain_interval_is_that_of_students_t():
    replicates = np.random.default_rng(2).normal(0, 0.3, 400)
    half = t.ppf(0.95, 7) * replicates.std(ddof=1)
    found = interval_of(-0.1, replicates, df=7, level=0.9, interval="logit-t", scale="plain")
    assert found == pytest.approx((-0.1 - half, -0.1 + half))


def test_a_mean_is_that_of_its_parts_and_leaves_out_what_has_no_value():
    rng = np.random.default_rng(3)
    replicates_RC = rng.normal([0.5, 0.7, 0.9], [0.01, 0.02, 0.03], (1000, 3))
    value, replicates, df = mean_of([0.5, 0.7, 0.9], replicates_RC, [10, 20, 30])
    assert value == pytest.approx(0.7)
    np.testing.assert_allclose(replicates, replicates_RC.mean(1))
    variance = replicates_RC.var(0, ddof=1)
    assert df == pytest.approx(variance.sum() ** 2 / (variance**2 / [10, 20, 30]).sum())
    assert 20 < df < 60
    replicates_RC[:, 1] = np.nan
    value, replicates, _ = mean_of([0.5, np.nan, 0.9], replicates_RC, [10, 20, 30])
    assert value == pytest.approx(0.7)
    np.testing.assert_allclose(replicates, replicates_RC[:, [0, 2]].mean(1))


def test_a_mean_does_not_jump_where_a_rare_part_is_missing():
    replicates_RC = np.tile([0.5, 0.9], (100, 1))
    replicates_RC[::3, 1] = np.nan
    value, replicates, _ = mean_of([0.5, 0.9], replicates_RC, [5, 1])
    np.testing.assert_allclose(replicates, value)
    replicates_RC[4] = np.nan
    assert np.isnan(mean_of([0.5, 0.9], replicates_RC, [5, 1])[1][4])


def test_the_mean_of_one_part_is_that_part_and_of_none_has_no_value():
    part = np.array([[0.1], [np.nan]])
    value, replicates, df = mean_of([0.3], part, [0])
    assert (value, df) == (0.3, 0)
    np.testing.assert_array_equal(replicates, part[:, 0])
    value, replicates, _ = mean_of([np.nan, np.nan], np.zeros((4, 2)), [3, 3])
    assert np.isnan([value, *replicates]).all()


def test_a_mean_of_parts_without_spread_has_degrees_of_freedom():
    assert mean_of([0.0, 0.0], np.zeros((4, 2)), [3, 5])[2] == 3


def test_there_is_no_interval_where_replicates_say_nothing_of_the_error():
    assert np.isnan(interval_of(0.3, np.full(9, 0.3), df=4, level=0.95, interval="logit-t")).all()
    assert interval_of(0.0, np.zeros(9), df=4, level=0.95, interval="logit-t", scale="plain") == (0, 0)
    replicates_RC = np.random.default_rng(4).normal([1.0, 0.5], [0, 0.1], (50, 2))
    assert mean_of([1.0, 0.5], replicates_RC, [5, 5], within=True)[2] == 0
    assert mean_of([1.0, 0.5], replicates_RC, [5, 5])[2] == pytest.approx(5)


@pytest.mark.parametrize(
    ("value", "replicates", "options", "reason"),
    [
        (np.nan, [0.1, 0.2], {}, "no value"),
        (0.5, [0.4, np.nan, np.nan, np.nan, 0.6], {}, "only 2 of 5 replicates have a value"),
        (1.0, [0.9, 1.0], {}, "the value 1 is the end of its range"),
        (0.5, [0.4, 0.6], {"df": 0}, "fewer than two clusters of a class"),
        (0.5, [0.5, 0.5], {}, "no replicate differs from another"),
        (1.0, [0.9, 1.0], {"interval": "percentile"}, ""),
        (0.5, [0.4, 0.6], {}, ""),
    ],
)
def test_every_missing_interval_has_its_reason(value, replicates, options, reason):
    options = {"df": 5, "interval": "logit-t", **options}
    assert no_interval(value, np.array(replicates), **options) == reason
    found = interval_of(value, np.array(replicates), level=0.95, **options)
    assert np.isnan(found).all() == bool(reason)


def test_columns_carry_the_name_of_their_metric():
    found = Intervals(0.95, "percentile").columns("f1", 0.5, np.linspace(0, 1, 101), df=3)
    assert found == pytest.approx({"f1": 0.5, "f1_low": 0.025, "f1_high": 0.975})
