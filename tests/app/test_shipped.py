"""The model that ships: it opens, and tells rhythms apart by the command that the README gives."""

import csv

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
