import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import brunnermunzel
from sklearn.metrics import roc_auc_score

from anyecg.train.delong import clustered_se, delong_se
from anyecg.train.evaluate import bootstrap_auroc


def made(n=300, n_clusters=60, seed=1, decimals=1):
    """Return tied scores, labels and clusters that hold units of both classes."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, n_clusters, n)
    label = (rng.random(n) < 0.3).astype(int)
    score = label + rng.standard_normal(n) + rng.standard_normal(n_clusters)[cluster]
    return np.round(score, decimals), label, cluster.astype(np.int32)


def kernel(score, label):
    """Return, for each positive against each negative unit, 1, 1/2 or 0."""
    x, y = score[label == 1][:, None], score[label == 0][None]
    return (x > y) + 0.5 * (x == y)


def slow_delong(score, label):
    psi = kernel(score, label)
    m, n = psi.shape
    v10, v01 = psi.mean(1), psi.mean(0)
    s10, s01 = (((v - psi.mean()) ** 2).sum() / (len(v) - 1) for v in (v10, v01))
    return np.sqrt(s10 / m + s01 / n)


def slow_obuchowski(score, label, cluster):
    """Return the square root of formula (3) of Obuchowski (1997), a cluster at a time."""
    psi = kernel(score, label)
    (m, n), area = psi.shape, psi.mean()
    of_x, of_y = cluster[label == 1], cluster[label == 0]
    v10, v01 = psi.mean(1), psi.mean(0)
    i10, i01, i = len(set(of_x)), len(set(of_y)), len(set(cluster))
    s10 = s01 = s11 = 0.0
    for one in set(cluster):
        x = v10[of_x == one].sum() - (of_x == one).sum() * area
        y = v01[of_y == one].sum() - (of_y == one).sum() * area
        s10, s01, s11 = s10 + x * x, s01 + y * y, s11 + x * y
    s10, s01, s11 = i10 / ((i10 - 1) * m) * s10, i01 / ((i01 - 1) * n) * s01, i / (i - 1) * s11
    return np.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))


def test_a_small_table_has_the_error_worked_out_by_hand():
    # Placements 3/4 and 1 of the positive units, 1 and 3/4 of the negative ones: variance 1/32 a class.
    assert delong_se([3, 4, 1, 3], [1, 1, 0, 0]) == pytest.approx(np.sqrt(1 / 64 + 1 / 64))


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_the_plain_error_is_that_of_brunner_and_munzel(decimals):
    score, label, _ = made(decimals=decimals)
    distance = roc_auc_score(label, score) - 0.5
    # Their statistic is this distance over its standard error.
    statistic = brunnermunzel(score[label == 0], score[label == 1]).statistic
    assert delong_se(score, label) == pytest.approx(distance / statistic, rel=1e-12)


units = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 7)), min_size=1, max_size=40
).map(lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True)))  # fmt: skip


@given(units)
def test_both_errors_agree_with_their_slow_twins(found):
    score, label, cluster = found
    few = min((label == 1).sum(), (label == 0).sum()) < 2
    wanted = np.nan if few else slow_delong(score, label)
    assert delong_se(score, label) == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    few = min(len(set(cluster[label == 1])), len(set(cluster[label == 0]))) < 2
    wanted = np.nan if few else slow_obuchowski(score, label, cluster)
    # A variance that is 0 may come out as 1e-17.
    assert clustered_se(score, label, cluster) == pytest.approx(wanted, abs=1e-7, nan_ok=True)


def test_large_samples_agree_with_the_slow_twins():
    score, label, cluster = made(3000, 400)
    assert delong_se(score, label) == pytest.approx(slow_delong(score, label), rel=1e-12)
    assert clustered_se(score, label, cluster) == pytest.approx(slow_obuchowski(score, label, cluster), rel=1e-12)


def test_clusters_of_one_unit_give_the_plain_error():
    score, label, _ = made()
    assert clustered_se(score, label, np.arange(len(score))) == pytest.approx(delong_se(score, label), rel=1e-12)


def test_neither_order_nor_scale_of_the_scores_nor_names_of_the_clusters_matter():
    score, label, cluster = made()
    order = np.random.default_rng(2).permutation(len(score))
    plain, clustered = delong_se(score, label), clustered_se(score, label, cluster)
    assert delong_se(score[order], label[order]) == plain
    assert clustered_se(score[order], label[order], cluster[order]) == clustered
    falling = np.argsort(-score, kind="stable")
    assert clustered_se(score[falling], label[falling], cluster[falling]) == clustered
    assert delong_se(np.exp(3 * score) - 7, label) == plain
    assert clustered_se(np.exp(3 * score) - 7, label, cluster) == clustered
    assert clustered_se(score, label, 3 * cluster + 5) == pytest.approx(clustered, rel=1e-12)
    # The other class as positive is the other side of the curve.
    assert clustered_se(-score, 1 - label, cluster) == pytest.approx(clustered, rel=1e-12)


@pytest.mark.parametrize("k", [4, 25])
def test_copies_of_a_patients_units_shrink_the_plain_error_alone(k):
    score, label, cluster = made()
    copied = np.repeat(score, k), np.repeat(label, k), np.repeat(cluster, k)
    assert clustered_se(*copied) == pytest.approx(clustered_se(score, label, cluster), rel=1e-12)
    assert delong_se(*copied[:2]) * np.sqrt(k) == pytest.approx(delong_se(score, label), rel=0.01)


def test_the_bootstrap_of_patients_has_the_clustered_error_and_that_of_windows_the_plain_one():
    score, label, cluster = made(4000, 500)
    for clusters, wanted in ((cluster, clustered_se(score, label, cluster)),
                             (np.arange(4000), delong_se(score, label))):  # fmt: skip
        found = bootstrap_auroc(score, label, clusters, n_replicates=1000)
        assert found.replicates.std(ddof=1) == pytest.approx(wanted, rel=0.08)


def test_too_few_units_or_clusters_of_a_class_have_no_error_and_a_perfect_score_has_none():
    assert np.isnan([delong_se([], []), delong_se([1, 2], [1, 1]), delong_se([1, 2, 3], [1, 0, 0])]).all()
    none = np.empty(0, np.int32)
    assert np.isnan([clustered_se([], [], none), clustered_se([1, 2, 3, 4], [1, 1, 0, 0], [5, 5, 1, 2])]).all()
    assert delong_se([1, 2, 3, 4], [0, 0, 1, 1]) == 0
    assert clustered_se([1, 2, 3, 4], [0, 0, 1, 1], [0, 1, 2, 3]) == 0


def test_units_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\); wanted twice"):
        delong_se([1, 2], [1, 0, 1])
    with pytest.raises(ValueError, match="scores must be finite and labels 0 or 1"):
        delong_se([1, np.nan], [1, 0])
    with pytest.raises(ValueError, match="scores must be finite and labels 0 or 1"):
        clustered_se([1, 2], [1, -1], [0, 1])
    for cluster in ([0], [-1, 0], [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"wanted rows from 0 on, of shape \(2,\)"):
            clustered_se([1, 2], [1, 0], cluster)
