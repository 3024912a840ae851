"""Metrics for every target, horizon and level, each with a CI over resampled patients, by MPI ranks."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from anyecg.kernels.auroc import METRICS, Ranking
from anyecg.loaders.files import remove, replacing, write_document
from anyecg.loaders.progress import Progress
from anyecg.loaders.settings import Section
from anyecg.train.decide import check_classes, decision_rows
from anyecg.train.intervals import Bootstrap, interval_of
from anyecg.train.regress import regression_row
from anyecg.train.units import (
    Level,
    check_levels,
    cluster_keys,
    clusters_of,
    fewer_clusters,
    one_target,
    truth_of,
    units_of,
)

HEAD = ("target", "horizon_min", "level", "n", "n_positive", "n_patients", "n_patients_positive")
# Of results.csv; the other tables are there where the model's head has them.
COLUMNS = (
    *HEAD, *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")), "threshold", "n_replicates",
)  # fmt: skip
OTHER_TABLES = ("decisions", "regression")


class EvaluateConfig(Section):
    """Which results are made, and how their intervals."""

    horizons_min: list[Literal[60, 30, 15]] = Field([60], min_length=1, description="horizons: 60, 30, 15 minutes")
    levels: list[Level] = Field(
        ["window", "draw"],
        min_length=1,
        description="units: window, draw (mean logit), draw-head (the head that joins windows), visit (its first draw)",
    )
    f1_classes: list[str] = Field([], description="exclusive labels: classes of the mean F1; empty: all")
    unit: Literal["patient", "visit", "draw", "window"] = Field(
        "patient", description="what is resampled: patient, visit, draw or window (parity with the paper)"
    )
    n_replicates: int = Field(1000, ge=2, le=100_000, description="bootstrap replicates")
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    interval: Literal["logit-t", "percentile"] = Field(
        "logit-t", description="logit-t (R2, errors and correlations: on scales of their own) or percentile"
    )
    ranks: int = Field(2, ge=1, description="MPI ranks that evaluate, started on this machine")


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval.

    Attributes
    ----------
    value, low, high : float
        NaN with one class; the interval alone is NaN where the method gives none (value 0 or 1, one patient a class).
    n_valid : int
        Replicates with both classes.
    replicates : float64 array, shape (replicates,)
        NaN where a replicate has one class.
    """

    value: float
    low: float
    high: float
    n_valid: int
    replicates: np.ndarray


def bootstrap_auroc(score, label, cluster, *, n_replicates=1000, seed=0, level=0.95, interval="logit-t"):
    """Return the AUROC with a CI over Poisson-resampled clusters.

    Parameters
    ----------
    score : float array, shape (n,)
    label : array, shape (n,)
        1, 0; -1 (not measured) is left out.
    cluster : integer or text array, shape (n,)
        Patient of each unit.
    interval : {"logit-t", "percentile"}

    Returns
    -------
    Estimate

    Notes
    -----
    A cluster's weight is a function of (seed, replicate, cluster), so neither order nor number of ranks matters.
    """
    label = np.asarray(label)
    seen = label >= 0
    score, label, cluster = np.asarray(score)[seen], label[seen], cluster_keys(cluster)[seen]
    ranking = Ranking(score, label, cluster)
    value = float(ranking.measure()[0])
    replicates = ranking.replicates(0, n_replicates, seed=seed)[:, 0]
    df = fewer_clusters(label, cluster) - 1
    low, high = interval_of(value, replicates, df=df, level=level, interval=interval)
    return Estimate(value, low, high, int((~np.isnan(replicates)).sum()), replicates)


def youden_threshold(score, label):
    """Return the score at which sensitivity + specificity is largest, the higher one of equals; NaN with one class."""
    order = np.argsort(-score, kind="stable")
    score, positive = score[order], label[order] == 1
    if not positive.any() or positive.all():
        return float("nan")
    gain = np.cumsum(positive) / positive.sum() - np.cumsum(~positive) / (~positive).sum()
    ends = np.append(score[1:] != score[:-1], True)
    return float(score[np.argmax(np.where(ends, gain, -np.inf))])


def _row(units, validation, target, level, config, bootstrap):
    """Return one row of the table; every rank computes its share of the replicates and returns the same row."""
    rows = one_target(units, target, level)
    val_rows = one_target(validation, target, level)
    score, label = units.logit[rows, target], units.label[rows, target]
    threshold = youden_threshold(validation.logit[val_rows, target], validation.label[val_rows, target])
    cluster = clusters_of(units, rows, config.unit)
    ranking = Ranking(score, label, cluster, threshold)
    values, replicates = ranking.measure(), bootstrap.replicates(ranking.replicates)
    patient = units.patient[rows]
    row: dict[str, float] = {
        "n": len(rows), "n_positive": int(label.sum()), "n_patients": len(np.unique(patient)),
        "n_patients_positive": len(np.unique(patient[label == 1])),
    }  # fmt: skip
    df = fewer_clusters(label, cluster) - 1
    for number, metric in enumerate(METRICS):
        row |= bootstrap.columns(metric, values[number], replicates[:, number], df=df)
    row["threshold"] = float(1 / (1 + np.exp(-threshold)))
    row["n_replicates"] = int((~np.isnan(replicates[:, 0])).sum())
    return row


def check_evaluation(config, card):
    """Refuse levels and classes that a model does not have.

    Raises
    ------
    ConfigError
    """
    check_levels(config.levels, card["join"])
    check_classes(config.f1_classes, card["targets"])


def _tables(index, scores, config, bootstrap, progress):
    """Return the rows of each table."""
    card = scores.card
    head, targets = card["head"], card["targets"]
    f1_classes = check_classes(config.f1_classes, targets)
    truth_DC = truth_of(index, card, ["test"])
    tables: dict[str, list] = {name: [] for name in ("rows", *OTHER_TABLES)}
    for horizon_min in config.horizons_min:
        for level in config.levels:
            where = {"horizon_min": horizon_min, "level": level}
            units = units_of(index, scores, "test", horizon_min, level, truth_DC)
            if head == "exclusive":
                decided = decision_rows(
                    units, targets, level, unit=config.unit, f1_classes=f1_classes, bootstrap=bootstrap
                )  # fmt: skip
                tables["decisions"] += [{"target": row.pop("target"), **where, **row} for row in decided]
            if head != "regression":
                validation = units_of(index, scores, "val", horizon_min, level, truth_DC)
            for number, target in enumerate(targets):
                if head == "regression":
                    row = regression_row(units, number, level, unit=config.unit, bootstrap=bootstrap)
                else:
                    row = _row(units, validation, number, level, config, bootstrap)
                tables["regression" if head == "regression" else "rows"].append({"target": target, **where, **row})
                progress.advance(1)
    return tables


def evaluate(folder, index, scores, config, *, seed, comm, stage_hash):
    """Write ``results.csv`` and ``results.json``; for exclusive labels ``decisions.csv``; ``regression.csv``.

    Parameters
    ----------
    folder : path
    index : anyecg.loaders.index.Index
    scores : anyecg.train.predict.Scores
    config : EvaluateConfig
    comm : MPI communicator
        Every rank calls this; the tables are the same on any number of ranks.

    Returns
    -------
    dict of list of dict
        The rows of each table: "rows", "decisions", "regression".

    Raises
    ------
    ConfigError, ModelError
        A level or class that the model does not have; components that the shards do not have.
    """
    check_evaluation(config, scores.card)
    bootstrap = Bootstrap(config.n_replicates, seed, config.confidence, config.interval, comm)
    n_all = len(config.horizons_min) * len(config.levels) * len(scores.card["targets"])
    with Progress("evaluate", n_all, " targets", shown=comm.rank == 0) as progress:
        tables = _tables(index, scores, config, bootstrap, progress)
    if comm.rank == 0:
        folder = Path(folder)
        write_table(folder / "results.csv", tables["rows"], COLUMNS)
        remove(*(folder / f"{name}.csv" for name in OTHER_TABLES if not tables[name]))
        for name in OTHER_TABLES:
            if tables[name]:
                write_table(folder / f"{name}.csv", tables[name])
        document = {"stage_hash": stage_hash, "index_hash": index.hash, "head": scores.card["head"]}
        document |= {name: [without_nan(row) for row in rows] for name, rows in tables.items()}
        write_document(folder / "results.json", "anyecg-results", document)
    comm.barrier()
    return tables


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


def read_results(path, table="rows"):
    """Read the rows of a table of ``results.json``, missing numbers as NaN."""
    rows = json.loads(Path(path).read_text(encoding="utf-8")).get(table, [])
    return [{key: float("nan") if value is None else value for key, value in row.items()} for row in rows]
