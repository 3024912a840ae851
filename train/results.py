"""The tables of an evaluation as files: CSV for people and programs, one JSON with all of them."""

import csv
from pathlib import Path

import numpy as np

from anyecg.loaders.errors import ModelError
from anyecg.loaders.files import read_document, remove, replacing, write_document
from anyecg.train.measures import METRICS

HEAD = ("target", "horizon_min", "level", "n", "n_positive", "n_patients", "n_patients_positive")
# Of results.csv; the other tables have files where they have rows.
COLUMNS = (
    *HEAD, *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")), "threshold", "n_replicates",
    "auroc_se", "auroc_se_delong", "auroc_se_clustered", "band", "few_positive", "paper_auroc", "internal_auroc",
    "internal_low", "internal_high", "n_unscored", "reason",
)  # fmt: skip
OTHER_TABLES = ("macro", "calibration", "subgroups", "baselines", "decisions", "regression")


def write_results(folder, tables, document):
    """Write ``results.csv``, a CSV for each other table with rows, and ``results.json`` last."""
    folder = Path(folder)
    write_table(folder / "results.csv", tables["rows"], COLUMNS)
    remove(*(folder / f"{name}.csv" for name in OTHER_TABLES if not tables[name]))
    for name in OTHER_TABLES:
        if tables[name]:
            write_table(folder / f"{name}.csv", tables[name])
    document = {**document, **{name: [without_nan(row) for row in rows] for name, rows in tables.items()}}
    write_document(folder / "results.json", "anyecg-results", document)


def write_table(path, rows, columns=None):
    """Write rows as a CSV, missing numbers as empty cells."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value):
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6f}"
    return value


def without_nan(row):
    """Return a row as strict JSON has it, missing numbers as None."""
    return {key: None if value != value else value for key, value in row.items()}


def _document(path):
    return read_document(
        path, "anyecg-results", error=ModelError, missing=f"{path}: no results; run 'anyecg evaluate' first"
    )  # fmt: skip


def check_same_model(path, card):
    """Refuse results of another model, whose thresholds would mean nothing here.

    Raises
    ------
    ModelError
    """
    found = _document(path).get("weights_sha256")
    if found != card["weights_sha256"]:
        raise ModelError(
            f"{path}: results of another model (weights {str(found)[:12]}, here {card['weights_sha256'][:12]}); "
            "give those of the model in predict.model as evaluate.internal"
        )


def read_results(path, table="rows"):
    """Read the rows of a table of ``results.json``, missing numbers as NaN.

    Raises
    ------
    ModelError
        No results there, or damaged ones.
    """
    document = _document(path)
    return [{key: float("nan") if value is None else value for key, value in row.items()} for row in document[table]]
