"""Running median of eight windows at once, by comparisons alone.

A block of neighbouring positions shares most of its samples, its core, and of the sorted core only as many samples as
there are positions can be one of their medians. Each half of the block shares some samples more; put into the
candidates, they leave half as many. So on, until each position has its own. (Adams, "Fast median filters using
separable sorting networks", 2021, here along time only.)
"""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels._lanes import (
    LANES,
    aligned_rows,
    from_lanes,
    larger_size,
    load,
    put,
    rows,
    splat,
    store,
    to_lanes,
)
from anyecg.kernels._sorting import backwards, larger, merge, merge_rows, smaller, sort_bitonic, sort_four, sort_pieces

# A row holds 32 numbers: eight windows, each cut into four stretches.
_KEYS = 32
_STRETCHES = _KEYS // LANES
_LARGEST = 32767
_LOWEST, _HIGHEST = np.int16(-32768), np.int16(32767)


@kernel
def _n_levels(block):
    """Return how many sizes of runs there are: 4, 8 ... block / 2."""
    n_levels = 0
    while 4 << n_levels < block:
        n_levels += 1
    return n_levels


@kernel
def _sort_runs(key, first, block, skip, runs):
    """Sort each aligned run of 4, 8 ... block / 2 of the ``block`` rows from ``first`` on.

    Runs of 4 * 2^k fill the rows from k * block on; of those over 16 the last ``skip`` are left out.
    """
    for i in range(0, block, 16):
        four0, four1 = sort_four(rows(key, first + i, 1, 4)), sort_four(rows(key, first + i + 4, 1, 4))
        four2, four3 = sort_four(rows(key, first + i + 8, 1, 4)), sort_four(rows(key, first + i + 12, 1, 4))
        eight0, eight1 = merge(four0, four1), merge(four2, four3)
        put(runs, i, 1, four0 + four1)
        put(runs, i + 8, 1, four2 + four3)
        put(runs, block + i, 1, eight0 + eight1)
        if block > 16:
            put(runs, 2 * block + i, 1, merge(eight0, eight1))
    size, at = 32, 3 * block
    while size < block:
        for i in range(0, block - skip * size, size):
            merge_rows(runs, at - block + i, size // 2, at + i)
        size, at = 2 * size, at + block


@kernel
def _fill(x, first, n, value):
    for row in range(first, first + n):
        for lane in range(_KEYS):
            x[row, lane] = value


@kernel
def _copy(x, first, step, n, out, at):
    for i in range(n):
        put(out, at + i, 1, rows(x, first + i * step, 1, 1))


@kernel
def _sort_core(key, first, n, block, runs, merged, out):
    """Sort ``n`` rows, even and fewer than ``block``, between as many lowest rows as highest rows, ``block`` in all.

    ``runs`` holds the sorted runs of the rows from ``first`` on: one of each power of two that ``n`` is made of is
    merged with the smaller ones so far, which lie behind it.
    """
    outside = (block - n) // 2
    n_merged = n & 2
    if n_merged:
        put(merged, 0, 1, merge(rows(key, first + n - 2, 1, 1), rows(key, first + n - 1, 1, 1)))
    if n < 4:
        _fill(out, 0, outside, _LOWEST)
        _copy(merged, 0, 1, n, out, outside)
        _fill(out, outside + n, outside, _HIGHEST)
    size, level = 4, 0
    while size <= n:
        if n & size:
            is_last = n < 2 * size
            below, total = (outside, block) if is_last else (0, 2 * size)
            _fill(out, 0, below, _LOWEST)
            _copy(runs, level * block + n // (2 * size) * 2 * size, 1, size, out, below)
            _fill(out, below + size, total - below - size - n_merged, _HIGHEST)
            _copy(merged, n_merged - 1, -1, n_merged, out, total - n_merged)
            sort_pieces(out, 0, total, total)
            n_merged += size
            if not is_last:
                _copy(out, 0, 1, n_merged, merged, 0)
        size, level = 2 * size, level + 1


@kernel
def _between(low, high, run):
    """Keep the middle third of 2n sorted candidates and a sorted run of n; what is left rises and falls, or reversed.

    The run backwards and then the candidates fall and rise, so larger and smaller part off the lowest and highest n.
    """
    return smaller(larger(low, backwards(run)), high)


@kernel
def _halve(candidates, half, left_runs, right_runs, at, block, out):
    """Give each half of the positions its own candidates: from those of the whole, and the run that only it has."""
    quarter = half // 4
    for left in range(0, block, 2 * half):
        right = left + half
        if half == 8:
            low, high = rows(candidates, left, 1, 8), rows(candidates, right, 1, 8)
            put(out, left, 1, sort_bitonic(_between(low, high, rows(left_runs, at + right, 1, 8))))
            put(out, right, 1, sort_bitonic(_between(low, high, rows(right_runs, at + left, 1, 8))))
        elif half == 16:
            low, high = rows(candidates, left, 1, 16), rows(candidates, right, 1, 16)
            put(out, left, 1, sort_bitonic(_between(low, high, rows(left_runs, at + right, 1, 16))))
            # Again, since 32 vectors more do not stay in registers.
            low, high = rows(candidates, left, 1, 16), rows(candidates, right, 1, 16)
            put(out, right, 1, sort_bitonic(_between(low, high, rows(right_runs, at + left, 1, 16))))
        else:
            for i in range(quarter):
                low, high = rows(candidates, left + i, quarter, 4), rows(candidates, right + i, quarter, 4)
                only_left = rows(left_runs, at + right + quarter - 1 - i, quarter, 4)
                only_right = rows(right_runs, at + left + quarter - 1 - i, quarter, 4)
                put(out, left + i, quarter, sort_bitonic(_between(low, high, only_left)))
                put(out, right + i, quarter, sort_bitonic(_between(low, high, only_right)))
    if half > 16:
        sort_pieces(out, 0, block, quarter)


@kernel
def _last_four(candidates, left, right, key, at):
    """Halve twice, in registers: 4 candidates, and the 3 samples that only some of the 4 positions have each side."""
    low, high = candidates[0:2], candidates[2:4]
    first = sort_bitonic(_between(low, high, merge(left[1:2], left[2:3])))
    second = sort_bitonic(_between(low, high, merge(right[0:1], right[1:2])))
    put(key, at, 1, _between(first[0:1], first[1:2], left[0:1]))
    put(key, at + 1, 1, _between(first[0:1], first[1:2], right[0:1]))
    put(key, at + 2, 1, _between(second[0:1], second[1:2], left[2:3]))
    put(key, at + 3, 1, _between(second[0:1], second[1:2], right[2:3]))


@kernel
def _last_eight(candidates, i, left_runs, right_runs, key, left, right):
    """Halve three times and write the medians of 8 positions over the samples from ``left`` on."""
    low, high = rows(candidates, i, 1, 4), rows(candidates, i + 4, 1, 4)
    first = sort_bitonic(_between(low, high, rows(left_runs, i + 4, 1, 4)))
    second = sort_bitonic(_between(low, high, rows(right_runs, i, 1, 4)))
    _last_four(first, rows(key, left + 1, 1, 3), rows(key, right, 1, 3), key, left)
    _last_four(second, rows(key, left + 5, 1, 3), rows(key, right + 4, 1, 3), key, left + 4)


@kernel
def _slide(key, width, block, scratch):
    """Put the median of rows t + 1 ... t + width into row t, for all whole blocks of t.

    A position's samples begin one row behind it, so that the samples that leave a block lie aligned with it: those
    only the left half of a piece has are its right half, those only the right half has are its left half, width + 1
    rows further on.
    """
    n_levels = _n_levels(block)
    n_runs = n_levels * block
    left_runs, next_runs, right_runs = scratch[:n_runs], scratch[n_runs : 2 * n_runs], scratch[2 * n_runs : 3 * n_runs]
    rest = scratch[3 * n_runs :]
    candidates, halved, merged = rest[:block], rest[block : 2 * block], rest[2 * block :]
    all_runs, all_but_last = np.int64(0), np.int64(1)  # as literals they would be compiled each for itself
    for first in range(-block, len(key) - width - 1, block):
        left_runs, next_runs = next_runs, left_runs
        _sort_runs(key, first + block, block, all_runs, next_runs)
        if first < 0:
            continue
        _sort_runs(key, first + width + 1, block, all_but_last, right_runs)
        _sort_core(key, first + block, width + 1 - block, block, next_runs, merged, candidates)
        half, level = block // 2, n_levels - 1
        while half >= 8:
            _halve(candidates, half, left_runs, right_runs, level * block, block, halved)
            candidates, halved = halved, candidates
            half, level = half // 2, level - 1
        for i in range(0, block, 8):
            _last_eight(candidates, i, left_runs, right_runs, key, first + i, first + width + 1 + i)


@kernel
def _to_keys(x_TL, edge, first, stretch, step_L, key):
    """Round eight windows to whole steps of 1/32767 of their largest size, row 0 of ``key`` being row ``first``."""
    largest = other = splat(0.0)
    for t in range(edge, len(x_TL) - edge - 1, 2):
        largest = larger_size(largest, load(x_TL, t * LANES))
        other = larger_size(other, load(x_TL, (t + 1) * LANES))
    largest = larger_size(larger_size(largest, other), load(x_TL, (len(x_TL) - edge - 1) * LANES))
    inverse_L = np.zeros(LANES)
    store(step_L, 0, largest)
    for lane in range(LANES):
        if step_L[lane] > 1e-300:  # whose inverse is finite
            inverse_L[lane] = _LARGEST / step_L[lane]
        step_L[lane] /= _LARGEST
    # A float64 that large has no fraction: adding it rounds to the nearest whole number, the even one of two.
    inverse, whole = load(inverse_L, 0), splat(1.5 * 2.0**52)
    for row in range(len(key)):
        for s in range(_STRETCHES):
            size = load(x_TL, (first + s * stretch + row) * LANES) * inverse
            store(key, row * _KEYS + s * LANES, (size + whole) - whole)


@kernel
def subtract_median(x_TL, edge, width, block, key, scratch):
    """Subtract the running median of eight windows in place; ``edge`` rows on both sides are lost.

    ``edge``, ``key`` and ``scratch`` are as ``median_scratch`` gives them, ``edge`` may be larger.
    """
    n, stretch = len(x_TL) - 2 * edge, len(key) - width - 1
    x_TL[:edge] = 0.0
    x_TL[edge + n :] = 0.0
    step_L = np.empty(LANES)
    _to_keys(x_TL, edge, edge - 1 - width // 2, stretch, step_L, key)
    _slide(key, width, block, scratch)
    step = load(step_L, 0)
    for s in range(_STRETCHES):
        first = edge + s * stretch
        for row in range(min(stretch, n - s * stretch)):
            at = (first + row) * LANES
            store(x_TL, at, load(x_TL, at) - load(key, row * _KEYS + s * LANES) * step)


@kernel
def median_scratch(n, width, block):
    """Return (edge, key, scratch) of ``subtract_median`` for windows of ``n`` samples."""
    stretch = -(-n // (_STRETCHES * block)) * block
    edge = _STRETCHES * stretch - n + width // 2 + 1
    key = aligned_rows(stretch + width + 1).view(np.int16)
    return edge, key, aligned_rows((3 * _n_levels(block) + 3) * block).view(np.int16)


def block_of(width):
    """Return how many positions share a core: the smallest power of two from 16 on above half of ``width + 1``."""
    return 1 << max(4, (width + 1).bit_length() - 1)


@kernel
def _running_medians(x_WT, width, block, out_WT):
    n = x_WT.shape[1]
    edge, key, scratch = median_scratch(n, width, block)
    x_TL = aligned_rows(n + 2 * edge)
    zero_L, one_L = np.zeros(LANES), np.ones(LANES)
    is_finite = True
    for first in range(0, len(x_WT), LANES):
        is_finite &= to_lanes(x_WT, first, x_TL, edge)
        subtract_median(x_TL, edge, width, block, key, scratch)
        from_lanes(x_TL, edge, zero_L, one_L, first, out_WT)
    return is_finite


def running_median(x_WT, width):
    """Return the median of the ``width`` samples around each sample, zeros beyond the edges.

    Parameters
    ----------
    x_WT : array, shape (W, T)
        Finite; each row is one window.
    width : int
        Odd, from 15 on.

    Returns
    -------
    float64 array, shape (W, T)

    Notes
    -----
    Equal to ``scipy.signal.medfilt`` of each row to half a step, the step being the largest size in the row / 32767.
    """
    x_WT = np.ascontiguousarray(x_WT, np.float64)
    if x_WT.ndim != 2 or width < 15 or width % 2 == 0:
        raise ValueError(f"wanted windows (W, T) and an odd width from 15 on; found {x_WT.shape}, {width}")
    rest_WT = np.empty_like(x_WT)
    if x_WT.size and not _running_medians(x_WT, int(width), block_of(width), rest_WT):
        raise ValueError("windows hold samples that are not finite")
    return np.subtract(x_WT, rest_WT, out=rest_WT)
