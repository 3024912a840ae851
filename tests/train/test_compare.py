import csv
import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from scipy.stats import norm, t
from sklearn.metrics import f1_score

from anyecg.loaders.errors import ModelError
from anyecg.train.compare import COLUMNS, Compared, compare, holm
from anyecg.train.evaluate import bootstrap_auroc, evaluate
from anyecg.train.evaluate_config import EvaluateConfig
from anyecg.train.intervals import mean_of
from anyecg.train.scores import Scores, read_scores
from anyecg.train.units import one_target, units_of

from ..conftest import anyecg
from .made import card_of, cohort_of, predict_made

CONFIG = EvaluateConfig(n_replicates=120)


@pytest.fixture(scope="module")
def trained(small_run, small_index):
    return read_scores(small_run / "scores.h5", small_index)


@pytest.fixture(scope="module")
def made(small_index, tmp_path_factory):
    """Return the scores of a model of exclusive labels that joins windows."""
    return predict_made(
        tmp_path_factory.mktemp("made"), small_index, head="exclusive", join="features", windows_per_sample=3
    )  # fmt: skip


def compared(index, *models, config=CONFIG, horizon_min=60):
    models = [Compared(f"model {number}", *model) for number, model in enumerate(models)]
    return compare(index, models, config, horizon_min=horizon_min, seed=4, progress=lambda n: None)


def rows_of(document, **wanted):
    return [row for row in document["rows"] if all(row[key] == value for key, value in wanted.items())]


def test_a_run_beside_itself_differs_by_exactly_nothing(small_index, made):
    document = compared(small_index, (made, "draw"), (made, "draw"))
    own, again = (rows_of(document, model=f"model {number}") for number in (0, 1))
    assert len(own) == 4 + 4 + 5
    for first, second in zip(own, again, strict=True):
        assert [first[key] for key in COLUMNS[3:9]] == [second[key] for key in COLUMNS[3:9]]
        assert [second[key] for key in ("difference", "difference_low", "difference_high", "z", "p")] == [0, 0, 0, 0, 1]
        assert first["difference"] is first["p"] is None


def test_values_and_differences_are_those_of_the_same_replicates(small_index, trained, made):
    document = compared(small_index, (trained, "draw"), (made, "draw-head"))
    differences = []
    for number, target in enumerate(small_index.targets):
        alone = []
        for scores, level in ((trained, "draw"), (made, "draw-head")):
            units = units_of(small_index, scores, "test", 60, level)
            one = one_target(units, number, level)
            label, patient = one.label, units.patient[one.rows]
            alone.append(bootstrap_auroc(one.logit, label, patient, n_replicates=120, seed=4))
        first, second = rows_of(document, target=target, metric="auroc")
        for row, estimate in zip((first, second), alone, strict=True):
            assert [row[key] for key in ("value", "value_low", "value_high")] == pytest.approx(
                [estimate.value, estimate.low, estimate.high]
            )
        change = alone[1].replicates - alone[0].replicates
        spread = np.nanstd(change, ddof=1)
        df = min(len(set(patient[label == 1])), len(set(patient[label == 0]))) - 1
        statistic = (alone[1].value - alone[0].value) / spread
        half = t.ppf(0.975, df) * spread
        wanted = [alone[1].value - alone[0].value, statistic, 2 * norm.sf(abs(statistic))]
        assert [second[key] for key in ("difference", "z", "p")] == pytest.approx(wanted)
        assert second["difference_high"] - second["difference"] == pytest.approx(half)
        differences.append((wanted[0], change, df))
    values, replicates, dfs = zip(*differences, strict=True)
    _, mean = rows_of(document, target="mean", metric="auroc")
    wanted, change, df = mean_of(values, np.stack(replicates, axis=1), dfs)
    assert mean["difference"] == pytest.approx(wanted)
    assert mean["difference_high"] - mean["difference"] == pytest.approx(t.ppf(0.975, df) * change.std(ddof=1))


def test_paired_intervals_are_narrower_than_those_of_like_models_apart(small_index, made):
    rng = np.random.default_rng(1)
    like = {split: (rows, out + 0.01 * rng.standard_normal(out.shape)) for split, (rows, out) in made.windows.items()}
    document = compared(small_index, (made, "window"), (replace(made, windows=like), "window"))
    for row in rows_of(document, model="model 1", metric="auroc"):
        assert row["difference_high"] - row["difference_low"] < 0.7 * (row["value_high"] - row["value_low"])


def test_values_are_those_of_evaluate(small_index, trained, made, tmp_path):
    for level in ("window", "draw", "visit"):
        config = EvaluateConfig(n_replicates=120, levels=[level])
        table = evaluate(
            tmp_path, small_index, trained, config, cohort_of(small_index), seed=4, comm=MPI.COMM_SELF, stage_hash="0"
        )["rows"]  # fmt: skip
        document = compared(small_index, (trained, level), (made, level))
        for row in table:
            for metric in ("auroc", "auprc"):
                first = rows_of(document, target=row["target"], metric=metric)[0]
                counts = ("n", "n_positive", "n_patients")
                assert [first[key] for key in counts] == [row[key] for key in counts]
                for end in ("", "_low", "_high"):
                    assert first[f"value{end}"] == row[f"{metric}{end}"]


def test_units_that_one_model_has_not_scored_count_for_none(small_index, trained, made):
    rows, outputs = trained.windows["test"]
    some = outputs.copy()
    some[:10] = np.nan
    partly = replace(trained, windows={**trained.windows, "test": (rows, some)})
    document = compared(small_index, (made, "window"), (partly, "window"))
    for number, target in enumerate(small_index.targets):
        units = units_of(small_index, partly, "test", 60, "window")
        n = len(one_target(units, number, "window").rows)
        assert n < len(units.draw)
        assert [row["n"] for row in rows_of(document, target=target, metric="auroc")] == [n, n]


def test_p_values_are_adjusted_over_the_targets_of_each_metric(small_index, trained, made):
    document = compared(small_index, (trained, "draw"), (made, "draw"), (made, "draw-head"))
    for model in ("model 1", "model 2"):
        for metric in ("auroc", "auprc"):
            rows = [row for row in rows_of(document, model=model, metric=metric) if row["target"] != "mean"]
            assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows]).tolist()
            assert rows_of(document, model=model, metric=metric, target="mean")[0]["p_holm"] is None


def test_holm_agrees_with_the_step_down_rule_written_slowly():
    rng = np.random.default_rng(3)
    for n in range(1, 12):
        p = rng.random(n) ** 3
        wanted = np.empty(n)
        least = 0.0
        for k, place in enumerate(sorted(range(n), key=lambda place: p[place])):
            least = max(least, min(1, (n - k) * p[place]))
            wanted[place] = least
        np.testing.assert_allclose(holm(p), wanted)
    np.testing.assert_array_equal(holm([0.04, np.nan, 0.01]), [0.04, np.nan, 0.02])


def test_models_of_exclusive_labels_are_compared_by_f1(small_index, made, tmp_path):
    other = predict_made(tmp_path, small_index, head="exclusive", seed=9)
    config = EvaluateConfig(n_replicates=120, f1_classes=list(small_index.targets[:2]))
    document = compared(small_index, (made, "draw-head"), (other, "draw"), config=config)
    wanted = []
    for scores, level in ((made, "draw-head"), (other, "draw")):
        units = units_of(small_index, scores, "test", 60, level)
        known = np.flatnonzero((units.label == 1).sum(1) == 1)
        true, called = units.label[known].argmax(1), units.logit[known].argmax(1)
        wanted.append(f1_score(true, called, labels=[0, 1], average="macro", zero_division=0))
    first, second = rows_of(document, target="mean", metric="f1")
    assert [first["value"], second["value"]] == pytest.approx(wanted)
    assert second["difference"] == pytest.approx(wanted[1] - wanted[0])
    assert [row["target"] for row in rows_of(document, metric="f1", model="model 1")] == [
        *small_index.targets, "mean", "all",
    ]  # fmt: skip


def test_regressions_are_compared_by_error_and_correlation(tiny_index):
    windows = tiny_index.windows_of("test")
    card = card_of(tiny_index, head="regression", value_mean=[0.0], value_sd=[1.0])
    rng = np.random.default_rng(1)
    first, second = (Scores(card, {"test": (windows, rng.random((len(windows), 1)))}, {}) for _ in range(2))
    document = compared(tiny_index, (first, "draw"), (second, "draw"))
    metrics = [(row["target"], row["metric"]) for row in rows_of(document, model="model 0")]
    assert metrics == [("c", "mae"), ("c", "r2"), ("mean", "r2"), ("c", "spearman"), ("mean", "spearman")]
    with pytest.raises(ModelError, match="heads multilabel, regression have no metric in common"):
        compared(tiny_index, (first, "draw"), (replace(second, card=card_of(tiny_index)), "draw"))


def test_targets_that_not_all_models_have_are_left_out_and_named(small_index, trained, made):
    few = list(small_index.targets[1:])
    part = Scores(
        {**made.card, "targets": few}, {split: (rows, out[:, 1:]) for split, (rows, out) in made.windows.items()}, {}
    )
    document = compared(small_index, (trained, "draw"), (part, "draw"))
    assert document["left_out"] == [small_index.targets[0]]
    assert list(dict.fromkeys(row["target"] for row in document["rows"])) == [*few, "mean"]


def test_levels_of_other_units_are_refused(small_index, trained, made):
    with pytest.raises(ModelError, match="levels window, draw-head count other units; take one for all"):
        compared(small_index, (trained, "window"), (made, "draw-head"))


@pytest.fixture(scope="module")
def runs(small_run, small_index, tmp_path_factory):
    """Return a folder with runs a and b of the same shards."""
    folder = tmp_path_factory.mktemp("runs")
    for name in "ab":
        (folder / name).mkdir()
        (folder / name / "shards").symlink_to(small_run / "shards")
        for file in ("config.toml", "scores.h5"):
            shutil.copy(small_run / file, folder / name)
    predict_made(folder / "b", small_index, join="features", windows_per_sample=2, n_parameters=1_262_099)
    return folder


def test_the_command_prints_a_table_and_writes_it_as_csv_and_json(runs):
    done = anyecg("compare", "a", "b:draw-head", "b", "--horizon", "30", "--out", "out.csv", cwd=runs)
    assert done.returncode == 0, done.stderr
    for part in (
        "A  a",
        "B  b:draw-head  draw-head  resnet   1,262,099",
        "B - A",
        "p Holm",
        "200 replicates",
        "30 min",
    ):
        assert part in done.stdout, done.stdout
    with (runs / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 3 * 2 * (3 + 1)
    document = json.loads((runs / "out.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (document["format"], document["horizon_min"], len(document["rows"])) == ("anyecg-comparison", 30, len(rows))
    assert [model["name"] for model in document["models"]] == ["a", "b:draw-head", "b"]
    assert "compare done=3" in done.stderr


def test_the_same_run_twice_keeps_two_names(runs):
    done = anyecg("compare", "a", "a", "--out", "twice.csv", cwd=runs)
    assert done.returncode == 0, done.stderr
    document = json.loads((runs / "twice.json").read_text())
    assert [model["name"] for model in document["models"]] == ["a", "a (2)"]
    assert {row["difference"] for row in document["rows"]} == {None, 0.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "compare wants two or more run folders"),
        (["a", "none"], "none: no such run folder; levels behind a colon are window, draw, visit, draw-head"),
        (["a", "none:draw"], "none/scores.h5: no scores; run 'anyecg predict'"),
        (["a", "other"], "other: its scores are of other shards than those of a; compare runs of one cohort"),
        (["a:draw-head", "b"], "level 'draw-head' is that of a head which joins windows"),
        (["a:window", "b"], "levels window, draw count other units"),
        (["a", "b", "--out", "table.txt"], "table.txt: wanted the path of a CSV to write"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_2(runs, arguments, said):
    if "other" in arguments and not (runs / "other").exists():
        shutil.copytree(runs / "a", runs / "other", symlinks=True)
        with h5py.File(runs / "other/scores.h5", "r+") as file:
            file.attrs["index_hash"] = "other"
    done = anyecg("compare", *arguments, cwd=runs)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr
    assert not (runs / "compare.csv").exists()
