import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from anyecg.kernels.weights import LANES, Resampling
from anyecg.train.measures import METRICS, Areas, Binary, replicates_of

RESAMPLING = Resampling(np.arange(90), seed=4)


def made(n=1200, seed=7):
    rng = np.random.default_rng(seed)
    logit = rng.standard_normal(n).astype(np.float32)
    return logit, rng.random(n) < expit(logit - 0.5), rng.integers(0, 90, n)


def test_every_metric_of_a_replicate_is_that_of_the_repeated_units():
    logit, label, row = made()
    binary = Binary(logit, label, row, 90, 0.1)
    found = dict(zip(METRICS, replicates_of(binary, RESAMPLING, LANES, LANES + 5)[3], strict=True))
    weight = RESAMPLING.block(1)[:, 3][row]
    score, true = np.repeat(logit, weight), np.repeat(label, weight)
    assert found["auroc"] == pytest.approx(roc_auc_score(true, score), abs=1e-12)
    assert found["auprc"] == pytest.approx(average_precision_score(true, score), abs=1e-12)
    assert found["f1"] == pytest.approx(f1_score(true, score >= 0.1), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx((found["sensitivity"] + found["specificity"]) / 2, abs=1e-12)
    assert found["brier"] == pytest.approx(brier_score_loss(true, expit(score.astype(float))), abs=1e-12)


def test_replicates_do_not_depend_on_which_are_asked_for_together():
    binary = Binary(*made(), 90, 0.1)
    whole = replicates_of(binary, RESAMPLING, 0, 3 * LANES + 7)
    assert whole.shape == (3 * LANES + 7, len(METRICS))
    parts = [replicates_of(binary, RESAMPLING, first, last) for first, last in ((0, 64), (64, 192), (192, 199))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_without_a_threshold_or_with_one_class_there_is_no_number():
    logit, label, row = made()
    value = dict(zip(METRICS, Binary(logit, label, row, 90, np.nan).measure(), strict=True))
    assert {name for name, number in value.items() if np.isnan(number)} == {
        "sensitivity", "specificity", "f1", "balanced_accuracy",
    }  # fmt: skip
    for one_class in (label & False, label | True):
        binary = Binary(logit, one_class, row, 90, 0.1)
        assert np.isnan(binary.measure()).all()
        assert np.isnan(replicates_of(binary, RESAMPLING, 0, 3)).all()
    nothing = Binary(logit[:0], label[:0], row[:0], 90, 0.1)
    assert np.isnan(nothing.measure()).all()
    assert nothing.bins()[0].tolist() == [0] * 10


def test_constant_scores_are_chance_and_have_no_slope():
    _, label, row = made()
    value = dict(zip(METRICS, Binary(np.zeros(1200), label, row, 90, 0.0).measure(), strict=True))
    assert (value["auroc"], value["sensitivity"], value["specificity"]) == (0.5, 1, 0)
    assert value["auprc"] == pytest.approx(label.mean())
    assert np.isnan(value["calibration_slope"])


def test_bins_are_the_deciles_with_their_mean_probability_and_share_of_positives():
    logit, label, row = made()
    n, predicted, observed = Binary(logit, label, row, 90, 0.1).bins()
    order = np.argsort(logit)
    assert n.tolist() == [120] * 10
    for number, of_bin in enumerate(np.split(order, 10)):
        assert predicted[number] == pytest.approx(expit(logit[of_bin].astype(float)).mean())
        assert observed[number] == label[of_bin].mean()


def test_the_binned_kernel_changes_the_areas_alone_and_knows_its_error():
    exact, binned = (Binary(*made(60_000), 90, 0.1, kernel=kernel) for kernel in ("exact", "binned"))
    np.testing.assert_array_equal(exact.measure(), binned.measure())
    first, second = (replicates_of(binary, RESAMPLING, 0, 64) for binary in (exact, binned))
    np.testing.assert_array_equal(first[:, 2:], second[:, 2:])
    assert 0 < abs(first - second)[:, 0].max() < 1e-5
    error, bound = binned.errors()
    assert 0 <= error <= bound < 2e-3
    assert exact.errors() is Binary(*made(), 90, 0.1, kernel="binned").errors() is None


def test_areas_alone_are_those_of_all_metrics():
    units = made()
    whole = replicates_of(Binary(*units, 90, 0.1), RESAMPLING, 0, 64)
    np.testing.assert_array_equal(replicates_of(Areas(*units), RESAMPLING, 0, 64), whole[:, :2])
    np.testing.assert_array_equal(replicates_of(Areas(*units, with_auprc=False), RESAMPLING, 0, 64)[:, 0], whole[:, 0])
