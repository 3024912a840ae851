"""What is counted: windows, draws or visits, each with what the model says of it, what is true, and whose it is."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anyecg.loaders.errors import ConfigError, ModelError
from anyecg.loaders.values import draw_values
from anyecg.train.heads import ranked_of

Level = Literal["window", "draw", "visit", "draw-head"]


@dataclass(frozen=True)
class Units:
    """Windows, draws or visits, one a row.

    Attributes
    ----------
    logit : float64 array, shape (units, targets)
        What they are ranked by: log-odds of the probabilities; for a regression the estimated values.
    label : array, shape (units, targets)
        int8 labels, -1 not measured; for a regression float32 values, NaN not measured.
    draw, window : int64 arrays
        Rows of the index; ``window`` is -1 above the window level.
    visit, patient, time : arrays
    """

    logit: np.ndarray
    label: np.ndarray
    draw: np.ndarray
    window: np.ndarray
    visit: np.ndarray
    patient: np.ndarray
    time: np.ndarray

    @property
    def measured(self):
        """Where there is a label or value, bool (units, targets)."""
        return ~np.isnan(self.label) if self.label.dtype.kind == "f" else self.label >= 0


def check_levels(levels, join):
    """Refuse levels that a model has no outputs for."""
    if "draw-head" in levels and join != "features":
        raise ConfigError(
            "level 'draw-head' is that of a head which joins windows: the model's join is 'logits', wanted 'features'; "
            "take 'draw-head' out of evaluate.levels, or train with finetune.join = 'features'"
        )


def truth_of(index, card, splits):
    """Return what is true of every draw: int8 labels, or float32 values for a regression, NaN not measured.

    Returns
    -------
    array, shape (draws, targets of the card)

    Raises
    ------
    ModelError, ShardError
        A regression of components that the shards do not have; damaged shards.
    """
    if card["head"] != "regression":
        return np.asarray(index.tables["draw_labels"])
    components = index.components
    unknown = [name for name in card["targets"] if name not in components]
    if unknown:
        raise ModelError(
            f"{index.folder}: no values of {unknown[0]}, which the model estimates; found {', '.join(components)}"
        )
    return draw_values(index, splits)[:, [components.index(name) for name in card["targets"]]]


def units_of(index, scores, split, horizon_min, level, truth_DC=None):
    """Return the units of a split at a horizon and a level.

    A draw's output is the mean over its windows of that horizon, at level "draw-head" the joining head's own; for
    "visit" the draws are returned too, and ``one_target`` takes the first draw in which the target was measured.

    Parameters
    ----------
    scores : anyecg.train.predict.Scores
    truth_DC : array, optional
        From ``truth_of``, where it is at hand.
    """
    tables = index.tables
    if level == "draw-head":
        check_levels([level], scores.card["join"])
        none = np.empty(0, np.int64), np.empty((0, len(scores.card["targets"])))
        draw, output = scores.draws.get((split, horizon_min), none)
        window = np.full(len(draw), -1)
    else:
        rows, output_WC = scores.windows[split]
        pairs = index.pairs_of(split, horizon_min)
        window, draw = tables["pair_window"][pairs].astype(np.int64), tables["pair_draw"][pairs].astype(np.int64)
        output = output_WC[np.searchsorted(rows, window)]
        if level != "window":
            draw, row, n_windows = np.unique(draw, return_inverse=True, return_counts=True)
            sums = [np.bincount(row, weights=column, minlength=len(draw)) for column in output.T.astype(np.float64)]
            output = np.stack(sums, axis=1) / n_windows[:, None] if len(draw) else output
            window = np.full(len(draw), -1)
    visit = tables["draw_visit"][draw]
    truth_DC = truth_of(index, scores.card, [split]) if truth_DC is None else truth_DC
    return Units(
        logit=ranked_of(output, scores.card), label=truth_DC[draw], draw=draw, window=window, visit=visit,
        patient=np.asarray(tables["visit_patient"])[visit], time=np.asarray(tables["draw_time"])[draw],
    )  # fmt: skip


def of_level(units, rows, level):
    """Return those of ``rows`` that count at a level: for "visit" the first draw of each visit, else all."""
    if level == "visit":
        rows = rows[np.lexsort([units.time[rows], units.visit[rows]])]
        rows = rows[np.unique(units.visit[rows], return_index=True)[1]]
    return rows


def one_target(units, target, level):
    """Return the rows of ``units`` that count for one target, as an int array."""
    return of_level(
        units, np.flatnonzero(units.measured[:, target] & ~np.isnan(units.logit[:, target])), level
    )  # fmt: skip


def cluster_keys(cluster):
    """Return uint64 keys of clusters given as integers or as text."""
    cluster = np.asarray(cluster)
    if cluster.dtype.kind in "iu":
        return cluster.astype(np.int64).view(np.uint64) if cluster.dtype.kind == "i" else cluster.astype(np.uint64)
    names, row = np.unique(cluster.astype(str), return_inverse=True)
    keys = [int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") for name in names]
    return np.array(keys, np.uint64)[row]


def clusters_of(units, rows, unit):
    """Return the uint64 key of what is resampled for each of ``rows``."""
    if unit == "patient":
        return units.patient[rows]
    if unit == "window" and (units.window[rows] >= 0).all():
        return (units.window[rows] << 32 | units.draw[rows]).astype(np.uint64)
    return (units.visit if unit == "visit" else units.draw)[rows].astype(np.uint64)


def fewer_clusters(label, cluster):
    """Return the smaller of the numbers of clusters with a positive and with a negative unit."""
    return min(len(np.unique(cluster[label == 1])), len(np.unique(cluster[label == 0])))
