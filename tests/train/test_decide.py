from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from anyecg.kernels.weights import poisson_weights
from anyecg.loaders.errors import ConfigError
from anyecg.train.decide import Decisions, check_classes, decided, decision_rows, measure_decisions
from anyecg.train.intervals import Intervals
from anyecg.train.units import Units
from anyecg.train.work import Done

CLASSES = ["N", "A", "O", "~"]


def exclusive_units(n=240, seed=1):
    """Return units of exclusive labels; some have no class, two classes, or no score."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, n)
    logit = 1.2 * np.eye(4)[true] + rng.standard_normal((n, 4))
    label = np.eye(4, dtype=np.int8)[true]
    label[:5], label[5:9], label[9, :3] = -1, 0, 1
    logit[10] = np.nan
    # A label that is missing where another one is 1 says nothing new.
    label[11, (true[11] + 1) % 4] = -1
    rows = np.arange(n)
    return Units(
        output_CU=logit.T, label_DC=label, draw=rows, window=np.full(n, -1), visit=rows // 2,
        patient=(rows // 3).astype(np.uint64), time=-rows,
    )  # fmt: skip


def table_of(units, n_replicates):
    """Return the rows for some units, the first three classes in the mean."""
    measured = measure_decisions(units, "draw", len(CLASSES), unit="patient", seed=5)
    done = Done(("decisions",), measured.facts, measured.value, measured.replicates(0, n_replicates))
    return decision_rows(done, CLASSES, [0, 1, 2], Intervals(0.95, "logit-t"))


def by_sklearn(true, called):
    options = {"labels": range(4), "average": None, "zero_division": 0}
    accuracy = accuracy_score(true, called)
    found = [[*metric(true, called, **options), accuracy] for metric in (f1_score, recall_score)]
    return np.array(found).T


def test_units_without_just_one_class_or_without_scores_do_not_count():
    units = exclusive_units()
    rows, called, true = decided(units, "draw")
    assert rows.tolist() == list(range(11, 240))
    np.testing.assert_array_equal(called, units.logit[rows].argmax(1))
    np.testing.assert_array_equal(units.label[rows, true], 1)
    first = decided(units, "visit")[0]
    assert first.tolist() == [11, *range(13, 240, 2)]


def test_f1_and_sensitivity_agree_with_scikit_learn():
    rows, called, true = decided(exclusive_units(), "draw")
    found = Decisions(called, true, rows.astype(np.uint64), 4).measure()[0]
    np.testing.assert_allclose(found, by_sklearn(true, called), atol=1e-12)


def test_replicates_are_the_metrics_of_repeated_units():
    units = exclusive_units()
    rows, called, true = decided(units, "draw")
    decisions = Decisions(called, true, units.patient[rows], 4)
    replicates = decisions.replicates(0, 100, seed=3)
    assert replicates.shape == (100, 5, 2)
    weight_RP = poisson_weights(decisions.clusters, 0, 100, seed=3)
    for replicate in range(0, 100, 9):
        times = weight_RP[replicate][np.searchsorted(decisions.clusters, units.patient[rows])]
        wanted = by_sklearn(np.repeat(true, times), np.repeat(called, times))
        np.testing.assert_allclose(replicates[replicate], wanted, atol=1e-12)
    parts = [decisions.replicates(first, last, seed=3) for first, last in ((0, 1), (1, 70), (70, 70), (70, 100))]
    np.testing.assert_array_equal(np.concatenate(parts), replicates)


def test_a_class_that_no_unit_has_is_nan():
    found = Decisions(np.array([0, 1, 2]), np.array([0, 1, 1]), np.arange(3, dtype=np.uint64), 4).measure()[0]
    np.testing.assert_allclose(found[:2], [[1, 1], [2 / 3, 1 / 2]])
    assert np.isnan(found[2:4]).all()
    np.testing.assert_allclose(found[4], 2 / 3)


def test_the_table_has_a_row_a_class_then_all_then_the_mean_of_the_chosen():
    units = exclusive_units()
    rows, called, true = decided(units, "draw")
    table = table_of(units, 300)
    assert [row["target"] for row in table] == [*CLASSES, "all", "mean"]
    values = by_sklearn(true, called)
    np.testing.assert_allclose([[row["f1"], row["sensitivity"]] for row in table[:5]], values)
    assert table[5]["f1"] == pytest.approx(f1_score(true, called, labels=[0, 1, 2], average="macro"))
    assert table[5]["sensitivity"] == pytest.approx(values[:3, 1].mean())
    assert [row["n_positive"] for row in table] == [*np.bincount(true), len(rows), (true < 3).sum()]
    for row in table:
        assert row["n"] == len(rows)
        assert row["f1_low"] < row["f1"] < row["f1_high"]
    widths = [row["f1_high"] - row["f1_low"] for row in table]
    assert widths[5] < min(widths[:4])


def test_no_unit_at_all_has_no_number():
    units = exclusive_units()
    table = table_of(replace(units, label_DC=np.zeros_like(units.label)), 10)
    assert [row["n"] for row in table] == [0] * 6
    assert np.isnan([row["f1"] for row in table]).all()


def test_a_class_that_is_no_target_is_refused():
    assert check_classes([], CLASSES) == [0, 1, 2, 3]
    assert check_classes(["O", "N"], CLASSES) == [2, 0]
    with pytest.raises(ConfigError, match=r"evaluate\.f1_classes: 'AF' is none of the targets; found N, A, O, ~"):
        check_classes(["AF"], CLASSES)
