import csv
import json
import logging
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI
from scipy.special import expit, softmax
from scipy.stats import spearmanr, t
from sklearn.metrics import f1_score, mean_absolute_error, r2_score, roc_auc_score

from anyecg.loaders.cohort import write_cohort
from anyecg.loaders.errors import ConfigError, ModelError
from anyecg.loaders.index import write_index
from anyecg.loaders.shard_file import describe_shard
from anyecg.loaders.stream import open_index
from anyecg.loaders.values import draw_values
from anyecg.train.added import MODELS
from anyecg.train.delong import clustered_se, delong_se
from anyecg.train.evaluate import bootstrap_auroc, evaluate
from anyecg.train.evaluate_config import EvaluateConfig
from anyecg.train.heads import ranked_of, scores_of
from anyecg.train.intervals import interval_of
from anyecg.train.measures import METRICS
from anyecg.train.people import people_of
from anyecg.train.results import read_results
from anyecg.train.scores import read_scores
from anyecg.train.thresholds import threshold_of
from anyecg.train.units import cluster_keys, clusters_of, one_target, truth_of, units_of

from ..conftest import anyecg, on_ranks
from ..loaders.tiny import write_tiny_shard
from .made import card_of, cohort_of, predict_made

HEAD = ("target", "horizon_min", "level", "n", "n_positive", "n_patients", "n_patients_positive")


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
        kept = one_target(units, target, "draw").rows
        assert units.draw[kept].tolist() == [d for d in sorted(draws) if tables["draw_labels"][d, target] >= 0]


def test_results_have_the_agreed_columns_and_true_counts(small_run, small_index):
    rows = csv_rows(small_run / "results.csv")
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
    names = ("results.csv", "results.json", "baselines.csv", "heart.h5")
    wanted = [(run / name).read_bytes() for name in names]
    for n_ranks, threads in ((1, 1), (3, 2), (5, 1)):
        for name in names:
            (run / name).unlink()
        done = on_ranks(n_ranks, "evaluate", run / "config.toml", f"folder={run}", OMP_NUM_THREADS=str(threads))
        assert done.returncode == 0, done.stderr
        assert [(run / name).read_bytes() for name in names] == wanted


def test_results_json_is_strict_json(small_run):
    json.loads((small_run / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.fixture(scope="module")
def exclusive(small_index, tmp_path_factory):
    """Return the scores of a model of exclusive labels that joins windows."""
    folder = tmp_path_factory.mktemp("exclusive")
    return predict_made(folder, small_index, head="exclusive", join="features", windows_per_sample=3)


def evaluated(folder, index, scores, **config):
    folder.mkdir(exist_ok=True)
    config = EvaluateConfig(n_replicates=50, **config)
    return evaluate(folder, index, scores, config, cohort_of(index), seed=1, comm=MPI.COMM_SELF, stage_hash="0")


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_log_odds_of_exclusive_labels_rank_as_their_softmax_and_tell_apart_what_rounds_to_one(small_index):
    output = np.random.default_rng(1).standard_normal((50, 3)) * 3
    card = card_of(small_index, head="exclusive")
    np.testing.assert_allclose(expit(ranked_of(output, card)), softmax(output, axis=1), atol=1e-12)
    np.testing.assert_allclose(scores_of(output, card), softmax(output, axis=1))
    sure = ranked_of([[90.0, 0, 0], [95.0, 0, 0], [np.nan, 0, 0]], card)
    assert sure[1, 0] > sure[0, 0]
    assert np.isnan(sure[2]).all()
    np.testing.assert_array_equal(ranked_of(output, card_of(small_index)), output)


def test_the_level_draw_head_has_the_joining_heads_own_outputs(small_index, exclusive):
    units = units_of(small_index, exclusive, "test", 30, "draw-head")
    draws, outputs = exclusive.draws["test", 30]
    np.testing.assert_array_equal(units.draw, draws)
    np.testing.assert_allclose(expit(units.logit), softmax(outputs.astype(float), axis=1), atol=1e-6)
    mean = units_of(small_index, exclusive, "test", 30, "draw")
    np.testing.assert_array_equal(mean.draw, draws)
    assert np.abs(mean.logit - units.logit).max() > 1e-3
    assert one_target(units, 0, "draw-head").rows.tolist() == one_target(mean, 0, "draw").rows.tolist()


def test_draw_head_of_a_model_that_joins_no_windows_is_refused_in_one_line(small_run, small_index, tmp_path):
    scores = read_scores(small_run / "scores.h5", small_index)
    with pytest.raises(ConfigError, match="'draw-head' is that of a head which joins windows: the model's join is"):
        evaluated(tmp_path, small_index, scores, levels=["draw-head"])
    run = shutil.copytree(small_run, tmp_path / "run")
    for stage in ("evaluate", "run"):
        done = anyecg(stage, run / "config.toml", f"folder={run}", 'evaluate.levels=["draw", "draw-head"]')
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "take 'draw-head' out of evaluate.levels" in done.stderr


def test_exclusive_labels_get_one_versus_rest_rows_and_decisions(small_index, exclusive, tmp_path):
    levels = ["window", "draw", "draw-head", "visit"]
    classes = list(small_index.targets[:2])
    tables = evaluated(tmp_path, small_index, exclusive, levels=levels, f1_classes=classes)
    assert [len(tables[name]) for name in ("rows", "decisions", "regression")] == [12, 20, 0]
    for level in levels:
        units = units_of(small_index, exclusive, "test", 60, level)
        known = np.flatnonzero((units.label == 1).sum(1) == 1)
        true, called = units.label[known].argmax(1), units.logit[known].argmax(1)
        wanted = [*f1_score(true, called, average=None, labels=range(3), zero_division=0), (true == called).mean()]
        found = [row for row in tables["decisions"] if row["level"] == level]
        assert [row["target"] for row in found] == [*small_index.targets, "all", "mean"]
        np.testing.assert_allclose([row["f1"] for row in found], [*wanted, np.mean(wanted[:2])], atol=1e-12)
    units = units_of(small_index, exclusive, "test", 60, "draw")
    for number, row in enumerate(tables["rows"][3:6]):
        one = one_target(units, number, "draw")
        label, score = one.label, expit(one.logit)
        assert row["auroc"] == pytest.approx(roc_auc_score(label, score))
    assert {tuple(row)[:5] for row in csv_rows(tmp_path / "decisions.csv")} == {
        ("target", "horizon_min", "level", "n", "n_positive")
    }
    assert len(read_results(tmp_path / "results.json", "decisions")) == 20
    assert not (tmp_path / "regression.csv").exists()


def test_tables_of_another_head_do_not_stay_behind(small_run, small_index, exclusive, tmp_path):
    evaluated(tmp_path, small_index, exclusive)
    assert (tmp_path / "decisions.csv").exists()
    evaluated(tmp_path, small_index, read_scores(small_run / "scores.h5", small_index))
    assert not (tmp_path / "decisions.csv").exists()
    assert read_results(tmp_path / "results.json", "decisions") == []


def test_classes_that_are_no_targets_are_refused(small_index, exclusive, tmp_path):
    with pytest.raises(ConfigError, match="'AF' is none of the targets; found atrial_fibrillation"):
        evaluated(tmp_path, small_index, exclusive, f1_classes=["AF"])


def of_ranks(run, index, **card):
    """Return the bytes of the results of 1 and 3 ranks, from the scores of a made-up model."""
    predict_made(run, index, **card)
    found = []
    for n_ranks in (1, 3):
        # Started as by another anyecg that has checked the stages before: the made-up model is of no such stage.
        done = on_ranks(n_ranks, "evaluate", run / "config.toml", f"folder={run}", ANYECG_LOCKED="1")
        assert done.returncode == 0, done.stderr
        found.append({path.name: path.read_bytes() for path in run.glob("*.*") if path.suffix in (".csv", ".json")})
    return found


def test_decisions_are_the_same_bytes_on_any_number_of_ranks(small_run, small_index, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    found = of_ranks(run, small_index, head="exclusive")
    assert "decisions.csv" in found[0]
    assert found[0] == found[1]


def write_shards(folder, sizes):
    """Write tiny shards of (split, windows, visits), one draw in ten without values, and return their index."""
    described = []
    for number, (split, n_windows, n_visits) in enumerate(sizes):
        path, first = folder / f"shard-{number:05d}.h5", 1000 * number
        write_tiny_shard(path, split, n_windows, seed=number, first_patient=first, n_visits=n_visits, missing=0.1)
        described.append(describe_shard(path))
    counts = {"windows": sum(n_windows for _, n_windows, _ in sizes)}
    write_index(folder, described, {"stage_hash": "3", "cohort_hash": "4", "counts": counts})
    return open_index(folder)


@pytest.fixture(scope="module")
def valued(tmp_path_factory):
    """Return a run folder of tiny shards with measured values, one patient in ten without, and a regression on them."""
    run = tmp_path_factory.mktemp("valued") / "run"
    (run / "shards").mkdir(parents=True)
    index = write_shards(run / "shards", (("train", 64, 40), ("val", 100, 40), ("test", 400, 40)))
    (run / "config.toml").write_text("[evaluate]\nlevels = ['window', 'draw', 'visit']\nn_replicates = 100\n")
    write_cohort(run / "cohort", cohort_of(index), "2")
    return run, index, predict_made(run, index, head="regression", value_mean=[0.5], value_sd=[0.3])


def test_values_that_were_not_measured_do_not_count(valued, tmp_path):
    _, index, scores = valued
    values = draw_values(index)[:, 0]
    tables = evaluated(tmp_path, index, scores, levels=["window", "draw", "visit"])
    assert (tables["rows"], tables["decisions"]) == ([], [])
    assert csv_rows(tmp_path / "results.csv") == []
    assert [row["level"] for row in tables["regression"]] == ["window", "draw", "visit"]
    for row in tables["regression"]:
        units = units_of(index, scores, "test", 60, row["level"])
        rows = one_target(units, 0, row["level"]).rows
        assert not np.isnan(values[units.draw[rows]]).any()
        true, found = values[units.draw[rows]].astype(float), units.logit[rows, 0]
        assert (row["target"], row["n"]) == ("c", len(rows))
        assert row["mae"] == pytest.approx(mean_absolute_error(true, found))
        assert row["r2"] == pytest.approx(r2_score(true, found))
        assert row["spearman"] == pytest.approx(spearmanr(true, found).statistic)
        for metric in ("mae", "r2", "spearman"):
            assert row[f"{metric}_low"] < row[metric] < row[f"{metric}_high"]
    assert np.isnan(values[index.shards_of("test")[0].draws]).any()


def test_a_draws_estimate_is_in_the_units_of_its_component(valued):
    _, index, scores = valued
    window, output = scores.windows["test"]
    units = units_of(index, scores, "test", 60, "window")
    np.testing.assert_allclose(units.logit, 0.5 + 0.3 * output[np.searchsorted(window, units.window)].astype(float))


def test_components_that_the_shards_do_not_have_are_refused(valued):
    _, index, scores = valued
    with pytest.raises(ModelError, match="no values of potassium, which the model estimates; found c"):
        truth_of(index, {**scores.card, "targets": ["c", "potassium"]}, ["test"])


def test_regressions_are_the_same_bytes_on_any_number_of_ranks(valued, tmp_path):
    run = shutil.copytree(valued[0], tmp_path / "run")
    found = of_ranks(run, valued[1], head="regression", value_mean=[0.5], value_sd=[0.3])
    assert "regression.csv" in found[0]
    assert found[0] == found[1]


def one_row(tables, name, **where):
    (row,) = [row for row in tables[name] if all(row[key] == value for key, value in where.items())]
    return row


def test_thresholds_are_those_of_the_validation_split_by_the_rule(small_run, small_index, tmp_path):
    scores = read_scores(small_run / "scores.h5", small_index)
    units = units_of(small_index, scores, "val", 60, "window")
    for rule in ("youden", "sensitivity", "f1"):
        tables = evaluated(tmp_path, small_index, scores, levels=["window"], threshold=rule, sensitivity=0.8)
        for number, row in enumerate(tables["rows"]):
            one = one_target(units, number, "window")
            assert row["threshold"] == pytest.approx(expit(threshold_of(one.logit, one.label, rule, 0.8)))


def test_results_of_elsewhere_stand_beside_and_give_the_thresholds(small_run, small_index, tmp_path):
    scores = read_scores(small_run / "scores.h5", small_index)
    own = evaluated(tmp_path / "own", small_index, scores, levels=["draw"])
    # Of another cohort there is no validation split.
    rows, outputs = scores.windows["test"]
    without = replace(scores, windows={**scores.windows, "val": (rows[:0], outputs[:0])})
    results = str(tmp_path / "own/results.json")
    tables = evaluated(tmp_path / "other", small_index, scores, levels=["draw"], internal=results)
    for first, second in zip(own["rows"], tables["rows"], strict=True):
        assert second["threshold"] == pytest.approx(first["threshold"], abs=1e-12)
        for name, column in (("auroc", "auroc"), ("low", "auroc_low"), ("high", "auroc_high")):
            np.testing.assert_array_equal(second[f"internal_{name}"], first[column])
        assert np.isnan(first["internal_auroc"])
    with pytest.raises(ModelError, match="windows of val without scores; run 'anyecg predict' again"):
        evaluated(tmp_path / "none", small_index, without, levels=["draw"])
    other = replace(scores, card={**scores.card, "weights_sha256": "0" * 64})
    with pytest.raises(ModelError, match=r"results of another model .weights .*, here 000000000000.; give those of"):
        evaluated(tmp_path / "none", small_index, other, levels=["draw"], internal=results)
    with pytest.raises(ModelError, match="no results; run 'anyecg evaluate' first"):
        evaluated(tmp_path / "none", small_index, scores, internal=str(tmp_path / "nowhere.json"))


def test_subgroups_are_those_of_the_people_and_small_ones_are_not_shown(tmp_path):
    (tmp_path / "shards").mkdir()
    index = write_shards(tmp_path / "shards", (("train", 64, 9), ("val", 64, 9), ("test", 600, 200)))
    scores = predict_made(tmp_path, index)
    cohort, targets = cohort_of(index), scores.card["targets"]
    tables = evaluated(tmp_path, index, scores, levels=["draw"], baselines=False)
    people, units = people_of(index, cohort), units_of(index, scores, "test", 60, "draw")
    shown = [row for row in tables["subgroups"] if not row["reason"].startswith("too small")]
    assert shown
    assert len(shown) < len(tables["subgroups"])
    for row in tables["subgroups"]:
        number = targets.index(row["target"])
        inside = people.groups(row["attribute"])[row["group"]]
        one = one_target(units, number, "draw").only(inside[units.visit])
        patient = units.patient[one.rows]
        if min(len(set(patient[one.label == value])) for value in (0, 1)) < 10:
            assert row["reason"] == "too small: fewer than 10 patients of a class"
            assert all(np.isnan(row[key]) for key in ("n", "n_positive", "n_patients", "auroc", "auroc_low"))
        else:
            alone = bootstrap_auroc(one.logit, one.label, patient, n_replicates=50, seed=1)
            assert [row["n"], row["n_positive"]] == [len(one.rows), one.label.sum()]
            assert [row["auroc"], row["auroc_low"], row["auroc_high"]] == [alone.value, alone.low, alone.high]


def test_baselines_are_judged_on_the_units_of_the_ecg_and_beside_the_best_of_them(small_run, small_index):
    results = small_run / "results.json"
    rows, baselines = read_results(results), read_results(results, "baselines")
    assert [row["model"] for row in baselines[:5]] == list(MODELS)
    assert len(baselines) == 5 * len(rows)
    for own, of_models in zip(rows, np.reshape(baselines, (-1, 5)), strict=True):
        by_model = dict(zip(MODELS, of_models, strict=True))
        for row in of_models:
            assert [row[key] for key in HEAD] == [own[key] for key in HEAD]
        for metric in ("auroc", "auroc_low", "auroc_high", "auprc"):
            np.testing.assert_equal(by_model["ecg"][metric], own[metric])
        best = by_model["age-sex-heart"]
        for model in ("ecg", "ecg+age-sex-heart"):
            np.testing.assert_allclose(by_model[model]["difference"], by_model[model]["auroc"] - best["auroc"])
        assert np.isnan(best["difference"])
    # Rhythm tells atrial fibrillation by itself.
    fibrillation = one_row({"rows": baselines}, "rows", target="atrial_fibrillation", level="window", model="heart")
    assert fibrillation["auroc"] > 0.9


def test_labels_of_the_test_split_change_no_threshold_and_no_fit(small_run, small_index, tmp_path):
    scores, tables = read_scores(small_run / "scores.h5", small_index), dict(small_index.tables)
    label_DC = np.array(tables["draw_labels"])
    in_test = (np.asarray(tables["visit_split"]) == 2)[tables["draw_visit"]]
    flipped = np.where(in_test[:, None] & (label_DC >= 0), 1 - label_DC, label_DC).astype(np.int8)
    other = replace(small_index, tables={**tables, "draw_labels": flipped})
    first, second = (
        evaluated(tmp_path / name, index, scores, levels=["draw"]) for name, index in (("a", small_index), ("b", other))
    )
    assert [row["threshold"] for row in first["rows"]] == [row["threshold"] for row in second["rows"]]
    for before, after in zip(first["baselines"], second["baselines"], strict=True):
        np.testing.assert_allclose(after["auroc"], 1 - before["auroc"], atol=1e-12)


def test_macro_means_are_over_the_targets_that_have_a_value(small_run):
    rows, macro = (read_results(small_run / "results.json", table) for table in ("rows", "macro"))
    assert len(macro) == 3 * len(METRICS)
    for row in macro:
        values = np.array([r[row["metric"]] for r in rows if r["level"] == row["level"]])
        assert row["n_targets"] == (~np.isnan(values)).sum()
        np.testing.assert_allclose(row["value"], np.nanmean(values) if row["n_targets"] else np.nan)


def test_every_row_has_its_band_mark_errors_and_reason(small_run, small_index):
    scores = read_scores(small_run / "scores.h5", small_index)
    for row in read_results(small_run / "results.json"):
        units = units_of(small_index, scores, "test", 60, row["level"])
        one = one_target(units, small_index.targets.index(row["target"]), row["level"])
        cluster = np.unique(units.patient[one.rows], return_inverse=True)[1]
        alone = bootstrap_auroc(one.logit, one.label, cluster_keys(units.patient[one.rows]), n_replicates=200, seed=3)
        assert row["auroc_se"] == pytest.approx(np.nanstd(alone.replicates, ddof=1))
        assert row["auroc_se_delong"] == pytest.approx(delong_se(one.logit, one.label))
        assert row["auroc_se_clustered"] == pytest.approx(clustered_se(one.logit, one.label, cluster))
        assert row["band"] == (">= 0.65" if row["auroc"] >= 0.65 else "0.55-0.65" if row["auroc"] >= 0.55 else "< 0.55")
        assert row["few_positive"] == (row["n_patients_positive"] < 10)
        assert bool(row["reason"]) == np.isnan(row["auroc_low"])


@pytest.mark.parametrize("unit", ["visit", "draw", "window"])
def test_what_is_resampled_is_what_was_asked_for(small_run, small_index, tmp_path, unit):
    scores = read_scores(small_run / "scores.h5", small_index)
    tables = evaluated(tmp_path, small_index, scores, levels=["window"], unit=unit, baselines=False)
    units = units_of(small_index, scores, "test", 60, "window")
    for number, row in enumerate(tables["rows"]):
        one = one_target(units, number, "window")
        key = clusters_of(units, one.rows, unit)
        assert len(np.unique(key)) == (len(key) if unit == "window" else len(np.unique(units.draw[one.rows])))
        alone = bootstrap_auroc(one.logit, one.label, key, n_replicates=50, seed=1)
        np.testing.assert_equal([row["auroc"], row["auroc_low"]], [alone.value, alone.low])


def test_units_without_a_score_or_a_label_are_counted_and_give_no_number(small_run, small_index, tmp_path):
    scores = read_scores(small_run / "scores.h5", small_index)
    rows, outputs = scores.windows["test"]
    some, none = outputs.copy(), outputs.copy()
    some[:5], none[:, 1] = np.nan, np.inf
    n_measured = (units_of(small_index, scores, "test", 60, "window").label_of(1) >= 0).sum()
    for changed, n_unscored in ((some, 5), (none, n_measured)):
        altered = replace(scores, windows={**scores.windows, "test": (rows, changed)})
        tables = evaluated(tmp_path, small_index, altered, levels=["window"], baselines=False)
        row = tables["rows"][1]
        assert row["n_unscored"] == n_unscored
        assert row["n"] + row["n_unscored"] == n_measured
    assert row["reason"] == "no unit has a score"
    assert np.isnan([row["auroc"], row["brier"], row["ece"]]).all()
    unmeasured = np.array(small_index.tables["draw_labels"])
    unmeasured[:, 0], unmeasured[:, 2] = -1, 0
    other = replace(small_index, tables={**small_index.tables, "draw_labels": unmeasured})
    tables = evaluated(tmp_path, other, scores, levels=["window"])
    assert tables["rows"][0]["reason"] == "not measured"
    assert tables["rows"][2]["reason"] == f"one class: 0 of {len(rows)} are positive"
    assert {row["reason"] for row in tables["baselines"] if row["target"] == small_index.targets[0]} != {""}


def test_the_binned_kernel_changes_values_by_nothing_and_intervals_by_little(small_run, small_index, tmp_path, caplog):
    scores = read_scores(small_run / "scores.h5", small_index)
    options = {"levels": ["window"], "baselines": False}
    exact = evaluated(tmp_path, small_index, scores, **options)["rows"]
    with caplog.at_level(logging.INFO):
        binned = evaluated(tmp_path, small_index, scores, kernel="binned", **options)["rows"]
    for first, second in zip(exact, binned, strict=True):
        assert first["auroc"] == second["auroc"]
        np.testing.assert_allclose(second["auroc_low"], first["auroc_low"], atol=0.02)
    assert re.search(r"binned: AUROCs differ by at most [0-9.e+-]+ from the exact ones; bound [0-9.e+-]+", caplog.text)
