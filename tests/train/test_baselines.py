from dataclasses import replace

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
    BaselineUnits,
    Design,
    baseline_units,
    combine,
    draw_features,
    first_measured,
    fit_baselines,
    spline,
    variables,
)
from anyecg.train.heart import Heart
from anyecg.train.predict import Scores
from anyecg.train.units import units_of


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


def fitted(train, label, **options):
    """Return the design and the baselines fitted on all units."""
    design = Design.fit(train)
    order = np.arange(len(train))
    return design, fit_baselines(design, lambda rows: train[rows], order, lambda rows: label[rows], **options)


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
    for label in (np.zeros(50, np.int8), np.ones(50, np.int8), np.full(50, -1)):
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


def units_of_rows(window, draw):
    """Return units without variables."""
    none = np.empty(0)
    return BaselineUnits(window, draw, draw, age_V=none, sex_V=none, feature_RF=none, row=window)


@pytest.mark.parametrize("level", ["window", "draw"])
def test_the_units_fitted_on_are_the_first_measured_ones_by_their_hash_alone(level):
    window, draw = np.arange(500) % 70, np.arange(500) // 3 if level == "window" else np.arange(500)
    window = window if level == "window" else np.full(500, -1)
    label = np.random.default_rng(0).integers(-1, 2, 500)
    order = units_of_rows(window, draw).order(7)
    assert sorted(order) == list(range(500))
    assert not np.array_equal(order, units_of_rows(window, draw).order(8))
    moved = np.random.default_rng(1).permutation(500)
    rows, found = first_measured(order, lambda rows: label[rows], 100)
    after = units_of_rows(window[moved], draw[moved]).order(7)
    again, _ = first_measured(after, lambda rows: label[moved][rows], 100)
    assert (len(rows), found.min()) == (100, 0)
    assert set(moved[again]) == set(rows)
    assert set(rows) == set(order[label[order] >= 0][:100])
    everything, _ = first_measured(order, lambda rows: label[rows], 10_000)
    np.testing.assert_array_equal(everything, np.flatnonzero(label >= 0))


@pytest.fixture
def cohort(tiny_index):
    """Return the tiny set with ages of years, and made features and scores of its windows."""
    rng, tables = np.random.default_rng(9), tiny_index.tables
    n_visits, n_windows = len(tables["visit_split"]), len(tables["window_visit"])
    tables = {**tables, "visit_age": rng.normal(60, 18, n_visits), "visit_sex": rng.integers(-1, 2, n_visits)}
    index = replace(tiny_index, tables=tables)
    feature_WF = np.abs(rng.normal(1, 0.3, (n_windows, 4))) * [80, 0.05, 0.05, 12]
    feature_WF[rng.random(n_windows) < 0.3] = np.nan
    logit_WC = rng.standard_normal((n_windows, 2))
    rows = {split: index.windows_of(split) for split in ("train", "val", "test")}
    heart = Heart({split: (at, feature_WF[at]) for split, at in rows.items()}, "I", 0)
    card = {"head": "multilabel", "join": "logits", "targets": ["a", "b"]}
    return index, heart, Scores(card, {split: (at, logit_WC[at]) for split, at in rows.items()}, {})


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("level", ["window", "draw", "visit"])
def test_units_are_those_of_the_evaluation_with_the_variables_of_their_visit_and_windows(cohort, split, level):
    index, heart, scores = cohort
    judged, found = units_of(index, scores, split, 60, level), baseline_units(index, heart, split, 60, level)
    for name in ("window", "draw", "visit"):
        np.testing.assert_array_equal(getattr(found, name), getattr(judged, name))
    rows, feature_WF = heart.windows[split]
    pairs = index.pairs_of(split, 60)
    for unit in range(0, len(found.draw), 7):
        of_draw = index.tables["pair_window"][pairs[index.tables["pair_draw"][pairs] == found.draw[unit]]]
        windows = [found.window[unit]] if level == "window" else of_draw
        values = feature_WF[np.searchsorted(rows, windows)]
        mean = values[~np.isnan(values[:, 0])].mean(axis=0) if (~np.isnan(values[:, 0])).any() else np.full(4, np.nan)
        age, sex = (index.tables[f"visit_{name}"][found.visit[unit]] for name in ("age", "sex"))
        np.testing.assert_allclose(found.variables([unit]), variables([age], np.array([sex]), mean[None]))


def test_labels_of_the_test_split_change_no_score(cohort):
    index, heart, scores = cohort

    def scored(label_DC):
        units = {split: baseline_units(index, heart, split, 60, "window") for split in heart.windows}
        ecg = {split: units_of(index, scores, split, 60, "window").logit[:, 0] for split in ("val", "test")}
        order = units["train"].order(1)
        design = Design.fit(units["train"].variables(order))
        models = fit_baselines(
            design, units["train"].variables, order, lambda rows: label_DC[units["train"].draw[rows], 0]
        )  # fmt: skip
        matrix = {split: design.matrix(units[split].variables(slice(None))) for split in ("val", "test")}
        both = {split: np.column_stack([ecg[split], models["age-sex-heart"].logit(matrix[split])]) for split in matrix}
        label = label_DC[units["val"].draw, 0]
        model = combine(*both["val"][label >= 0].T, label[label >= 0])
        logits = [models[name].logit(matrix["test"][:, design.columns[name]]) for name in BASELINES]
        return np.stack([*logits, model.logit(both["test"])])

    label_DC = np.array(index.tables["draw_labels"])
    split_D = np.asarray(index.tables["visit_split"])[index.tables["draw_visit"]]
    before = scored(label_DC)
    assert np.isfinite(before).all()
    for split, changes in ((2, []), (1, [3]), (0, [0, 1, 2, 3])):
        other_DC = label_DC.copy()
        other_DC[split_D == split] = np.where(label_DC[split_D == split] < 0, 0, 1 - label_DC[split_D == split])
        differs = (scored(other_DC) != before).any(axis=1)
        assert np.flatnonzero(differs).tolist() == changes


def test_a_fit_repeats_to_the_last_bit():
    train = made_units(3000)
    label = labels_of(0.03 * np.nan_to_num(train[:, 0] - 60))
    (design, first), (_, second) = fitted(train, label, n_max=1000), fitted(train, label, n_max=1000)
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
