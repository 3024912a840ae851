"""What age, sex and the rhythm of the heart alone say of a target, and what the ECG adds to that."""

from dataclasses import dataclass

import numpy as np

from anyecg.kernels.beats import FEATURES

BASELINES = ("age-sex", "heart", "age-sex-heart")
COMBINED = "ecg+age-sex-heart"
# Quantiles of the knots of a spline, as Harrell (Regression Modeling Strategies, 2015, table 2.3) has them for four.
KNOTS = (0.05, 0.35, 0.65, 0.95)
_VARIABLES = ("age", "sex", "rate", "log_sdnn", "log_rmssd")
_AGE, _SEX, _HEART = 0, 1, slice(2, 5)
# A variation of nothing has no logarithm; less than this is the rounding of samples.
_LEAST_S = 1e-3
# Units at a time, so that no copy of all of them is made.
_BLOCK = 65_536


def variables(age_U, sex_U, feature_UF):
    """Return what baselines are made of, float64 (units, 5): age, sex, heart rate, log SDNN, log RMSSD; NaN unknown.

    Parameters
    ----------
    age_U : float array
        Years, NaN unknown.
    sex_U : integer array
        0 female, 1 male, -1 unknown.
    feature_UF : float array, shape (units, 4)
        As ``anyecg.kernels.beats.FEATURES``, NaN where no beats were found.
    """
    variable_UV = np.empty((len(feature_UF), len(_VARIABLES)))
    variable_UV[:, _AGE] = age_U
    variable_UV[:, _SEX] = np.where(np.asarray(sex_U) < 0, np.nan, sex_U)
    rate_U, sdnn_U, rmssd_U = (feature_UF[:, FEATURES.index(name)] for name in ("rate", "sdnn", "rmssd"))
    variable_UV[:, 2] = rate_U
    variable_UV[:, 3] = np.log(np.maximum(sdnn_U, _LEAST_S))
    variable_UV[:, 4] = np.log(np.maximum(rmssd_U, _LEAST_S))
    return variable_UV


def draw_features(feature_RF, row_P, draw_P):
    """Return the draws of some pairs and the mean of each feature over each draw's windows.

    Parameters
    ----------
    feature_RF : float array, shape (rows, features)
        NaN where a window has none; it does not count.
    row_P, draw_P : integer arrays
        Of each pair: a row of ``feature_RF`` and its draw.

    Returns
    -------
    (int64 array (D,), ascending, float64 array (D, features))
        NaN where no window of a draw has the feature.
    """
    draws_D, place_P = np.unique(draw_P, return_inverse=True)
    mean_DF = np.full((len(draws_D), feature_RF.shape[1]), np.nan)
    for number in range(feature_RF.shape[1]):
        value_P = feature_RF[row_P, number].astype(np.float64)
        known_P = ~np.isnan(value_P)
        total_D = np.bincount(place_P[known_P], value_P[known_P], len(draws_D))
        n_D = np.bincount(place_P[known_P], minlength=len(draws_D))
        np.divide(total_D, n_D, out=mean_DF[:, number], where=n_D > 0)
    return draws_D.astype(np.int64), mean_DF


def spline(x_U, knots):
    """Return the restricted cubic spline basis, float64 (units, max(1, knots - 1)): linear before and after the knots.

    Notes
    -----
    Stone and Koo 1985, as in Harrell 2015 (eq. 2.25): x, then for each knot but the last two
    (x - t)+^3 - (x - t')+^3 (t'' - t) / (t'' - t') + (x - t'')+^3 (t' - t) / (t'' - t'), over (t'' - first)^2, where
    t' and t'' are the last two.
    """
    columns = [x_U]
    if len(knots) > 2:
        before, last = knots[-2:]
        cubes = {t: np.maximum(x_U - t, 0.0) ** 3 for t in knots}
        for t in knots[:-2]:
            rest = cubes[before] * (last - t) - cubes[last] * (before - t)
            columns.append((cubes[t] - rest / (last - before)) / (last - knots[0]) ** 2)
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Design:
    """How variables become the columns of a regression, the same for all targets.

    Attributes
    ----------
    knots : dict of variable -> list of float
        Where the spline of each variable bends; fewer than three: it is a line.
    fill : dict of variable -> float64 array (columns of its spline,)
        What stands for an unknown value beside its indicator: the means of the train units.
    columns : dict of baseline -> slice
        Which columns are its own.
    """

    knots: dict
    fill: dict
    columns: dict

    @classmethod
    def fit(cls, variable_UV):
        """Take the knots from the quantiles of train units, float (units, 5) as ``variables`` gives them."""
        knots, fill = {}, {}
        for number, name in enumerate(_VARIABLES):
            known = variable_UV[:, number]
            known = known[~np.isnan(known)]
            is_spline = name != "sex" and len(known)
            knots[name] = np.unique(np.quantile(known, KNOTS)).tolist() if is_spline else []
            columns = spline(known, knots[name])
            fill[name] = columns.mean(axis=0) if len(known) else np.zeros(columns.shape[1])
        n_age_sex = len(fill["age"]) + len(fill["sex"]) + 2
        n = n_age_sex + sum(len(fill[name]) for name in _VARIABLES[_HEART]) + 1
        columns = {"age-sex": slice(0, n_age_sex), "heart": slice(n_age_sex, n), "age-sex-heart": slice(0, n)}
        return cls(knots, fill, columns)

    def matrix(self, variable_UV):
        """Return the columns of some units, float32 (units, columns); all numbers.

        Splines of age and an indicator of unknown age, sex and one of unknown sex, splines of heart rate, log SDNN and
        log RMSSD and one of no beats.
        """
        matrix_UK = np.empty((len(variable_UV), self.columns["age-sex-heart"].stop), np.float32)
        for first in range(0, len(variable_UV), _BLOCK):
            block_UV = variable_UV[first : first + _BLOCK]
            is_unknown_UV = np.isnan(block_UV)
            columns = []
            for number, name in enumerate(_VARIABLES):
                basis = spline(block_UV[:, number], self.knots[name])
                columns.append(np.where(is_unknown_UV[:, number, None], self.fill[name], basis))
                if name in ("age", "sex", "log_rmssd"):
                    columns.append(is_unknown_UV[:, number, None])
            matrix_UK[first : first + _BLOCK] = np.concatenate(columns, axis=1)
        return matrix_UK


@dataclass(frozen=True)
class Baseline:
    """A logistic regression.

    Attributes
    ----------
    weight_K : float64 array (columns,)
        NaN where there is none.
    constant : float
    reason : str
        Why there is none.
    """

    weight_K: np.ndarray
    constant: float
    reason: str = ""

    @classmethod
    def fit(cls, design_NK, label_N):
        """Fit labels (1, 0) on columns, with a light L2 penalty (C = 1) on the weights of standardised columns.

        Units with a NaN do not count. One class, or no unit: the weights are NaN, with the reason.
        """
        design_NK, label_N = np.asarray(design_NK), np.asarray(label_N)
        known_N = ~np.isnan(design_NK).any(axis=1)
        if not known_N.all():
            design_NK, label_N = design_NK[known_N], label_N[known_N]
        n_positive, none_K = int((label_N == 1).sum()), np.full(design_NK.shape[1], np.nan)
        if n_positive in (0, len(label_N)):
            reason = f"one class among the units to fit on: {n_positive} of {len(label_N)} are positive"
            return cls(none_K, float("nan"), reason)
        mean_K = design_NK.mean(axis=0, dtype=np.float64)
        sd_K = design_NK.std(axis=0, dtype=np.float64)
        sd_K = np.where(sd_K > 1e-9 * np.abs(mean_K), sd_K, np.inf)
        weight_K, constant = _logistic((design_NK - mean_K) / sd_K, label_N)
        weight_K /= sd_K
        return cls(weight_K, float(constant - weight_K @ mean_K))

    def logit(self, design_NK):
        """Return the log-odds of units, float64 (units,), from the same columns; NaN where a column is."""
        logit_N = np.empty(len(design_NK))
        for first in range(0, len(design_NK), _BLOCK):
            # Not a BLAS product: its last bits would depend on the number of threads.
            block_NK = np.asarray(design_NK[first : first + _BLOCK], np.float64)
            logit_N[first : first + _BLOCK] = np.einsum("nk,k->n", block_NK, self.weight_K)
        return logit_N + self.constant


def _logistic(design_NK, label_N):
    """Return the weights and the constant of scikit-learn's logistic regression, the same with any threads."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8).fit(design_NK, label_N)
    return model.coef_[0], model.intercept_[0]


def combine(ecg_N, baseline_N, label_N):
    """Fit labels of validation units on the logits of the ECG's model and of a baseline.

    Returns
    -------
    Baseline
        For ``np.column_stack([ecg, baseline])`` of other units.
    """
    return Baseline.fit(np.column_stack([ecg_N, baseline_N]), label_N)


def fit_baselines(design, matrix_NK, label_N):
    """Fit each baseline for one target.

    Parameters
    ----------
    design : Design
    matrix_NK : array, shape (units, columns)
        Of ``design.matrix``.
    label_N : array, shape (units,)
        1 and 0.

    Returns
    -------
    dict of baseline -> Baseline
        Each for ``matrix[:, design.columns[baseline]]``.
    """
    return {name: Baseline.fit(matrix_NK[:, design.columns[name]], label_N) for name in BASELINES}
