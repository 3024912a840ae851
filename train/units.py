"""What is counted: windows, draws or visits, each with what the model says of it, what is true, and whose it is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anyecg.kernels.weights import Resampling
from anyecg.loaders.errors import ModelError
from anyecg.loaders.splits import SPLITS
from anyecg.loaders.values import draw_values
from anyecg.train.evaluate_config import check_levels
from anyecg.train.heads import ranked_of


@dataclass(frozen=True)
class Units:
    """Windows, draws or visits, one a row.

    Attributes
    ----------
    output_CU : sequence of float arrays, each of shape (units,)
        What they are ranked by, one array a target: log-odds of the probabilities; for a regression estimated values.
        Those of windows and draws are worked out when they are asked for.
    label_DC : array, shape (draws, targets)
        int8 labels, -1 not measured; for a regression float32 values, NaN not measured.
    draw, window : int arrays
        Rows of the index; ``window`` is -1 above the window level.
    visit, patient, time : arrays
    """

    output_CU: Sequence[np.ndarray]
    label_DC: np.ndarray
    draw: np.ndarray
    window: np.ndarray
    visit: np.ndarray
    patient: np.ndarray
    time: np.ndarray

    @property
    def logit(self):
        """What all targets are ranked by, (units, targets)."""
        return np.stack([self.output_CU[target] for target in range(len(self.output_CU))], axis=1)

    @property
    def label(self):
        """Labels or values of all targets, (units, targets)."""
        return self.label_DC[self.draw]

    def label_of(self, target):
        """Return the label or value of one target, (units,)."""
        return np.ascontiguousarray(self.label_DC[:, target])[self.draw]


@dataclass(frozen=True)
class OneTarget:
    """The units that count for one target.

    Attributes
    ----------
    rows : int array, shape (n,)
        Of the units.
    logit, label : arrays, shape (n,)
    n_unscored : int
        Units that were measured but have no score.
    """

    rows: np.ndarray
    logit: np.ndarray
    label: np.ndarray
    n_unscored: int

    def only(self, inside_U):
        """Return those inside a group, bool (units,); who has no score is not counted there."""
        kept = inside_U[self.rows]
        return OneTarget(self.rows[kept], self.logit[kept], self.label[kept], 0)


class _OfWindows(Sequence):
    """The windows' own outputs."""

    def __init__(self, output_WC, position):
        self._output_WC, self._position = output_WC, position

    def __len__(self):
        return self._output_WC.shape[1]

    def __getitem__(self, target):
        return self._output_WC[:, target][self._position]


class _OfDraws(_OfWindows):
    """Means over the windows of each draw."""

    def __init__(self, output_WC, position, row, n_windows):
        super().__init__(output_WC, position)
        self._row, self._n_windows = row, n_windows

    def __getitem__(self, target):
        of_window = super().__getitem__(target)
        return np.bincount(self._row, weights=of_window, minlength=len(self._n_windows)) / self._n_windows


class _OfValues(Sequence):
    """Estimated values in their units."""

    def __init__(self, output_CU, card):
        self._output_CU, self._card = output_CU, card

    def __len__(self):
        return len(self._output_CU)

    def __getitem__(self, target):
        one = {"head": "regression", **{key: [self._card[key][target]] for key in ("value_mean", "value_sd")}}
        return ranked_of(self._output_CU[target][:, None], one)[:, 0]


def _ranked(output_CU, card):
    """Return what units are ranked by, one array a target."""
    if card["head"] == "multilabel":
        return output_CU
    if card["head"] == "regression":
        return _OfValues(output_CU, card)
    return ranked_of(np.stack(list(output_CU), axis=1), card).T


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
    scores : anyecg.train.scores.Scores
    truth_DC : array, optional
        From ``truth_of``, where it is at hand.
    """
    tables = index.tables
    outputs: Sequence[np.ndarray]
    if level == "draw-head":
        check_levels([level], scores.card["join"])
        none = np.empty(0, np.int64), np.empty((0, len(scores.card["targets"])))
        draw, output_DC = scores.draws.get((split, horizon_min), none)
        outputs, window = output_DC.T, np.full(len(draw), -1)
    else:
        rows, output_WC = scores.windows[split]
        pairs = index.pairs_of(split, horizon_min)
        window, draw = np.asarray(tables["pair_window"])[pairs], np.asarray(tables["pair_draw"])[pairs]
        position = np.searchsorted(rows, window)
        if not np.array_equal(rows[np.minimum(position, len(rows) - 1)] if len(rows) else rows, window):
            raise ModelError(f"{index.folder}: windows of {split} without scores; run 'anyecg predict' again")
        outputs = _OfWindows(output_WC, position)
        if level != "window":
            draw, row, n_windows = np.unique(draw, return_inverse=True, return_counts=True)
            outputs, window = _OfDraws(output_WC, position, row, n_windows), np.full(len(draw), -1)
    visit = np.asarray(tables["draw_visit"])[draw]
    return Units(
        output_CU=_ranked(outputs, scores.card),
        label_DC=truth_of(index, scores.card, [split]) if truth_DC is None else truth_DC, draw=draw, window=window,
        visit=visit, patient=np.asarray(tables["visit_patient"])[visit], time=np.asarray(tables["draw_time"])[draw],
    )  # fmt: skip


def of_level(units, rows, level):
    """Return those of ``rows`` that count at a level: for "visit" the first draw of each visit, else all."""
    if level == "visit":
        rows = rows[np.lexsort([units.time[rows], units.visit[rows]])]
        rows = rows[np.unique(units.visit[rows], return_index=True)[1]]
    return rows


def is_measured(label):
    """Say where there is a label or value."""
    return ~np.isnan(label) if label.dtype.kind == "f" else label >= 0


def one_target(units, target, level):
    """Return the units that count for one target, as ``OneTarget``."""
    label, logit = units.label_of(target), units.output_CU[target]
    measured, unscored = is_measured(label), ~np.isfinite(logit)
    n_measured = len(of_level(units, np.flatnonzero(measured), level)) if unscored.any() else 0
    rows = of_level(units, np.flatnonzero(measured & ~unscored), level)
    return OneTarget(rows, logit[rows], label[rows], max(0, n_measured - len(rows)))


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
        return (units.window[rows].astype(np.int64) << 32 | units.draw[rows]).astype(np.uint64)
    return (units.visit if unit == "visit" else units.draw)[rows].astype(np.uint64)


class Clusters:
    """What is resampled, as rows of weights that all targets share.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    unit : {"patient", "visit", "draw", "window"}
    seed : int
    """

    def __init__(self, index, unit, *, seed):
        self.unit, self._seed = unit, seed
        visit_test = np.flatnonzero(np.asarray(index.tables["visit_split"]) == SPLITS.index("test"))
        self._patients, row = np.unique(np.asarray(index.tables["visit_patient"])[visit_test], return_inverse=True)
        self._patient_row = np.full(len(index.tables["visit_split"]), -1, np.int32)
        self._patient_row[visit_test] = row
        self._shared = Resampling(self._patients, seed=seed) if unit == "patient" else None

    def patients(self, units, rows):
        """Return a number below the number of patients for each of ``rows``."""
        return self._patient_row[units.visit[rows]]

    def of(self, units, rows):
        """Return (row of the weights for each of ``rows``, Resampling)."""
        if self._shared is not None:
            return self.patients(units, rows), self._shared
        keys, row = np.unique(clusters_of(units, rows, self.unit), return_inverse=True)
        return row.astype(np.int32), Resampling(keys, seed=self._seed, n_bytes=0)


def n_distinct(row):
    """Return how many different numbers, all small and not negative, there are."""
    return int(np.count_nonzero(np.bincount(row)))


def fewer_clusters(label, cluster):
    """Return the smaller of the numbers of clusters with a positive and with a negative unit."""
    row = np.unique(cluster, return_inverse=True)[1]
    return fewer_rows(label, row)


def fewer_rows(label, row):
    """Return the same of clusters that are given as small numbers."""
    return min(n_distinct(row[label == 1]), n_distinct(row[label == 0]))
