"""The model that ships: it opens, and tells rhythms apart by the command that the README gives."""

import csv
import json

from sklearn.metrics import roc_auc_score

from ..conftest import DEMO, REPOSITORY, anyecg


def test_the_shipped_model_scores_any_folder_of_records(tmp_path):
    model = REPOSITORY / "app" / "cinc2017" / "model"
    done = anyecg("predict", "--model", model, "--input", DEMO / "records", "--out", tmp_path / "scores.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["start_s"]]
    with (DEMO / "labels.csv").open(newline="") as file:
        fibrillates = {row["record"]: row["atrial_fibrillation"] for row in csv.DictReader(file)}
    assert sorted(row["record"] for row in rows) == sorted(fibrillates)
    assert all(abs(sum(float(row[name]) for name in "NAO~") - 1) < 1e-5 for row in rows)
    known = [row for row in rows if fibrillates[row["record"]] in ("0", "1")]
    labels, scores = [fibrillates[row["record"]] == "1" for row in known], [float(row["A"]) for row in known]
    assert roc_auc_score(labels, scores) > 0.97


def test_the_results_beside_the_shipped_model_are_of_its_weights_and_of_recordings_it_was_not_trained_on():
    home = REPOSITORY / "app" / "cinc2017"
    card, results = (json.loads((home / name).read_text()) for name in ("model/card.json", "results.json"))
    assert results["weights_sha256"] == card["weights_sha256"]
    # The very shards it was trained on, whose test split the results are of; a patient is in one split.
    assert results["index_hash"] == card["index_hash"]
    with (home / "labels.csv").open(newline="") as file:
        n_records = sum(1 for _ in csv.DictReader(file))
    of_records = [row for row in results["rows"] if row["level"] == "draw-head"]
    assert [row["target"] for row in of_records] == card["targets"]
    assert {row["n"] for row in of_records} == {round(0.2 * n_records)} == {1361}
    with (home / "results.csv").open(newline="") as file:
        shown = {row["target"]: row["auroc"] for row in csv.DictReader(file) if row["level"] == "draw-head"}
    assert shown == {row["target"]: f"{row['auroc']:.6f}" for row in of_records}
    assert abs(float(shown["A"]) - 0.978) < 5e-4
