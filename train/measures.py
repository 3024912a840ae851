"""Everything that is measured of one target's scores, once and under the weights of replicates."""

import numpy as np

from anyecg.kernels import auroc, calibration, called
from anyecg.kernels.binned import LEAST_UNITS, BinnedRanking
from anyecg.kernels.weights import LANES, n_blocks

METRICS = (*auroc.METRICS, *called.METRICS, *calibration.METRICS)


def replicates_of(measured, resampling, first, last):
    """Return ``measured.under`` of replicates first..last-1, float64 (last - first, metrics).

    ``first`` is a multiple of ``LANES``; a block is always worked out whole, so who does it changes no bit.
    """
    blocks = range(first // LANES, n_blocks(last))
    return np.concatenate([measured.under(resampling.block(number)) for number in blocks])[: last - first]


class Binary:
    """Scores of one target in clusters.

    Parameters
    ----------
    logit : float array, shape (n,)
    label : array of 0 and 1, shape (n,)
    row : int array, shape (n,)
        Cluster of each unit, as a row of the weights.
    n_clusters : int
    threshold : float
        Logit; units at or above it are called positive. NaN: what depends on it is NaN.
    kernel : {"exact", "binned"}
        What measures the areas of replicates; with fewer than ``LEAST_UNITS`` the exact one in any case.
    """

    def __init__(self, logit, label, row, n_clusters, threshold, *, kernel="exact"):
        self.ranking = ranking = auroc.Ranking(logit, label, row)
        is_binned = kernel == "binned" and len(ranking.score) >= LEAST_UNITS
        self._binned = BinnedRanking(logit, label, row) if is_binned else None
        sorted_units = ranking.label, ranking.row, n_clusters
        self._called = called.Called(ranking.score >= threshold, *sorted_units)
        self._calibration = calibration.Calibration(ranking.score, *sorted_units)
        self._has_threshold = not np.isnan(threshold)

    def measure(self):
        """Return the METRICS, float64 (9,), every unit counted once; NaN with one class."""
        return self._joined(*(part.measure()[None] for part in (self.ranking, self._called, self._calibration)))[0]

    def under(self, weight_PL):
        """Return float64 (LANES, 9): the METRICS under each lane's int8 weights of the clusters."""
        areas = self._binned or self.ranking
        return self._joined(*(part.under(weight_PL) for part in (areas, self._called, self._calibration)))

    def errors(self):
        """Return how far the binned AUROC is from the exact one, and at most could be; None with the exact kernel."""
        if self._binned is None:
            return None
        error = abs(self._binned.measure()[0] - self.ranking.measure()[0])
        return float(error), float(self._binned.bound_L[0])

    def _joined(self, areas, decisions, fit):
        if not self._has_threshold:
            decisions = np.full_like(decisions, np.nan)
        both = np.concatenate([areas, decisions, fit], axis=1)
        # One class says nothing of a test of two.
        both[np.isnan(areas[:, 0])] = np.nan
        return both

    def bins(self):
        """Return the bins of the calibration, lowest scores first: (n, mean probability, share of positives)."""
        ranking, bin_of = self.ranking, calibration.N_BINS - 1 - self._calibration.bin_of
        probability = 1 / (1 + np.exp(-ranking.score.astype(np.float64)))
        n, predicted, positive = (
            np.bincount(bin_of, weights=of_unit, minlength=calibration.N_BINS)
            for of_unit in (None, probability, ranking.label)
        )
        with np.errstate(invalid="ignore"):
            return n.astype(int), predicted / n, positive / n


class Areas:
    """The areas alone, for tables that need no threshold; parameters as for ``anyecg.kernels.auroc.Ranking``."""

    def __init__(self, logit, label, row, *, with_auprc=True):
        self._ranking, self._with_auprc = auroc.Ranking(logit, label, row), with_auprc

    def measure(self):
        """Return (AUROC, AUPRC), every unit counted once."""
        return self._ranking.measure()

    def under(self, weight_PL):
        """Return float64 (LANES, 2): both under each lane's weights; NaN for an AUPRC that is not wanted."""
        return self._ranking.under(weight_PL, with_auprc=self._with_auprc)
