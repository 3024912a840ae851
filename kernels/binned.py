"""Areas from scores in bins: quicker than the exact ones, with an error that is bounded and known."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.auroc import METRICS, _checked, _group, _step
from anyecg.kernels.weights import LANES

# Bins of equal counts, and the cells of equal width from which they are put together.
N_BINS, _CELLS = 4_096, 1 << 16
# With fewer units the exact kernel is as quick, and errors cancel less.
LEAST_UNITS = 50_000
# So that no sum of weights of so many entries, of so many units each, leaves 16 bits.
_PART, _MOST_TIMES = 128, 16


@kernel
def _cell(score, low, per_cell):
    return min(int((score - low) * per_cell), _CELLS - 1)


@kernel
def _sort_into_bins(score, label, row, low, per_cell, bin_of_cell, start_BC, row_N):
    """Fill the clusters of all units, highest bin first, in each bin the negatives first, and where each part starts.

    ``start_BC`` is flat: part 2 x bin + label; one longer than there are parts.
    """
    start_BC[:] = 0
    for i in range(len(score)):
        start_BC[2 * bin_of_cell[_cell(score[i], low, per_cell)] + label[i] + 1] += 1
    for part in range(1, len(start_BC)):
        start_BC[part] += start_BC[part - 1]
    place = start_BC.copy()
    for i in range(len(score)):
        part = 2 * bin_of_cell[_cell(score[i], low, per_cell)] + label[i]
        row_N[place[part]] = row[i]
        place[part] += 1


@kernel
def _merge(start, row_N, count_N):
    """Make neighbours of one cluster in a part one entry, as windows of several draws are; return how many are left."""
    n_entries = first = 0
    for part in range(len(start) - 1):
        last = start[part + 1]
        start[part] = n_entries
        for i in range(first, last):
            at_start = n_entries == start[part]
            if not at_start and row_N[n_entries - 1] == row_N[i] and count_N[n_entries - 1] < _MOST_TIMES:
                count_N[n_entries - 1] += 1
            else:
                row_N[n_entries], count_N[n_entries] = row_N[i], 1
                n_entries += 1
        first = last
    start[-1] = n_entries
    return n_entries


@kernel
def _sum_part(row_E, count_E, first, last, weight_PL, room, total):
    """Fill the weights of a part, added up."""
    for k in range(LANES):
        total[k] = 0
    while first < last:
        for k in range(LANES):
            room[k] = 0
        stop = min(first + _PART, last)
        for i in range(first, stop):
            p, times = row_E[i], count_E[i]
            for k in range(LANES):
                room[k] += weight_PL[p, k] * times
        for k in range(LANES):
            total[k] += room[k]
        first = stop


@kernel
def _bins(start_BC, row_E, count_E, weight_PL, with_auprc, out_LM, bound_L):
    tp, fp = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32)
    group_tp, group_fp, room = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32), np.zeros(LANES, np.int16)
    area, tied = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    precision_sum, quotient = np.zeros(LANES), np.empty(LANES)
    for part in range(0, len(start_BC) - 1, 2):
        if start_BC[part] == start_BC[part + 2]:
            continue
        _sum_part(row_E, count_E, start_BC[part], start_BC[part + 1], weight_PL, room, group_fp)
        _sum_part(row_E, count_E, start_BC[part + 1], start_BC[part + 2], weight_PL, room, group_tp)
        _group(group_tp, group_fp, tp, fp, area, tied)
        if with_auprc:
            _step(group_tp, tp, fp, quotient, precision_sum)
    out_LM[:] = np.nan
    bound_L[:] = np.nan
    for k in range(LANES):
        if tp[k] > 0 and fp[k] > 0:
            out_LM[k, 0] = (2 * area[k] + tied[k]) / (2.0 * tp[k] * fp[k])
            bound_L[k] = tied[k] / (2.0 * tp[k] * fp[k])
            if with_auprc:
                out_LM[k, 1] = precision_sum[k] / tp[k]


class BinnedRanking:
    """Units of one target in bins of about equal counts; parameters as for ``anyecg.kernels.auroc.Ranking``.

    Notes
    -----
    The units of a bin count as tied, so the AUROC errs by at most half the pairs that share one: ``bound_L``. Where
    positives and negatives lie mixed within a bin, its errors cancel, and the real one is a hundredth of that.
    """

    def __init__(self, score, label, row):
        score, label = _checked(score, label, row)
        n = len(score)
        low, high = (float(score.min()), float(score.max())) if n else (0.0, 0.0)
        with np.errstate(over="ignore"):
            per_cell = _CELLS / (high - low) if high > low else 0.0
        bin_of_cell = _bins_of_cells(score, low, per_cell)
        self._row = np.empty(n, np.int32)
        self._start = np.zeros(2 * N_BINS + 1, np.int64)
        _sort_into_bins(
            score, label.view(np.uint8), np.asarray(row, np.int32), low, per_cell, bin_of_cell, self._start, self._row
        )  # fmt: skip
        self._count = np.empty(n, np.int16)
        n_entries = _merge(self._start, self._row, self._count)
        self._row, self._count = self._row[:n_entries], self._count[:n_entries]
        self.bound_L = np.full(LANES, np.nan)

    def under(self, weight_PL, *, with_auprc=True):
        """Return float64 (LANES, 2): the METRICS under each lane's int8 weights of the clusters.

        ``bound_L`` then holds the largest possible error of each lane's AUROC.
        """
        out_LM = np.empty((LANES, len(METRICS)))
        _bins(self._start, self._row, self._count, weight_PL, with_auprc, out_LM, self.bound_L)
        return out_LM

    def measure(self):
        """Return the METRICS, float64 (2,), every unit counted once."""
        n_clusters = int(self._row.max()) + 1 if len(self._row) else 0
        return self.under(np.ones((n_clusters, LANES), np.int8))[0]


@kernel
def _count_cells(score, low, per_cell, count):
    for i in range(len(score)):
        count[_cell(score[i], low, per_cell)] += 1


def _bins_of_cells(score, low, per_cell):
    """Return the bin of each cell, the highest scores in bin 0, so that bins have about equal counts."""
    count = np.zeros(_CELLS, np.int64)
    _count_cells(score, low, per_cell, count)
    above = np.cumsum(count[::-1])[::-1] - count
    return np.minimum(above * N_BINS // max(1, len(score)), N_BINS - 1).astype(np.int32)
