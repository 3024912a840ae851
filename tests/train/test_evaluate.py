import csv
import json
import shutil

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from anyecg.train.evaluate import HEAD, bootstrap_auroc, read_results, youden_threshold
from anyecg.train.intervals import interval_of
from anyecg.train.predict import read_scores
from anyecg.train.units import one_target, units_of

from ..conftest import on_ranks


def scored(n=400, n_patients=80, seed=1):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, n_patients, n)
    label = rng.integers(-1, 2, n)
    return label + rng.standard_normal(n) + 0.5 * rng.standard_normal(n_patients)[cluster], label, cluster


def test_bootstrap_auroc_gives_the_auroc_of_measured_units():
    score, label, cluster = scored()
    found = bootstrap_auroc(score, label, cluster, n_replicates=300)
    assert found.value == pytest.approx(roc_auc_score(label[label >= 0], score[label >= 0]), abs=1e-12)
    assert found.low < found.value < found.high
    assert (found.n_valid, found.replicates.shape) == (300, (300,))


def test_intervals_follow_their_formulas():
    score, label, cluster = scored()
    found = bootstrap_auroc(score, label, cluster, n_replicates=500, seed=3)
    n_fewer = min(len(set(cluster[label == 1])), len(set(cluster[label == 0])))
    half = t.ppf(0.975, n_fewer - 1) * found.replicates.std(ddof=1) / (found.value * (1 - found.value))
    logit = np.log(found.value / (1 - found.value))
    assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-(logit + side * half))) for side in (-1, 1)))
    percentile = bootstrap_auroc(score, label, cluster, n_replicates=500, seed=3, interval="percentile")
    assert (percentile.low, percentile.high) == pytest.approx(tuple(np.quantile(found.replicates, [0.025, 0.975])))


def test_order_and_naming_of_units_do_not_matter():
    score, label, cluster = scored()
    order = np.random.default_rng(2).permutation(len(score))
    first = bootstrap_auroc(score, label, cluster, n_replicates=50)
    second = bootstrap_auroc(score[order], label[order], cluster[order], n_replicates=50)
    np.testing.assert_array_equal(first.replicates, second.replicates)
    text = [bootstrap_auroc(score, label, cluster.astype(str), n_replicates=50) for _ in range(2)]
    np.testing.assert_array_equal(text[0].replicates, text[1].replicates)


def test_patients_widen_the_interval_when_their_units_agree():
    rng = np.random.default_rng(4)
    patient = np.repeat(np.arange(40), 30)
    label = np.repeat(rng.integers(0, 2, 40), 30)
    score = label + np.repeat(rng.standard_normal(40), 30) + 0.1 * rng.standard_normal(1200)
    wide, narrow = (bootstrap_auroc(score, label, cluster) for cluster in (patient, np.arange(1200)))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_one_class_has_no_number_and_a_perfect_score_no_interval():
    alone = bootstrap_auroc([0.1, 0.2], [1, 1], [1, 2], n_replicates=10)
    assert np.isnan([alone.value, alone.low, alone.high]).all()
    assert alone.n_valid == 0
    perfect = bootstrap_auroc(np.arange(20.0), np.arange(20) >= 10, np.arange(20), n_replicates=50)
    assert perfect.value == 1
    assert np.isnan([perfect.low, perfect.high]).all()
    assert np.isnan(interval_of(0.7, np.array([0.6, 0.8]), df=0, level=0.95, interval="logit-t")).all()


def test_coverage_of_the_default_interval_is_near_its_level():
    rng = np.random.default_rng(5)
    truth = 0.7602  # area for a shift of one standard deviation, Phi(1 / sqrt 2)
    inside = 0
    for trial in range(200):
        label = np.arange(60) < 15
        found = bootstrap_auroc(rng.standard_normal(60) + label, label, np.arange(60), n_replicates=200, seed=trial)
        inside += found.low <= truth <= found.high
    assert 180 <= inside <= 200


def test_youden_takes_the_best_threshold_of_all():
    score, label, _ = scored()
    score, label = np.round(score[label >= 0], 1), label[label >= 0]
    gains = {s: (score[label == 1] >= s).mean() + (score[label == 0] < s).mean() for s in set(score)}
    assert gains[youden_threshold(score, label)] == pytest.approx(max(gains.values()))
    assert np.isnan(youden_threshold(np.ones(3), np.ones(3)))


def test_levels_agree_with_a_slow_count(small_run, small_index):
    scores = read_scores(small_run / "scores.h5", small_index)
    tables = small_index.tables
    logit_of = dict(zip(scores.windows["test"][0].tolist(), scores.windows["test"][1], strict=True))
    draws: dict = {}
    for pair in small_index.pairs_of("test", 60):
        draws.setdefault(int(tables["pair_draw"][pair]), []).append(logit_of[int(tables["pair_window"][pair])])
    units = units_of(small_index, scores, "test", 60, "draw")
    assert units.draw.tolist() == sorted(draws)
    np.testing.assert_allclose(units.logit, [np.mean(draws[draw], axis=0) for draw in sorted(draws)], atol=1e-5)
    for target in range(3):
        kept = one_target(units, target, "draw")
        assert units.draw[kept].tolist() == [d for d in sorted(draws) if tables["draw_labels"][d, target] >= 0]


def test_results_have_the_agreed_columns_and_true_counts(small_run, small_index):
    with (small_run / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[:7] == HEAD
    assert tuple(rows[0])[7:10] == ("auroc", "auroc_low", "auroc_high")
    assert [(row["target"], row["level"]) for row in rows] == [
        (target, level) for level in ("window", "draw", "visit") for target in small_index.targets
    ]
    visits = np.flatnonzero(np.asarray(small_index.tables["visit_split"]) == 2)
    for row in rows:
        column = small_index.targets.index(row["target"])
        labels = np.asarray(small_index.tables["draw_labels"])[
            np.isin(small_index.tables["draw_visit"], visits), column
        ]
        if row["level"] == "draw":
            assert (int(row["n"]), int(row["n_positive"])) == ((labels >= 0).sum(), (labels == 1).sum())
    # Each record is its own visit with one draw, so both levels must agree.
    for draw, visit in zip(rows[3:6], rows[6:9], strict=True):
        assert {**draw, "level": ""} == {**visit, "level": ""}
    assert len(read_results(small_run / "results.json")) == 9


def test_tables_are_the_same_bytes_on_any_number_of_ranks(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    wanted = (run / "results.csv").read_bytes(), (run / "results.json").read_bytes()
    for n_ranks in (1, 3, 4):
        (run / "results.csv").unlink()
        done = on_ranks(n_ranks, "evaluate", run / "config.toml", f"folder={run}")
        assert done.returncode == 0, done.stderr
        assert ((run / "results.csv").read_bytes(), (run / "results.json").read_bytes()) == wanted


def test_results_json_is_strict_json(small_run):
    json.loads((small_run / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
