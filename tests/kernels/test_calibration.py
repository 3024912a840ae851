import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, recall_score

from anyecg.kernels.calibration import N_BINS, Calibration, equal_bins, fit_logistic
from anyecg.kernels.called import Called
from anyecg.kernels.weights import LANES, Resampling


def made(n=4000, n_patients=300, slope=0.6, seed=2):
    """Return sorted logits that are too sure by 1 / slope, labels, and patients."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, n_patients, n)
    logit = np.sort(rng.standard_normal(n) * 1.5 - 1)[::-1]
    return logit, rng.random(n) < expit(slope * logit + 0.3), patient


def test_decisions_agree_with_sklearn_under_every_lanes_weights():
    logit, label, patient = made()
    called, weight_PL = logit >= 0.3, Resampling(np.arange(300), seed=1).block(0)
    measured = Called(called, label, patient, 300)
    for found, weight in zip(
        [measured.measure(), *measured.under(weight_PL)], [np.ones(4000), *weight_PL.T[:, patient]], strict=True
    ):
        wanted = [
            recall_score(label, called, sample_weight=weight), recall_score(~label, ~called, sample_weight=weight),
            f1_score(label, called, sample_weight=weight), balanced_accuracy_score(label, called, sample_weight=weight),
        ]  # fmt: skip
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_brier_score_agrees_with_sklearn_under_every_lanes_weights():
    logit, label, patient = made()
    weight_PL = Resampling(np.arange(300), seed=1).block(0)
    found = Calibration(logit, label, patient, 300).under(weight_PL)[:, 0]
    wanted = [brier_score_loss(label, expit(logit), sample_weight=weight[patient]) for weight in weight_PL.T]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_the_slope_is_that_of_an_unpenalised_logistic_regression():
    for slope in (0.2, 1.0, -0.5):
        logit, label, patient = made(slope=slope)
        wanted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit[:, None], label)
        assert Calibration(logit, label, patient, 300).measure()[1] == pytest.approx(wanted.coef_[0, 0], abs=1e-6)
        assert fit_logistic(logit, label) == pytest.approx((wanted.intercept_[0], wanted.coef_[0, 0]), abs=1e-6)


def test_one_newton_step_spreads_as_whole_refits_do():
    logit, label, patient = made()
    weight_PL = np.concatenate([Resampling(np.arange(300), seed=1).block(number) for number in range(4)], axis=1)
    measured = Calibration(logit, label, patient, 300)
    steps = np.concatenate([measured.under(weight_PL[:, n : n + LANES])[:, 1] for n in range(0, 256, LANES)])
    refits = [
        LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
        .fit(logit[:, None], label, sample_weight=weight[patient]).coef_[0, 0]
        for weight in weight_PL.T
    ]  # fmt: skip
    np.testing.assert_allclose(steps, refits, atol=0.01)
    assert np.std(steps) == pytest.approx(np.std(refits), rel=0.03)


def test_classes_that_the_logit_separates_or_one_class_have_no_slope():
    logit = np.arange(10.0)[::-1]
    for label in (logit >= 5, logit < 5, logit >= 0):
        assert np.isnan(fit_logistic(logit, label)).all()
    assert np.isnan(fit_logistic(np.ones(10), logit > 5)).all()
    found = Calibration(logit, logit >= 5, np.arange(10), 10).measure()
    assert np.isnan(found[1])
    assert not np.isnan(found[[0, 2]]).any()


def test_the_calibration_error_is_that_of_ten_equal_bins():
    logit, label, patient = made()
    weight_PL = Resampling(np.arange(300), seed=1).block(0)
    measured = Calibration(logit, label, patient, 300)
    np.testing.assert_array_equal(measured.bin_of, np.arange(4000) // 400)
    for found, weight in zip(
        [measured.measure(), *measured.under(weight_PL)], [np.ones(4000), *weight_PL.T[:, patient]], strict=True
    ):
        of_bins = [abs((weight * (expit(logit) - label))[measured.bin_of == number].sum()) for number in range(N_BINS)]
        assert found[2] == pytest.approx(sum(of_bins) / weight.sum(), abs=1e-12)


def test_equal_scores_share_a_bin():
    ends = np.array([False, False, True, True, False, True, True])
    assert equal_bins(ends).tolist() == [0, 0, 0, 4, 5, 5, 8]
    assert equal_bins(np.empty(0, bool)).tolist() == []
