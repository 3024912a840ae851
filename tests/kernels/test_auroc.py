import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from anyecg.kernels.auroc import METRICS, Ranking, auroc, poisson_weights

UNITS = st.lists(
    st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 4)), min_size=2, max_size=60
).filter(lambda units: any(u[1] and u[2] for u in units) and any(not u[1] and u[2] for u in units))  # fmt: skip


@given(UNITS)
@settings(max_examples=300, deadline=None)
def test_auroc_with_ties_and_weights_agrees_with_sklearn(units):
    score, label, weight = map(np.array, zip(*units, strict=True))
    assert auroc(score, label, weight) == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)
    half = roc_auc_score(label, score, sample_weight=weight * 0.5)
    assert auroc(score, label, weight * 0.5) == pytest.approx(half, abs=1e-12)


@given(UNITS, st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_every_metric_agrees_with_sklearn(units, threshold):
    score, label, weight = map(np.array, zip(*units, strict=True))
    found = Ranking(score, label, np.arange(len(score)), threshold).measure(weight.astype(np.int64))
    called = score >= threshold
    wanted = {
        "auroc": roc_auc_score(label, score, sample_weight=weight),
        "auprc": average_precision_score(label, score, sample_weight=weight),
        "sensitivity": recall_score(label, called, sample_weight=weight),
        "specificity": recall_score(~label.astype(bool), ~called, sample_weight=weight),
        "f1": f1_score(label, called, sample_weight=weight),
    }
    np.testing.assert_allclose(found, [wanted[name] for name in METRICS], atol=1e-12)


def test_one_class_has_no_auroc():
    assert np.isnan(auroc([0.1, 0.2], [1, 1]))
    assert np.isnan(auroc([], []))


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        auroc([0.1, np.nan], [0, 1])


def test_replicates_are_functions_of_seed_number_and_cluster_alone():
    rng = np.random.default_rng(8)
    score, label, cluster = rng.standard_normal(500), rng.integers(0, 2, 500), rng.integers(0, 60, 500)
    whole = Ranking(score, label, cluster).replicates(0, 40, seed=9)
    shuffled = rng.permutation(500)
    other = Ranking(score[shuffled], label[shuffled], cluster[shuffled])
    np.testing.assert_array_equal(
        np.concatenate([other.replicates(0, 13, seed=9), other.replicates(13, 40, seed=9)]), whole
    )
    assert (other.replicates(0, 40, seed=10)[:, 0] != whole[:, 0]).all()


def test_replicates_equal_the_metric_under_drawn_poisson_weights():
    rng = np.random.default_rng(10)
    score, label, cluster = rng.standard_normal(300), rng.integers(0, 2, 300), rng.integers(0, 80, 300)
    ranking = Ranking(score, label, cluster)
    drawn = poisson_weights(ranking.clusters, 0, 200, seed=6)
    np.testing.assert_array_equal(poisson_weights(ranking.clusters, 7, 9, seed=6), drawn[7:9])
    share = np.bincount(drawn.ravel(), minlength=5)[:5] / drawn.size
    np.testing.assert_allclose(share, poisson(1).pmf(range(5)), atol=0.01)
    assert ranking.clusters.tolist() == sorted(set(cluster))
    row = np.searchsorted(ranking.clusters, cluster)
    wanted = [roc_auc_score(label, score, sample_weight=weight[row]) for weight in drawn[:20]]
    np.testing.assert_allclose(ranking.replicates(0, 20, seed=6)[:, 0], wanted, atol=1e-12)
