import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from anyecg.kernels.auroc import METRICS, Ranking, auroc
from anyecg.kernels.binned import LEAST_UNITS, BinnedRanking
from anyecg.kernels.weights import LANES, Resampling

UNITS = st.lists(
    st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 4)), min_size=2, max_size=60
).filter(lambda units: any(u[1] and u[2] for u in units) and any(not u[1] and u[2] for u in units))  # fmt: skip


def by_sklearn(label, score, weight):
    """Return the METRICS by scikit-learn, NaN with one class."""
    if weight[label].sum() == 0 or weight[~label].sum() == 0:
        return [np.nan, np.nan]
    return [
        roc_auc_score(label, score, sample_weight=weight),
        average_precision_score(label, score, sample_weight=weight),
    ]


def made(n=3000, n_patients=200, *, ties, dtype=np.float32, seed=8):
    """Return scores (rounded to ties), labels and patients whose units agree."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, n_patients, n)
    label = (rng.random(n_patients) < 0.2)[patient] ^ (rng.random(n) < 0.05)
    score = rng.standard_normal(n) + 0.6 * label + rng.standard_normal(n_patients)[patient]
    return np.round(score, 1 if ties else 12).astype(dtype), label, patient


@given(UNITS)
@settings(max_examples=200, deadline=None)
def test_auroc_with_ties_and_weights_agrees_with_sklearn(units):
    score, label, weight = map(np.array, zip(*units, strict=True))
    assert auroc(score, label, weight) == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)
    half = roc_auc_score(label, score, sample_weight=weight * 0.5)
    assert auroc(score, label, weight * 0.5) == pytest.approx(half, abs=1e-12)


@given(UNITS, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=100, deadline=None)
def test_every_lane_agrees_with_sklearn_under_its_own_weights(units, dtype):
    score, label, weight = map(np.array, zip(*units, strict=True))
    weight_PL = (weight[:, None] + np.arange(LANES)) % 5
    found = Ranking(score.astype(dtype), label, np.arange(len(score))).under(weight_PL.astype(np.int8))
    wanted = [by_sklearn(label, score, weight_PL[:, lane]) for lane in range(LANES)]
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_replicates_agree_with_sklearn(ties, dtype):
    score, label, patient = made(ties=ties, dtype=dtype)
    weight_PL = Resampling(np.arange(200), seed=6).block(1)
    ranking = Ranking(score, label, patient)
    found = ranking.under(weight_PL)
    np.testing.assert_allclose(found, [by_sklearn(label, score, w[patient]) for w in weight_PL.T], atol=1e-12)
    np.testing.assert_allclose(ranking.measure(), by_sklearn(label, score, np.ones(len(score))), atol=1e-12)
    alone = ranking.under(weight_PL, with_auprc=False)
    np.testing.assert_array_equal(alone[:, 0], found[:, 0])
    assert np.isnan(alone[:, 1]).all()


def test_a_long_run_of_negatives_is_counted_exactly():
    score = np.arange(9000.0)[::-1]
    label = np.isin(np.arange(9000), [0, 5000, 8999])
    weight_PL = np.full((1, LANES), 12, np.int8)
    found = Ranking(score, label, np.zeros(9000, int)).under(weight_PL)
    np.testing.assert_allclose(found, [by_sklearn(label, score, np.ones(9000))] * LANES, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_of_units_and_signs_of_zero_do_not_matter(dtype):
    score, label, patient = made(ties=True, dtype=dtype)
    score[score == 0] *= np.where(np.arange((score == 0).sum()) % 2, -1, 1)
    weight_PL = Resampling(np.arange(200), seed=9).block(0)
    order = np.random.default_rng(3).permutation(len(score))
    first, second = (Ranking(score[rows], label[rows], patient[rows]).under(weight_PL) for rows in (slice(None), order))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, [by_sklearn(label, score, w[patient]) for w in weight_PL.T], atol=1e-12)


@pytest.mark.parametrize("kind", [Ranking, BinnedRanking])
def test_one_class_has_no_area(kind):
    assert np.isnan(auroc([0.1, 0.2], [1, 1]))
    assert np.isnan(auroc([], []))
    weight_PL = np.zeros((2, LANES), np.int8)
    weight_PL[:, 1:] = 1
    found = kind(np.array([0.1, 0.2]), np.array([0, 1]), np.array([0, 1])).under(weight_PL)
    assert found.shape == (LANES, len(METRICS))
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], 1)
    assert np.isnan(kind(np.empty(0), np.empty(0), np.empty(0, int)).under(weight_PL)).all()


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="finite"):
        auroc([0.1, np.nan], [0, 1])
    with pytest.raises(ValueError, match="labels 0 or 1"):
        Ranking([0.1, 0.2], [0, -1], [0, 1])
    with pytest.raises(ValueError, match=r"shapes \(2,\), \(3,\), \(2,\)"):
        Ranking([0.1, 0.2], [0, 1, 1], [0, 1])


@pytest.mark.parametrize("ties", [False, True])
def test_the_error_of_bins_is_within_its_bound(ties):
    score, label, patient = made(LEAST_UNITS, ties=ties)
    weight_PL = Resampling(np.arange(200), seed=6).block(0)
    exact, binned = Ranking(score, label, patient), BinnedRanking(score, label, patient)
    found, wanted = binned.under(weight_PL), exact.under(weight_PL)
    error = abs(found - wanted)[:, 0]
    assert (error <= binned.bound_L + 1e-15).all()
    assert binned.bound_L.max() > 0
    assert ties or binned.bound_L.max() < 1e-3
    assert error.max() < 1e-5
    assert abs(binned.measure()[0] - exact.measure()[0]) < 1e-5


def test_scores_that_are_bins_themselves_have_no_error():
    score, label, patient = made(ties=True)
    score = np.clip(np.floor(score), -2, 2)
    weight_PL = Resampling(np.arange(200), seed=6).block(0)
    np.testing.assert_allclose(
        BinnedRanking(score, label, patient).under(weight_PL),
        Ranking(score, label, patient).under(weight_PL),
        atol=1e-12,
    )
    constant = BinnedRanking(np.ones(3000), label, patient).under(weight_PL)
    np.testing.assert_array_equal(constant[:, 0], 0.5)
