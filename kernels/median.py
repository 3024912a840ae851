"""Running median of a lead, exact, in time that hardly depends on its width."""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, types

from anyecg.kernels._jit import kernel

# A sample is sorted by the upper 22 bits of its float32 (sign, exponent, 13 of the mantissa) in two passes of 11.
_DIGITS = np.uint32(1 << 11)
_DIGIT_BITS = np.uint32(11)
_LOW_DIGIT = np.uint32(_DIGITS - 1)
# A sorted sample is its upper digit and its place in one uint32.
_PLACE_BITS = np.uint32(21)
_PLACE = np.uint32((1 << 21) - 1)
MAX_SAMPLES = 1 << 21

_ONE, _SIX, _LOW_SIX, _ALL = np.uint64(1), np.uint64(6), np.uint64(63), np.uint64(2**64 - 1)


def _bit_count(name):
    @intrinsic
    def count(typing_context, word):
        def code(context, builder, signature, arguments):
            return getattr(builder, name)(arguments[0], ir.Constant(ir.IntType(1), 0))

        return types.uint64(types.uint64), code

    return count


_zeros_below = _bit_count("cttz")
_zeros_above = _bit_count("ctlz")


@kernel
def _count_digits(x_T, near_T, counts):
    """Fill the sort keys of ``x_T`` and, for both digits, the position where each value of the digit starts."""
    near_T[:] = x_T
    bits_T = near_T.view(np.int32)
    key_T = near_T.view(np.uint32)
    counts[:] = 0
    for t in range(len(x_T)):
        bits = bits_T[t]
        # Negative floats grow downwards: turn all their bits, and of the others the sign, to order both as integers.
        turned = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF)) ^ np.int32(-0x80000000)
        key_T[t] = np.uint32(turned) >> np.uint32(10)
    # Neighbours share their upper digit, and an increment waits for the last one of the same digit: take two far apart.
    middle = len(x_T) // 2
    for t in range(middle):
        counts[0, key_T[t] & _LOW_DIGIT] += np.uint32(1)
        counts[1, key_T[t] >> _DIGIT_BITS] += np.uint32(1)
        counts[0, key_T[middle + t] & _LOW_DIGIT] += np.uint32(1)
        counts[1, key_T[middle + t] >> _DIGIT_BITS] += np.uint32(1)
    for t in range(2 * middle, len(x_T)):
        counts[0, key_T[t] & _LOW_DIGIT] += np.uint32(1)
        counts[1, key_T[t] >> _DIGIT_BITS] += np.uint32(1)
    low_start = high_start = np.uint32(0)
    for digit in range(_DIGITS):
        n_low, n_high = counts[0, digit], counts[1, digit]
        counts[0, digit], counts[1, digit] = low_start, high_start
        low_start += n_low
        high_start += n_high


@kernel
def _rank(x_T, near_T, counts, by_low_T, by_key_T, sorted_T, rank_T):
    """sorted_T[rank_T[t]] = x_T[t], equal samples in any order: radix sort by key, then the few left out of order."""
    _count_digits(x_T, near_T, counts)
    key_T = near_T.view(np.uint32)
    for t in range(len(x_T)):
        digit = key_T[t] & _LOW_DIGIT
        position = counts[0, digit]
        counts[0, digit] = position + np.uint32(1)
        by_low_T[position] = ((key_T[t] >> _DIGIT_BITS) << _PLACE_BITS) | np.uint32(t)
    for i in range(len(x_T)):
        digit = by_low_T[i] >> _PLACE_BITS
        position = counts[1, digit]
        counts[1, digit] = position + np.uint32(1)
        by_key_T[position] = by_low_T[i] & _PLACE
    for i in range(len(x_T)):
        sorted_T[i] = x_T[by_key_T[i]]
    largest = sorted_T[0]
    for i in range(1, len(x_T)):
        value = sorted_T[i]
        if value >= largest:
            largest = value
            continue
        place, j = by_key_T[i], i
        while j > 0 and sorted_T[j - 1] > value:
            sorted_T[j], by_key_T[j] = sorted_T[j - 1], by_key_T[j - 1]
            j -= 1
        sorted_T[j], by_key_T[j] = value, place
    for i in range(len(x_T)):
        rank_T[by_key_T[i]] = np.uint32(i)


@kernel
def _flip(present, rank):
    present[rank >> _SIX] ^= _ONE << (rank & _LOW_SIX)


@kernel
def _next_present(present, rank):
    """Return the first rank above ``rank`` that is in the window; there is one."""
    word = rank >> _SIX
    bits = present[word] & ((_ALL << (rank & _LOW_SIX)) << _ONE)
    while bits == 0:
        word += _ONE
        bits = present[word]
    return (word << _SIX) + _zeros_below(bits)


@kernel
def _last_present(present, rank):
    """Return the last rank below ``rank`` that is in the window; there is one."""
    word = rank >> _SIX
    bits = present[word] & ~(_ALL << (rank & _LOW_SIX))
    while bits == 0:
        word -= _ONE
        bits = present[word]
    return (word << _SIX) + _LOW_SIX - _zeros_above(bits)


@kernel
def _slide(rank_T, sorted_T, width, present, out_T):
    """Median of each ``width`` neighbours; ``present`` has a bit a rank, the median moves by one set bit at most."""
    present[:] = 0
    smallest = np.uint64(rank_T[0])
    for t in range(width):
        smallest = min(smallest, np.uint64(rank_T[t]))
        _flip(present, np.uint64(rank_T[t]))
    median = smallest
    for _ in range(width // 2):
        median = _next_present(present, median)
    out_T[0] = sorted_T[median]
    for t in range(1, len(out_T)):
        leaving, entering = np.uint64(rank_T[t - 1]), np.uint64(rank_T[t + width - 1])
        _flip(present, leaving)
        _flip(present, entering)
        more_below = np.int64(entering < median) - np.int64(leaving < median)
        if more_below > 0:
            median = _last_present(present, median)
        elif more_below < 0 or leaving == median:
            median = _next_present(present, median)
        out_T[t] = sorted_T[median]


@kernel
def slide_median(padded_T, width, scratch, out_T):
    """out[t] = median of padded[t:t + width]; ``scratch`` as ``median_scratch`` gives it."""
    near_T, counts, by_low_T, by_key_T, sorted_T, rank_T, present = scratch
    _rank(padded_T, near_T, counts, by_low_T, by_key_T, sorted_T, rank_T)
    _slide(rank_T, sorted_T, width, present, out_T)


@kernel
def median_scratch(n):
    return (
        np.empty(n, np.float32),
        np.empty((2, _DIGITS), np.uint32),
        np.empty(n, np.uint32),
        np.empty(n, np.uint32),
        np.empty(n, np.float64),
        np.empty(n, np.uint32),
        np.empty(n // 64 + 1, np.uint64),
    )


@kernel
def _running_medians(x_WT, width, out_WT):
    n = x_WT.shape[1]
    padded_T = np.zeros(n + width - 1)
    scratch = median_scratch(len(padded_T))
    for w in range(x_WT.shape[0]):
        for t in range(n):
            padded_T[width // 2 + t] = x_WT[w, t]
        slide_median(padded_T, width, scratch, out_WT[w])


def running_median(x_WT, width):
    """Return the median of the ``width`` samples around each sample, zeros beyond the edges.

    Parameters
    ----------
    x_WT : float64 array, shape (W, T)
        Finite; each row is one window of fewer than 2,000,000 samples.
    width : int
        Odd.

    Returns
    -------
    float64 array, shape (W, T)

    Notes
    -----
    Equal to ``scipy.signal.medfilt`` of each row. Each sample is ranked once among its window (radix sort, O(T)); a set
    of bits then holds which ranks are inside, and the median's rank steps to a neighbouring bit (Suomela, "Median
    filtering is equivalent to sorting", 2014, ranks blocks instead of windows).
    """
    x_WT = np.ascontiguousarray(x_WT, np.float64)
    if x_WT.ndim != 2 or width < 1 or width % 2 == 0 or x_WT.shape[1] + width > MAX_SAMPLES:
        raise ValueError(f"wanted (W, T) below {MAX_SAMPLES} samples and an odd width; found {x_WT.shape}, {width}")
    out_WT = np.empty_like(x_WT)
    if x_WT.size:
        _running_medians(x_WT, width, out_WT)
    return out_WT
