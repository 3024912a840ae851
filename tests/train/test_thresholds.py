from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve, roc_curve

from anyecg.train.thresholds import RULES, at_sensitivity, best_f1, threshold_of, youden

units = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=30).map(
    lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True))
)


def made(seed=1, n=500):
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(int)
    return np.round(label + rng.standard_normal(n), 1), label


def slow(score, label, measure):
    """Return the highest of the scores with the largest measure, in fractions; NaN with one class."""
    n_positive, n_negative = (int((label == one).sum()) for one in (1, 0))
    if not n_positive or not n_negative:
        return float("nan")
    best = {
        s: measure(int((score[label == 1] >= s).sum()), int((score[label == 0] >= s).sum()), n_positive, n_negative)
        for s in set(score.tolist())
    }
    return max(s for s in best if best[s] == max(best.values()))


@given(units)
def test_youden_takes_the_best_of_all_scores(found):
    wanted = slow(*found, lambda tp, fp, p, n: Fraction(tp, p) - Fraction(fp, n))
    assert youden(*found) == pytest.approx(wanted, nan_ok=True)


@given(units)
def test_f1_takes_the_best_of_all_scores(found):
    wanted = slow(*found, lambda tp, fp, p, n: Fraction(2 * tp, p + tp + fp))
    assert best_f1(*found) == pytest.approx(wanted, nan_ok=True)


@given(units, st.integers(1, 20))
def test_a_fixed_sensitivity_takes_the_highest_score_that_has_it(found, twentieths):
    wanted = slow(*found, lambda tp, fp, p, n: Fraction(tp, p) >= Fraction(twentieths, 20))
    assert at_sensitivity(*found, twentieths / 20) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thresholds_reach_what_the_curves_of_scikit_learn_reach(seed):
    score, label = made(seed)
    fpr, tpr, thresholds = roc_curve(label, score, drop_intermediate=False)
    assert youden(score, label) == thresholds[np.argmax(tpr - fpr)]
    assert at_sensitivity(score, label, 0.9) == thresholds[np.argmax(tpr >= 0.9)]
    precision, recall, _ = precision_recall_curve(label, score)
    f1 = f1_score(label, score >= best_f1(score, label))
    assert f1 == pytest.approx(np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def test_the_rule_chooses_and_the_order_of_the_units_does_not_matter():
    score, label = made()
    order = np.random.default_rng(4).permutation(len(score))
    found = [threshold_of(score, label, rule, sensitivity=0.8) for rule in RULES]
    assert found == [youden(score, label), at_sensitivity(score, label, 0.8), best_f1(score, label)]
    assert found == [threshold_of(score[order], label[order], rule, sensitivity=0.8) for rule in RULES]


@pytest.mark.parametrize("rule", RULES)
def test_one_class_has_no_threshold(rule):
    for score, label in (([], []), ([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0])):
        assert np.isnan(threshold_of(score, label, rule))
    assert threshold_of([2.0, 2.0], [0, 1], rule) == 2


def test_rules_and_units_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rule 'best'; wanted one of"):
        threshold_of([1, 2], [0, 1], "best")
    with pytest.raises(ValueError, match="sensitivity 0; wanted above 0, at most 1"):
        threshold_of([1, 2], [0, 1], "sensitivity", sensitivity=0)
    with pytest.raises(ValueError, match="scores must be finite and labels 0 or 1"):
        youden([1, np.inf], [0, 1])
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        best_f1([1, 2], [0])
