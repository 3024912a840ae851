"""What the ECG adds to age, sex and heart rate: baselines and their combination with the model, on the same units."""

import logging

import numpy as np

from anyecg.kernels.counter import uniform
from anyecg.loaders.files import digest
from anyecg.loaders.index_form import HORIZON_BIT
from anyecg.train.baselines import BASELINES, COMBINED, Design, combine, draw_features, fit_baselines, variables
from anyecg.train.heart import make_heart, read_heart
from anyecg.train.measures import Areas, replicates_of
from anyecg.train.shared import Node
from anyecg.train.units import fewer_rows, one_target
from anyecg.train.work import Measured, Task

log = logging.getLogger(__name__)
MODELS = (*BASELINES, "ecg", COMBINED)
# Train units of a target that its baselines are fitted on, at most: they have 16 columns.
MAX_UNITS = 50_000


def added_value(path, evaluation, *, comm, node=None):
    """Return the ``AddedValue`` of an evaluation, or None where it is not wanted or nothing can be fitted.

    Parameters
    ----------
    path : path
        Of ``heart.h5``, which is made where it is missing.
    """
    index = evaluation.index
    horizons = [horizon_min for horizon_min in HORIZON_BIT if index.n_pairs("train", horizon_min)]
    if not evaluation.config.baselines or evaluation.head == "regression":
        return None
    if not horizons:
        if comm.rank == 0:
            log.warning("no baselines: %s has no train split to fit them on", index.folder)
        return None
    make_heart(path, index, comm=comm)
    return AddedValue(evaluation, read_heart(path, index, node=node), horizons[0], node or Node())


class AddedValue:
    """Baselines of every target at the first horizon, and what the ECG adds to them.

    Parameters
    ----------
    evaluation : anyecg.train.evaluate.Evaluation
    heart : anyecg.train.heart.Heart
    train_horizon_min : int
        Of the pairs that baselines are fitted on.
    node : anyecg.train.shared.Node

    Notes
    -----
    At the window level baselines are fitted on one window of each train draw, that a keyed hash picks; above it on the
    means over the windows of a draw. The combination is fitted on validation units, nothing on the test split.
    """

    def __init__(self, evaluation, heart, train_horizon_min, node):
        self._evaluation, self._index, self._people = evaluation, evaluation.index, evaluation.people
        self._horizon_min = evaluation.config.horizons_min[0]
        self._kinds = {
            kind: self._kind(kind, heart, train_horizon_min, node)
            for kind in dict.fromkeys(_kind_of(level) for level in evaluation.config.levels)
        }

    def _kind(self, kind, heart, train_horizon_min, node):
        """Return the design of windows or draws, its train draws by their hash and their columns, and the others'."""
        train = self._index.pairs_of("train", train_horizon_min)
        rows, feature_RF = heart.windows["train"]
        window, draw = (np.asarray(self._index.tables[f"pair_{name}"])[train] for name in ("window", "draw"))
        place = np.searchsorted(rows, window)
        if kind == "window":
            draw, first = _one_a_draw(draw, self._evaluation.seed)
            feature_DF = feature_RF[place[first]]
        else:
            draw, feature_DF = draw_features(feature_RF, place, draw)
        order = np.argsort(uniform(_key("fit", self._evaluation.seed), draw), kind="stable")
        known = self._variables(draw[order], feature_DF[order])
        design = Design.fit(known)
        made = node.made(lambda: design.matrix(known))
        return design, draw[order], made, {split: self._matrix(kind, heart, split, design, node) for split in _JUDGED}

    def _variables(self, draw, feature_DF):
        visit = np.asarray(self._index.tables["draw_visit"])[draw]
        return variables(self._people.age[visit], self._people.sex[visit], feature_DF)

    def _matrix(self, kind, heart, split, design, node):
        """Return the rows of the windows or draws of a split, ascending, and their columns, one copy a node."""
        tables, (rows, feature_RF) = self._index.tables, heart.windows[split]
        if kind == "window":
            visit = np.asarray(tables["window_visit"])[rows]
            age, sex = self._people.age[visit], self._people.sex[visit]
            return rows, node.made(lambda: design.matrix(variables(age, sex, feature_RF)))
        pairs = self._index.pairs_of(split, self._horizon_min)
        place = np.searchsorted(rows, np.asarray(tables["pair_window"])[pairs])
        draw, feature_DF = draw_features(feature_RF, place, np.asarray(tables["pair_draw"])[pairs])
        return draw, node.made(lambda: design.matrix(self._variables(draw, feature_DF)))

    def task(self, target, level, n_units, n_read):
        """Return the task of all models of one target at a level."""
        key = ("baselines", self._evaluation.targets[target], self._horizon_min, level)
        return Task(key, len(MODELS) * n_units, 3 * n_read, lambda: self._measure(target, level))

    def _measure(self, target, level):
        evaluation = self._evaluation
        design, draw_N, matrix_NK, others = self._kinds[_kind_of(level)]
        label_N = np.asarray(self._index.tables["draw_labels"][:, target])[draw_N]
        fitted_on = np.flatnonzero(label_N >= 0)[:MAX_UNITS]
        models = fit_baselines(design, matrix_NK[fitted_on], label_N[fitted_on])
        ones, logits = {}, {}
        for split in _JUDGED:
            units = evaluation.units(split, self._horizon_min, level)
            ones[split] = one = one_target(units, target, level)
            rows, matrix_UK = others[split]
            place = np.searchsorted(rows, (units.window if level == "window" else units.draw)[one.rows])
            logits[split] = {
                name: model.logit(matrix_UK[place][:, design.columns[name]]) for name, model in models.items()
            }
            logits[split]["ecg"] = one.logit
        both = {split: (of_split["ecg"], of_split[BASELINES[-1]]) for split, of_split in logits.items()}
        combined = combine(*both["val"], ones["val"].label)
        logits["test"][COMBINED] = combined.logit(np.column_stack(both["test"]))
        reasons = [*(models[name].reason for name in BASELINES), "", combined.reason]
        return self._measured(evaluation.units("test", self._horizon_min, level), ones["test"], logits["test"], reasons)

    def _measured(self, units, one, logits, reasons):
        row, resampling = self._evaluation.clusters.of(units, one.rows)
        areas = [_areas(logits[name], one.label, row) for name in MODELS]
        facts = {
            **self._evaluation.counts(units, one), "df": fewer_rows(one.label, row) - 1, "reasons": reasons,
        }  # fmt: skip
        return Measured(
            facts, np.stack([of_model.measure() for of_model in areas]),
            lambda first, last: np.stack(
                [replicates_of(of_model, resampling, first, last) for of_model in areas], axis=1
            ),
        )  # fmt: skip


_JUDGED = ("val", "test")


def _kind_of(level):
    return "window" if level == "window" else "draw"


def _key(what, seed):
    return int(digest([what, seed]), 16)


def _one_a_draw(draw_P, seed):
    """Return the draws of some pairs, ascending, and for each the place of one of its pairs, which a hash picks."""
    order = np.argsort(draw_P, kind="stable")
    draw_D, first_D, n_D = np.unique(draw_P[order], return_index=True, return_counts=True)
    return draw_D, order[first_D + (uniform(_key("window", seed), draw_D) * n_D).astype(np.int64)]


class _Unfit:
    """A model that could not be fitted, measured: nothing."""

    def measure(self):
        return np.full(2, np.nan)

    def under(self, weight_PL):
        return np.full((weight_PL.shape[1], 2), np.nan)


def _areas(logit, label, row):
    # float32 is sorted fastest; what it rounds to the same score counts as tied.
    return Areas(np.asarray(logit, np.float32), label, row) if np.isfinite(logit).all() else _Unfit()
