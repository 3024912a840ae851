"""Metrics for every target, horizon and level, each with a CI over resampled patients, by MPI ranks."""

import csv
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.stats import t

from anyecg.kernels.auroc import METRICS, Ranking
from anyecg.loaders.files import replacing, write_document
from anyecg.loaders.progress import Progress
from anyecg.loaders.settings import Section

log = logging.getLogger(__name__)
HEAD = ("target", "horizon_min", "level", "n", "n_positive", "n_patients", "n_patients_positive")


class EvaluateConfig(Section):
    """Which results are made, and how their intervals."""

    horizons_min: list[Literal[60, 30, 15]] = Field([60], min_length=1, description="horizons: 60, 30, 15 minutes")
    levels: list[Literal["window", "draw", "visit"]] = Field(
        ["window", "draw"], min_length=1, description="units: window, draw (mean logit), visit (its first draw)"
    )
    unit: Literal["patient", "visit", "draw", "window"] = Field(
        "patient", description="what is resampled: patient, visit, draw or window (parity with the paper)"
    )
    n_replicates: int = Field(1000, ge=2, le=100_000, description="bootstrap replicates")
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    interval: Literal["logit-t", "percentile"] = Field("logit-t", description="logit-t or percentile")
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


def cluster_keys(cluster):
    """Return uint64 keys of clusters given as integers or as text."""
    cluster = np.asarray(cluster)
    if cluster.dtype.kind in "iu":
        return cluster.astype(np.int64).view(np.uint64) if cluster.dtype.kind == "i" else cluster.astype(np.uint64)
    names, row = np.unique(cluster.astype(str), return_inverse=True)
    keys = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in names]
    return np.array(keys, np.uint64)[row]


def interval_of(value, replicates, *, n_fewer, level, interval):
    """Return (low, high) of a metric between 0 and 1.

    Parameters
    ----------
    value : float
    replicates : float array
        NaN where a replicate has none.
    n_fewer : int
        The smaller of positive and negative clusters; minus one it is the degrees of freedom.
    level : float
    interval : {"logit-t", "percentile"}

    Notes
    -----
    "logit-t": logit(value) +- t * SD(replicates) / (value (1 - value)), the delta method; none for a value of 0 or 1,
    or with fewer than two clusters of a class. "percentile": quantiles of the replicates.
    """
    valid = replicates[~np.isnan(replicates)]
    if np.isnan(value) or len(valid) < 2:
        return float("nan"), float("nan")
    if interval == "percentile":
        low, high = np.quantile(valid, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)
    if not 0 < value < 1 or n_fewer < 2:
        return float("nan"), float("nan")
    half = t.ppf((1 + level) / 2, n_fewer - 1) * valid.std(ddof=1) / (value * (1 - value))
    centre = np.log(value / (1 - value))
    low, high = 1 / (1 + np.exp(-(centre - half))), 1 / (1 + np.exp(-(centre + half)))
    return float(low), float(high)


def _fewer(label, cluster):
    return min(len(np.unique(cluster[label == 1])), len(np.unique(cluster[label == 0])))


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
    low, high = interval_of(value, replicates, n_fewer=_fewer(label, cluster), level=level, interval=interval)
    return Estimate(value, low, high, int((~np.isnan(replicates)).sum()), replicates)


@dataclass(frozen=True)
class Units:
    """What is counted at one level: a score and the labels of all targets for each window, draw or visit.

    ``draw`` and ``window`` name the unit's rows in the index; ``window`` is -1 above the window level.
    """

    logit: np.ndarray
    label: np.ndarray
    draw: np.ndarray
    window: np.ndarray
    visit: np.ndarray
    patient: np.ndarray
    time: np.ndarray


def units_of(index, scores, split, horizon_min, level):
    """Return the units of a split at a horizon and a level.

    A draw's logit is the mean over its windows of that horizon; for "visit" the draws are returned too, and
    ``one_target`` takes the first draw in which the target was measured.
    """
    rows, logit_WC = scores[split]
    pairs = index.pairs_of(split, horizon_min)
    tables = index.tables
    window, draw = tables["pair_window"][pairs].astype(np.int64), tables["pair_draw"][pairs].astype(np.int64)
    logit = logit_WC[np.searchsorted(rows, window)]
    if level != "window":
        draw, row, n_windows = np.unique(draw, return_inverse=True, return_counts=True)
        sums = [np.bincount(row, weights=column, minlength=len(draw)) for column in logit.T.astype(np.float64)]
        logit = np.stack(sums, axis=1) / n_windows[:, None] if len(draw) else logit
        window = np.full(len(draw), -1)
    visit = tables["draw_visit"][draw]
    return Units(
        logit=logit, label=np.asarray(tables["draw_labels"])[draw], draw=draw, window=window, visit=visit,
        patient=np.asarray(tables["visit_patient"])[visit], time=np.asarray(tables["draw_time"])[draw],
    )  # fmt: skip


def one_target(units, target, level):
    """Return the rows of ``units`` that count for one target, as an int array."""
    rows = np.flatnonzero((units.label[:, target] >= 0) & ~np.isnan(units.logit[:, target]))
    if level == "visit":
        rows = rows[np.lexsort([units.time[rows], units.visit[rows]])]
        rows = rows[np.unique(units.visit[rows], return_index=True)[1]]
    return rows


def _clusters(units, rows, unit):
    if unit == "patient":
        return units.patient[rows]
    if unit == "window" and (units.window[rows] >= 0).all():
        return (units.window[rows] << 32 | units.draw[rows]).astype(np.uint64)
    return (units.visit if unit == "visit" else units.draw)[rows].astype(np.uint64)


def youden_threshold(score, label):
    """Return the score at which sensitivity + specificity is largest, the higher one of equals; NaN with one class."""
    order = np.argsort(-score, kind="stable")
    score, positive = score[order], label[order] == 1
    if not positive.any() or positive.all():
        return float("nan")
    gain = np.cumsum(positive) / positive.sum() - np.cumsum(~positive) / (~positive).sum()
    ends = np.append(score[1:] != score[:-1], True)
    return float(score[np.argmax(np.where(ends, gain, -np.inf))])


def _row(index, units, validation, target, level, config, seed, comm):
    """Return one row of the table; every rank computes its share of the replicates and returns the same row."""
    rows = one_target(units, target, level)
    val_rows = one_target(validation, target, level)
    score, label = units.logit[rows, target], units.label[rows, target]
    threshold = youden_threshold(validation.logit[val_rows, target], validation.label[val_rows, target])
    cluster = _clusters(units, rows, config.unit)
    ranking = Ranking(score, label, cluster, threshold)
    values = ranking.measure()
    n = config.n_replicates
    first, last = comm.rank * n // comm.size, (comm.rank + 1) * n // comm.size
    replicates = np.concatenate(comm.allgather(ranking.replicates(first, last, seed=seed)))
    patient = units.patient[rows]
    row: dict[str, float] = {
        "n": len(rows), "n_positive": int(label.sum()), "n_patients": len(np.unique(patient)),
        "n_patients_positive": len(np.unique(patient[label == 1])),
    }  # fmt: skip
    fewer = _fewer(label, cluster)
    for number, metric in enumerate(METRICS):
        value = float(values[number])
        row[metric] = value
        row[f"{metric}_low"], row[f"{metric}_high"] = interval_of(
            value, replicates[:, number], n_fewer=fewer, level=config.confidence, interval=config.interval
        )
    row["threshold"] = float(1 / (1 + np.exp(-threshold)))
    row["n_replicates"] = int((~np.isnan(replicates[:, 0])).sum())
    return row


def evaluate(folder, index, scores, config, *, seed, comm, stage_hash):
    """Write ``results.csv`` and ``results.json``.

    Parameters
    ----------
    folder : path
    index : anyecg.loaders.index.Index
    scores : dict
        From ``anyecg.train.predict.read_scores``.
    config : EvaluateConfig
    comm : MPI communicator
        Every rank calls this; the table is the same on any number of ranks.

    Returns
    -------
    list of dict, the rows of the table
    """
    table = []
    blocks = [(h, level) for h in config.horizons_min for level in config.levels]
    with Progress("evaluate", len(blocks) * len(index.targets), " targets", shown=comm.rank == 0) as progress:
        for horizon_min, level in blocks:
            units = units_of(index, scores, "test", horizon_min, level)
            validation = units_of(index, scores, "val", horizon_min, level)
            for number, target in enumerate(index.targets):
                row = _row(index, units, validation, number, level, config, seed, comm)
                table.append({"target": target, "horizon_min": horizon_min, "level": level, **row})
                progress.advance(1)
    if comm.rank == 0:
        folder = Path(folder)
        with replacing(folder / "results.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in table)
        rows = [{key: None if value != value else value for key, value in row.items()} for row in table]
        document = {"stage_hash": stage_hash, "index_hash": index.hash, "rows": rows}
        write_document(folder / "results.json", "anyecg-results", document)
    comm.barrier()
    return table


def _cell(value):
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6f}"
    return value


def read_results(path):
    """Read the rows of ``results.json``, missing numbers as NaN."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    return [{key: float("nan") if value is None else value for key, value in row.items()} for row in rows]
