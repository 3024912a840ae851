"""Models side by side on the same units and the same replicates: each one's metrics, and differences to the first."""

from dataclasses import dataclass

import numpy as np

from anyecg.kernels import auroc, regression
from anyecg.kernels.weights import Resampling
from anyecg.loaders.errors import ModelError
from anyecg.train.decide import ALL, MEAN, Decisions, check_classes, decided
from anyecg.train.evaluate_config import EvaluateConfig, check_levels
from anyecg.train.intervals import Intervals, holm, mean_of
from anyecg.train.measures import Areas, replicates_of
from anyecg.train.regress import SCALE
from anyecg.train.results import without_nan
from anyecg.train.scores import Scores
from anyecg.train.units import clusters_of, fewer_rows, is_measured, n_distinct, of_level, units_of

COLUMNS = (
    "target", "metric", "model", "n", "n_positive", "n_patients", "value", "value_low", "value_high", "difference",
    "difference_low", "difference_high", "z", "p", "p_holm",
)  # fmt: skip
_KIND = {"window": "window", "draw": "draw", "draw-head": "draw", "visit": "visit"}


@dataclass(frozen=True)
class Compared:
    """One of the models: the name to call it by, what it said, and the level at which it is read."""

    name: str
    scores: Scores
    level: str


@dataclass(frozen=True)
class _Part:
    """A metric of all models for one target, or for all classes together.

    Attributes
    ----------
    value_M : float array, shape (models,)
    replicates_RM : float array, shape (replicates, models)
    """

    target: str
    metric: str
    counts: dict
    value_M: np.ndarray
    replicates_RM: np.ndarray
    df: float


def check_comparable(models):
    """Refuse models that count other units, have heads without a common metric, or no target in common.

    Returns
    -------
    (list of str, list of str)
        Targets that all models have; those that only some have.

    Raises
    ------
    ConfigError, ModelError
    """
    cards = [model.scores.card for model in models]
    for model, card in zip(models, cards, strict=True):
        check_levels([model.level], card["join"])
    if len({_KIND[model.level] for model in models}) > 1:
        raise ModelError(f"levels {', '.join(model.level for model in models)} count other units; take one for all")
    heads = {card["head"] for card in cards}
    if "regression" in heads and len(heads) > 1:
        raise ModelError(f"heads {', '.join(sorted(heads))} have no metric in common; compare models of one kind")
    common = [target for target in cards[0]["targets"] if all(target in card["targets"] for card in cards)]
    left_out = sorted({target for card in cards for target in card["targets"]} - set(common))
    if not common:
        raise ModelError(f"the models have no target in common; {models[0].name} has {', '.join(cards[0]['targets'])}")
    return common, left_out


def compare(index, models, config: EvaluateConfig, *, horizon_min, seed, progress):
    """Lay models side by side.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
        Of the shards that all scores were made from.
    models : list of Compared
        At least two; differences are to the first.
    config : EvaluateConfig
        What is resampled, how often, and which intervals.
    progress : function of the number of targets that are done since the last call

    Returns
    -------
    dict
        JSON-like: models, what was compared and how, ``left_out`` (targets that not all have), and ``rows`` of
        ``COLUMNS``.

    Raises
    ------
    ConfigError, ModelError
        Models that cannot be compared (``check_comparable``), or have scored other windows.

    Notes
    -----
    A unit counts for a target when it was measured and all models have scored it. z is a difference / the SD of its
    replicates, p that of the normal distribution.
    """
    targets, left_out = check_comparable(models)
    level, heads = _KIND[models[0].level], {model.scores.card["head"] for model in models}
    intervals = Intervals(config.confidence, config.interval)
    units = _units(index, models, horizon_min)
    found = []
    for target in targets:
        found += _of_target(target, models, units, level, config, seed)
        progress(1)
    families = {metric: [part for part in found if part.metric == metric] for metric in (part.metric for part in found)}
    # Absolute errors of several components have no common unit, so no mean.
    rows = [
        row
        for metric, parts in families.items()
        for row in _rows(parts, models, intervals, [] if metric == "mae" else parts)
    ]
    if heads == {"exclusive"} and not left_out:
        *classes, pooled = _of_decisions(targets, models, units, level, config, seed)
        in_mean = [classes[number] for number in check_classes(config.f1_classes, targets)]
        rows += _rows(classes, models, intervals, in_mean) + _lines([pooled], ALL, models, intervals)
    return {
        "models": [_described(model) for model in models], "index_hash": index.hash, "horizon_min": horizon_min,
        "unit": config.unit, "n_replicates": config.n_replicates, "seed": seed, "confidence": config.confidence,
        "interval": config.interval, "left_out": left_out, "rows": [without_nan(row) for row in rows],
    }  # fmt: skip


def _described(model):
    keys = ("model", "head", "join", "windows_per_sample", "n_parameters", "epoch", "weights_sha256")
    return {"name": model.name, "level": model.level, **{key: model.scores.card.get(key) for key in keys}}


def _units(index, models, horizon_min):
    """Return each model's units, which must be the same ones in the same order."""
    units = [units_of(index, model.scores, "test", horizon_min, model.level) for model in models]
    for model, of_model in zip(models, units, strict=True):
        if not (np.array_equal(of_model.draw, units[0].draw) and np.array_equal(of_model.window, units[0].window)):
            raise ModelError(f"{model.name}: scores of other windows than {models[0].name}; run 'anyecg predict' again")
    return units


def _of_target(target, models, units, level, config, seed):
    """Return the metrics of one target, over the units that all models have scored."""
    columns = [model.scores.card["targets"].index(target) for model in models]
    logits = [of_model.output_CU[column] for of_model, column in zip(units, columns, strict=True)]
    truth, scored = units[0].label_of(columns[0]), np.isfinite(logits).all(0)
    rows = of_level(units[0], np.flatnonzero(is_measured(truth) & scored), level)
    cluster, truth = clusters_of(units[0], rows, config.unit), truth[rows]
    n_replicates = config.n_replicates
    if truth.dtype.kind == "f":
        metrics: tuple = regression.METRICS
        measured: list = [regression.Agreement(truth, logit[rows], cluster) for logit in logits]
        replicates = [each.replicates(0, n_replicates, seed=seed) for each in measured]
        df, n_positive = len(np.unique(cluster)) - 1, float("nan")
    else:
        clusters, row = np.unique(cluster, return_inverse=True)
        resampling = Resampling(clusters, seed=seed)
        measured = [Areas(logit[rows], truth, row) for logit in logits]
        replicates = [replicates_of(each, resampling, 0, n_replicates) for each in measured]
        metrics, df, n_positive = auroc.METRICS, fewer_rows(truth, row) - 1, int((truth == 1).sum())
    counts = {"n": len(rows), "n_positive": n_positive, "n_patients": len(np.unique(units[0].patient[rows]))}
    value_MK, replicates_RMK = np.stack([each.measure() for each in measured]), np.stack(replicates, axis=1)
    return [
        _Part(target, metric, counts, value_MK[:, k], replicates_RMK[:, :, k], df) for k, metric in enumerate(metrics)
    ]


def _of_decisions(targets, models, units, level, config, seed):
    """Return the F1 of each class, then of all of them pooled; a unit goes to the class of its highest score."""
    scored = ~np.any([np.isnan(of_model.logit).any(1) for of_model in units], axis=0)
    calls = []
    for model, of_model in zip(models, units, strict=True):
        order = [model.scores.card["targets"].index(target) for target in targets]
        label = np.where(scored[:, None], of_model.label[:, order], -1)
        rows, called, true = decided(of_model, level, of_model.logit[:, order], label)
        calls.append(called)
    cluster, patient = clusters_of(units[0], rows, config.unit), units[0].patient[rows]
    row = np.unique(cluster, return_inverse=True)[1]
    measured = [Decisions(called, true, cluster, len(targets)) for called in calls]
    value_MC = np.stack([each.measure()[0, :, 0] for each in measured])
    replicates_RMC = np.stack(
        [each.replicates(0, config.n_replicates, seed=seed)[:, :, 0] for each in measured], axis=1
    )
    counts = {"n": len(rows), "n_positive": len(rows), "n_patients": len(np.unique(patient))}
    parts = []
    for number, target in enumerate([*targets, ALL]):
        is_class = (true == number).astype(int)
        df = (n_distinct(row) if target == ALL else fewer_rows(is_class, row)) - 1
        of_class = counts if target == ALL else {**counts, "n_positive": int(is_class.sum())}
        parts.append(_Part(target, "f1", of_class, value_MC[:, number], replicates_RMC[:, :, number], df))
    return parts


def _rows(parts, models, intervals, in_mean):
    """Return the rows of one metric: of each target, p adjusted for their number, then of the mean of ``in_mean``."""
    lines = [_lines([part], part.target, models, intervals) for part in parts]
    for number in range(1, len(models)):
        adjusted = holm([of_target[number]["p"] for of_target in lines])
        for of_target, p in zip(lines, adjusted.tolist(), strict=True):
            of_target[number]["p_holm"] = p
    if in_mean:
        lines.append(_lines(in_mean, MEAN, models, intervals))
    return [row for of_target in lines for row in of_target]


def _lines(parts, target, models, intervals):
    """Return one row a model, for a target or the mean of several."""
    value_CM = np.stack([part.value_M for part in parts])
    replicates_RCM = np.stack([part.replicates_RM for part in parts], axis=1)
    df_C = [part.df for part in parts]
    none = dict.fromkeys(COLUMNS, float("nan"))
    lines = []
    for number, model in enumerate(models):
        metric, counts = parts[0].metric, parts[0].counts if len(parts) == 1 else {}
        within = metric == "f1"
        value, replicates, df = mean_of(value_CM[:, number], replicates_RCM[:, :, number], df_C, within=within)
        line = {**none, "target": target, "metric": metric, "model": model.name, **counts}
        line |= intervals.columns("value", value, replicates, df=df, scale=SCALE.get(metric, "logit"))
        if number:
            value, replicates, df = mean_of(
                value_CM[:, number] - value_CM[:, 0], replicates_RCM[:, :, number] - replicates_RCM[:, :, 0], df_C
            )
            line |= intervals.difference(value, replicates, df=df)
        lines.append(line)
    return lines
