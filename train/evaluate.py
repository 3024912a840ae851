"""Metrics for every target, horizon and level, each with a CI over resampled patients, by MPI ranks."""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from anyecg.kernels.weights import Resampling
from anyecg.loaders.files import code_version, digest
from anyecg.train.added import added_value
from anyecg.train.decide import check_classes, decision_task
from anyecg.train.delong import clustered_se, delong_se
from anyecg.train.evaluate_config import check_levels
from anyecg.train.intervals import interval_of
from anyecg.train.measures import Areas, Binary, replicates_of
from anyecg.train.people import people_of
from anyecg.train.regress import regression_task
from anyecg.train.results import check_same_model, read_results, write_results
from anyecg.train.tables import Tables
from anyecg.train.thresholds import threshold_of
from anyecg.train.units import (
    Clusters,
    cluster_keys,
    fewer_rows,
    is_measured,
    n_distinct,
    one_target,
    truth_of,
    units_of,
)
from anyecg.train.work import Measured, Task, run_tasks

log = logging.getLogger(__name__)


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

    Raises
    ------
    ValueError
        Scores that are not finite, labels that are none, shapes that do not fit together.

    Notes
    -----
    A cluster's weight is a function of (seed, replicate, cluster), so neither order nor number of ranks matters.
    """
    score, label, cluster = np.asarray(score), np.asarray(label), cluster_keys(cluster)
    if not score.shape == label.shape == cluster.shape:
        raise ValueError(f"shapes {score.shape}, {label.shape}, {cluster.shape}; wanted three times (n,)")
    seen = label >= 0
    clusters, row = np.unique(cluster[seen], return_inverse=True)
    areas = Areas(score[seen], label[seen], row, with_auprc=False)
    value = float(areas.measure()[0])
    replicates = replicates_of(areas, Resampling(clusters, seed=seed), 0, n_replicates)[:, 0]
    df = fewer_rows(label[seen], row) - 1
    low, high = interval_of(value, replicates, df=df, level=level, interval=interval)
    return Estimate(value, low, high, int((~np.isnan(replicates)).sum()), replicates)


def check_evaluation(config, card):
    """Refuse levels and classes that a model does not have.

    Raises
    ------
    ConfigError
    """
    check_levels(config.levels, card["join"])
    check_classes(config.f1_classes, card["targets"])


class Evaluation:
    """What an evaluation is made of: units of every horizon and level, people, thresholds.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    scores : anyecg.train.scores.Scores
    config : EvaluateConfig
    cohort : anyecg.loaders.cohort.Cohort
        That the shards were made of.
    seed : int
    """

    def __init__(self, index, scores, config, cohort, *, seed):
        self.index, self.scores, self.config, self.seed = index, scores, config, seed
        self.targets, self.head = scores.card["targets"], scores.card["head"]
        self.clusters = Clusters(index, config.unit, seed=seed)
        self.people = people_of(index, cohort)
        self.truth = {split: truth_of(index, scores.card, [split]) for split in ("test", "val")}
        if config.internal:
            check_same_model(config.internal, scores.card)
        self._internal = _thresholds(config.internal)
        # Two splits of a horizon and level at a time: at full size they take 0.3 GB.
        self.units = lru_cache(maxsize=2)(self._units)

    def _units(self, split, horizon_min, level):
        return units_of(self.index, self.scores, split, horizon_min, level, self.truth[split])

    def threshold(self, target, horizon_min, level):
        """Return the threshold (a logit) of the validation split, or of the internal results."""
        if self.config.internal:
            return self._internal.get((self.targets[target], horizon_min, level), float("nan"))
        one = one_target(self.units("val", horizon_min, level), target, level)
        return threshold_of(one.logit, one.label, self.config.threshold, self.config.sensitivity)

    def counts(self, units, one):
        """Return the counts of the tables."""
        patient = self.clusters.patients(units, one.rows)
        positive = one.label == 1
        return {
            "n": len(one.rows), "n_positive": int(positive.sum()), "n_patients": n_distinct(patient),
            "n_patients_positive": n_distinct(patient[positive]), "n_patients_negative": n_distinct(patient[~positive]),
        }  # fmt: skip

    def main(self):
        """Return the horizon and level of the tables that show one: the first horizon; draws where they count."""
        levels = self.config.levels
        return self.config.horizons_min[0], "draw" if "draw" in levels else levels[0]


def _thresholds(path):
    """Return the thresholds (logits) of other results by target, horizon and level."""
    with np.errstate(divide="ignore"):
        return {
            (row["target"], row["horizon_min"], row["level"]): float(np.log(p) - np.log1p(-p))
            for row in (read_results(path) if path else [])
            if (p := row["threshold"]) == p
        }


def _row(evaluation, target, horizon_min, level):
    """Measure one row of the table."""
    config = evaluation.config
    units = evaluation.units("test", horizon_min, level)
    one = one_target(units, target, level)
    threshold = evaluation.threshold(target, horizon_min, level)
    row, resampling = evaluation.clusters.of(units, one.rows)
    binary = Binary(one.logit, one.label, row, len(resampling.clusters), threshold, kernel=config.kernel)
    ranking = binary.ranking
    facts = {
        **evaluation.counts(units, one), "threshold": float(1 / (1 + np.exp(-threshold))),
        "n_unscored": one.n_unscored, "df": fewer_rows(ranking.label, ranking.row) - 1,
        "auroc_se_delong": delong_se(ranking.score, ranking.label),
        "auroc_se_clustered": clustered_se(ranking.score, ranking.label, ranking.row),
        "bins": [of_bins.tolist() for of_bins in binary.bins()], "binned": binary.errors(),
    }  # fmt: skip
    return Measured(facts, binary.measure(), lambda first, last: replicates_of(binary, resampling, first, last))


def _subgroup(evaluation, target, attribute, name):
    """Measure the AUROC of one target within a group of visits."""
    horizon_min, level = evaluation.main()
    units = evaluation.units("test", horizon_min, level)
    inside = evaluation.people.groups(attribute)[name]
    one = one_target(units, target, level).only(inside[units.visit])
    row, resampling = evaluation.clusters.of(units, one.rows)
    areas = Areas(one.logit, one.label, row, with_auprc=False)
    facts = {**evaluation.counts(units, one), "df": fewer_rows(one.label, row) - 1}
    return Measured(
        facts, areas.measure()[:1], lambda first, last: replicates_of(areas, resampling, first, last)[:, :1]
    )


def _costs(evaluation):
    """Return how many units each (horizon, level, target) has, nearly, and what reading them costs."""
    index, costs = evaluation.index, {}
    label_DC = evaluation.truth["test"]
    for horizon_min in evaluation.config.horizons_min:
        draw = np.asarray(index.tables["pair_draw"])[index.pairs_of("test", horizon_min)]
        n_D = np.bincount(draw, minlength=len(label_DC))
        draws = np.flatnonzero(n_D)
        # Whole numbers in float64: the same on every rank, whatever its BLAS.
        measured_DC = is_measured(label_DC[draws]).astype(np.float64)
        n_windows_C, n_draws_C = n_D[draws].astype(np.float64) @ measured_DC, measured_DC.sum(0)
        for level in evaluation.config.levels:
            n_C = n_windows_C if level == "window" else n_draws_C
            for target in range(len(evaluation.targets)):
                costs[horizon_min, level, target] = int(n_C[target]), len(draw)
    return costs


def tasks_of(evaluation, added=None):
    """Return all tasks of an evaluation, neighbours reading the same units; those of baselines with ``AddedValue``."""
    config, costs = evaluation.config, _costs(evaluation)
    targets = range(len(evaluation.targets))
    tasks = []
    for horizon_min in config.horizons_min:
        for level in config.levels:
            where = horizon_min, level
            if evaluation.head == "exclusive":
                tasks.append(decision_task(evaluation, *where))
            make = regression_task if evaluation.head == "regression" else _row_task
            tasks += [make(evaluation, target, *where, *costs[*where, target]) for target in targets]
    if evaluation.head != "regression":
        horizon_min, level = evaluation.main()
        for attribute in config.subgroups:
            for name in evaluation.people.groups(attribute):
                tasks += [
                    _subgroup_task(evaluation, target, attribute, name, *costs[horizon_min, level, target])
                    for target in targets
                ]
    if added is not None:
        horizon_min = config.horizons_min[0]
        for level in config.levels:
            tasks += [added.task(target, level, *costs[horizon_min, level, target]) for target in targets]
    return tasks


def _row_task(evaluation, target, horizon_min, level, n_units, n_read):
    key = ("rows", evaluation.targets[target], horizon_min, level)
    return Task(key, n_units, n_read, lambda: _row(evaluation, target, horizon_min, level))


def _subgroup_task(evaluation, target, attribute, name, n_units, n_read):
    horizon_min, level = evaluation.main()
    key = ("subgroups", evaluation.targets[target], horizon_min, level, attribute, name)
    return Task(key, n_units // 3, n_read, lambda: _subgroup(evaluation, target, attribute, name))


def evaluate(folder, index, scores, config, cohort, *, seed, comm, stage_hash, node=None):
    """Write ``results.csv``, ``results.json`` and the other tables (docs/evaluate.md).

    Parameters
    ----------
    folder : path
    index : anyecg.loaders.index.Index
    scores : anyecg.train.scores.Scores
    config : EvaluateConfig
    cohort : anyecg.loaders.cohort.Cohort
    comm : MPI communicator
        Every rank calls this; the tables are the same on any number of ranks.
    node : anyecg.train.shared.Node, optional
        Where ranks share what baselines are fitted on.

    Returns
    -------
    dict of list of dict, on rank 0
        The rows of each table: "rows" and ``OTHER_TABLES``.

    Raises
    ------
    ConfigError, ModelError
        A level or class that the model does not have; components that the shards do not have; scores of other windows.
    """
    check_evaluation(config, scores.card)
    evaluation = Evaluation(index, scores, config, cohort, seed=seed)
    tasks = tasks_of(evaluation, added_value(Path(folder) / "heart.h5", evaluation, comm=comm, node=node))
    store = Path(folder) / "checkpoint" / f"evaluate-{digest([stage_hash, code_version(), [t.key for t in tasks]])}"
    done, forget = run_tasks(tasks, store, n_replicates=config.n_replicates, comm=comm)
    tables = None
    if comm.rank == 0:
        tables = Tables(config, scores.card, cohort.reference).of(done)
        if config.kernel == "binned":
            errors = [of["binned"] for task in done if (of := task.facts).get("binned")]
            error, bound = np.nanmax([*errors, (0.0, 0.0)], axis=0)
            log.info("binned: AUROCs differ by at most %.1e from the exact ones; bound %.1e", error, bound)
        document = {"stage_hash": stage_hash, "index_hash": index.hash}
        write_results(folder, tables, document | {key: scores.card[key] for key in ("head", "weights_sha256")})
        forget()
    comm.barrier()
    return tables
