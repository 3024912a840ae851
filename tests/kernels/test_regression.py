import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score

from anyecg.kernels.regression import METRICS, Agreement
from anyecg.kernels.weights import poisson_weights


def estimated(n=300, n_clusters=70, seed=1):
    """Return values with many ties, estimates with some, and clusters."""
    rng = np.random.default_rng(seed)
    value = np.round(rng.normal(4, 0.6, n), 1)
    return value, np.round(0.5 * value + rng.normal(2, 0.4, n), 2), rng.integers(0, n_clusters, n)


def by_libraries(value, score):
    return [mean_absolute_error(value, score), r2_score(value, score), spearmanr(value, score).statistic]


def test_metrics_agree_with_scikit_learn_and_scipy():
    value, score, cluster = estimated()
    assert METRICS == ("mae", "r2", "spearman")
    np.testing.assert_allclose(Agreement(value, score, cluster).measure(), by_libraries(value, score), rtol=1e-12)


def test_integer_weights_are_repeated_units():
    value, score, cluster = estimated()
    agreement = Agreement(value, score, cluster)
    weight_RP = poisson_weights(agreement.clusters, 0, 30, seed=4)
    replicates = agreement.replicates(0, 30, seed=4)
    for weight_P, found in zip(weight_RP, replicates, strict=True):
        times = weight_P[np.searchsorted(agreement.clusters, cluster)]
        wanted = by_libraries(np.repeat(value, times), np.repeat(score, times))
        np.testing.assert_allclose(found, wanted, rtol=1e-11)
        np.testing.assert_array_equal(agreement.measure(weight_P), found)


def test_replicates_do_not_depend_on_how_they_are_shared_out():
    agreement = Agreement(*estimated())
    whole = agreement.replicates(0, 20, seed=2)
    np.testing.assert_array_equal(
        np.concatenate([agreement.replicates(0, 7, seed=2), agreement.replicates(7, 20, seed=2)]), whole
    )


def test_what_has_no_number_is_nan():
    same = np.full(9, 0.1)
    assert np.isnan(Agreement(same[:0], same[:0], same[:0].astype(np.uint64)).measure()).all()
    constant_truth = Agreement(same, np.arange(9.0), np.arange(9)).measure()
    assert constant_truth[0] == pytest.approx(3.9 + 0.2 / 9)
    assert np.isnan(constant_truth[1:]).all()
    constant_estimate = Agreement(np.arange(9.0), same, np.arange(9)).measure()
    assert np.isnan(constant_estimate[2])
    assert constant_estimate[1] == pytest.approx(r2_score(np.arange(9.0), same))


def test_values_that_are_not_finite_or_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Agreement([np.nan], [1.0], [1])
    with pytest.raises(ValueError, match="wanted three times"):
        Agreement([1.0, 2.0], [1.0], [1])
