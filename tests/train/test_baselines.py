import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anyecg.train.baselines import (
    BASELINES,
    Baseline,
    Design,
    combine,
    draw_features,
    fit_baselines,
    spline,
    variables,
)


def made_units(n=6000, *, unknown=0.1, seed=0):
    """Return made variables, a share of each unknown."""
    rng = np.random.default_rng(seed)
    age, sex = np.clip(rng.normal(60, 18, n), 18, 90), rng.integers(0, 2, n)
    features = np.stack([rng.normal(85, 18, n), rng.gamma(2, 0.02, n), rng.gamma(2, 0.02, n), np.full(n, 14)], axis=1)
    age[rng.random(n) < unknown] = np.nan
    sex[rng.random(n) < unknown] = -1
    features[rng.random(n) < unknown] = np.nan
    return variables(age, sex, features)


def labels_of(logit, seed=1):
    return (np.random.default_rng(seed).random(len(logit)) < expit(logit)).astype(np.int8)


def fitted(train, label):
    """Return the design and the baselines fitted on all units."""
    design = Design.fit(train)
    return design, fit_baselines(design, design.matrix(train), label)


def aurocs(design, models, variable, label):
    matrix = design.matrix(variable)
    return {name: roc_auc_score(label, models[name].logit(matrix[:, design.columns[name]])) for name in BASELINES}


def test_splines_are_the_natural_cubics_through_their_values_at_the_knots():
    knots, x = [20.0, 45.0, 60.0, 85.0], np.linspace(20, 85, 200)
    at_knots, found = spline(np.array(knots), knots), spline(x, knots)
    assert found.shape == (200, 3)
    for k in range(3):
        scale = np.abs(found[:, k]).max()
        np.testing.assert_allclose(
            CubicSpline(knots, at_knots[:, k], bc_type="natural")(x), found[:, k], atol=1e-9 * scale
        )
    assert np.linalg.matrix_rank(np.column_stack([np.ones(4), at_knots])) == 4


def test_splines_are_lines_outside_the_knots_and_with_two_of_them():
    knots, x = [20.0, 45.0, 60.0, 85.0], np.array([0.0, 5.0, 10.0, 90.0, 95.0, 100.0])
    first, second = np.split(np.diff(spline(x, knots), n=2, axis=0)[[0, 3]], 2)
    np.testing.assert_allclose(first, 0, atol=1e-9)
    np.testing.assert_allclose(second, 0, atol=1e-9)
    np.testing.assert_array_equal(spline(x, knots[:2]), x[:, None])


def test_weights_are_those_of_scikit_learn_on_the_same_columns():
    variable = made_units()
    design = Design.fit(variable)
    matrix = design.matrix(variable)
    label = labels_of(0.03 * np.nan_to_num(variable[:, 0] - 60) - 1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000))
    model.fit(matrix.astype(np.float64), label)
    found = Baseline.fit(matrix, label).logit(matrix)
    np.testing.assert_allclose(found, model.decision_function(matrix.astype(np.float64)), atol=2e-3)


def test_the_design_has_the_stated_columns():
    variable = made_units()
    design = Design.fit(variable)
    matrix = design.matrix(variable)
    assert matrix.shape == (len(variable), 16)
    known = ~np.isnan(variable).any(axis=1)
    wanted = [
        *(spline(variable[:, 0], np.nanquantile(variable[:, 0], [0.05, 0.35, 0.65, 0.95]))).T, np.isnan(variable[:, 0]),
        variable[:, 1], np.isnan(variable[:, 1]),
        *(column for v in (2, 3, 4) for column in spline(variable[:, v], design.knots[list(design.knots)[v]]).T),
        np.isnan(variable[:, 2]),
    ]  # fmt: skip
    np.testing.assert_allclose(matrix[known], np.stack(wanted, axis=1)[known], rtol=1e-5, atol=1e-6)
    assert np.isfinite(matrix).all()
    for column in (3, 5, 15):
        assert set(np.unique(matrix[:, column])) == {0.0, 1.0}


def test_age_alone_is_seen_by_age_and_sex_and_not_by_the_heart():
    train, test = made_units(20_000, unknown=0), made_units(20_000, unknown=0, seed=5)
    law = lambda variable: 0.06 * (variable[:, 0] - 60) - 1  # noqa: E731
    label = labels_of(law(test), 6)
    found = aurocs(*fitted(train, labels_of(law(train))), test, label)
    truth = roc_auc_score(label, law(test))
    assert truth > 0.7
    assert found["age-sex"] == pytest.approx(truth, abs=0.005)
    assert found["age-sex-heart"] == pytest.approx(truth, abs=0.005)
    assert found["heart"] == pytest.approx(0.5, abs=0.02)


def test_fast_and_slow_hearts_alike_are_seen_by_the_splines():
    train, test = made_units(20_000, unknown=0), made_units(20_000, unknown=0, seed=5)
    law = lambda variable: ((variable[:, 2] - 85) / 18) ** 2 - 1.5  # noqa: E731
    label = labels_of(law(test), 6)
    found = aurocs(*fitted(train, labels_of(law(train))), test, label)
    assert found["heart"] == pytest.approx(roc_auc_score(label, law(test)), abs=0.01)
    assert found["age-sex"] == pytest.approx(0.5, abs=0.02)


def test_that_a_value_is_unknown_counts_as_a_value():
    train, test = made_units(20_000), made_units(20_000, seed=5)
    for column, model in ((0, "age-sex"), (1, "age-sex"), (2, "heart")):
        label, in_test = (np.isnan(variable[:, column]).astype(np.int8) for variable in (train, test))
        assert aurocs(*fitted(train, label), test, in_test)[model] > 0.999


def test_every_unit_has_a_logit_whatever_is_unknown():
    train = made_units()
    design, models = fitted(train, labels_of(0.03 * np.nan_to_num(train[:, 0] - 60)))
    for nothing in (np.full((3, 5), np.nan), np.array([[200.0, 1, 400, 5, 5], [0, 0, 0, -7, -7]])):
        for name in BASELINES:
            assert np.isfinite(models[name].logit(design.matrix(nothing)[:, design.columns[name]])).all()


def test_cohorts_without_ages_sexes_or_beats_have_baselines_too():
    train, chance = made_units(), labels_of(np.zeros(6000))
    train[:, [0, 1]] = np.nan
    assert aurocs(*fitted(train, chance), train, chance)["age-sex"] == 0.5
    train[:] = np.nan
    assert set(aurocs(*fitted(train, chance), train, chance).values()) == {0.5}


def test_one_class_gives_nan_and_says_why():
    train = made_units(50)
    for label in (np.zeros(50, np.int8), np.ones(50, np.int8)):
        design, models = fitted(train, label)
        for name, model in models.items():
            assert np.isnan(model.logit(design.matrix(train)[:, design.columns[name]])).all()
            assert model.reason.startswith("one class among the units to fit on")
    combined = combine(np.arange(4.0), np.full(4, np.nan), np.array([0, 1, 0, 1]))
    assert np.isnan(combined.logit(np.ones((2, 2)))).all()
    assert combined.reason == "one class among the units to fit on: 0 of 0 are positive"


def test_the_combination_is_the_regression_on_both_logits():
    rng = np.random.default_rng(3)
    ecg, base = rng.standard_normal((2, 5000))
    label = labels_of(1.5 * ecg + 0.7 * base - 1)
    found = combine(ecg, base, label)
    np.testing.assert_allclose(found.weight_K, [1.5, 0.7], atol=0.15)
    assert found.constant == pytest.approx(-1, abs=0.1)
    both = np.column_stack([ecg, base])
    assert roc_auc_score(label, found.logit(both)) > max(roc_auc_score(label, ecg), roc_auc_score(label, base))
    twin = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000).fit(both, label)
    np.testing.assert_allclose(found.logit(both), twin.decision_function(both), atol=0.03)


def test_units_that_the_ecg_has_no_score_for_do_not_count_in_the_combination():
    rng = np.random.default_rng(3)
    ecg, base = rng.standard_normal((2, 500))
    label = labels_of(ecg)
    more = np.append(ecg, np.nan), np.append(base, 3.0), np.append(label, 1)
    np.testing.assert_array_equal(combine(*more).weight_K, combine(ecg, base, label).weight_K)
    assert np.isnan(combine(*more).logit([[np.nan, 1.0], [1.0, 1.0]])).tolist() == [True, False]


def test_a_fit_repeats_to_the_last_bit():
    train = made_units(3000)
    label = labels_of(0.03 * np.nan_to_num(train[:, 0] - 60))
    (design, first), (_, second) = fitted(train, label), fitted(train, label)
    for name in BASELINES:
        np.testing.assert_array_equal(first[name].weight_K, second[name].weight_K)
    matrix = design.matrix(np.repeat(train, 30, axis=0))
    whole = first["age-sex-heart"].logit(matrix)
    np.testing.assert_array_equal(whole, np.repeat(first["age-sex-heart"].logit(design.matrix(train)), 30))


def test_features_of_a_draw_are_the_means_over_its_windows_that_have_them():
    rng = np.random.default_rng(2)
    feature, row, draw = rng.random((20, 4)), rng.integers(0, 20, 100), rng.choice([3, 9, 4, 77], 100)
    feature[rng.random(20) < 0.4] = np.nan
    row[draw == 77] = np.flatnonzero(np.isnan(feature[:, 0]))[0]
    draws, means = draw_features(feature, row, draw)
    assert draws.tolist() == [3, 4, 9, 77]
    for number, one in enumerate([3, 4, 9]):
        np.testing.assert_allclose(means[number], np.nanmean(feature[row[draw == one]], axis=0))
    assert np.isnan(means[3]).all()


def test_the_logarithm_of_no_variation_is_a_number():
    found = variables([50.0], [1], np.array([[60.0, 0.0, 0.0, 10.0]]))
    np.testing.assert_allclose(found[0], [50, 1, 60, np.log(1e-3), np.log(1e-3)])
