"""Cut a lead into windows on one grid, judge each raw window, and store it as int16 with a scale."""

import numpy as np

from anyecg.kernels._jit import kernel

# Bits of /windows/flags; the first three never reach a shard.
FLAT, HUGE, NONFINITE = 1, 2, 4
CLIPPED, OVER_4MV, NO_BEAT, GAP_FILLED, PADDED = 8, 16, 32, 64, 128
FLAG_NAMES = {
    FLAT: "flat",
    HUGE: "over 20 mV",
    NONFINITE: "not finite",
    CLIPPED: "clipped",
    OVER_4MV: "over 4 mV",
    NO_BEAT: "no beat found",
    GAP_FILLED: "gap up to 40 ms filled",
    PADDED: "zero-padded",
}
DROPPED = FLAT | HUGE | NONFINITE


_INFINITE = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)


@kernel
def _turn(bits):
    """Between the bits of a float32 and an integer of the same order: negative floats grow downwards.

    LLVM turns the minimum of integers into vectors, that of floats not, since a NaN would matter.
    """
    return np.int32(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE))


@kernel
def _ranges(key_T, step, low_B, high_B, spread_B):
    """Fill the range of each 20-ms block with one block before and two after it; return how many there are.

    ``step`` is 20 ms in samples; ``low_B`` and ``high_B`` are scratch. Samples past the last whole block count too.
    """
    n = len(key_T)
    n_blocks = (n + step - 1) // step
    for i in range(n_blocks):
        low = high = key_T[i * step]
        for t in range(i * step, min(n, (i + 1) * step)):
            low = min(low, key_T[t])
            high = max(high, key_T[t])
        low_B[i + 1], high_B[i + 1] = low, high
    # Beyond the ends the outermost block again, so that each range has four.
    low_B[0], high_B[0] = low_B[1], high_B[1]
    low_B[n_blocks + 1 : n_blocks + 3], high_B[n_blocks + 1 : n_blocks + 3] = low_B[n_blocks], high_B[n_blocks]
    n_ranges = n // step
    for i in range(n_ranges):
        low_B[i] = _turn(min(min(low_B[i], low_B[i + 1]), min(low_B[i + 2], low_B[i + 3])))
        high_B[i] = _turn(max(max(high_B[i], high_B[i + 1]), max(high_B[i + 2], high_B[i + 3])))
    low_mv_B, high_mv_B = low_B.view(np.float32), high_B.view(np.float32)
    for i in range(n_ranges):
        spread_B[i] = high_mv_B[i] - low_mv_B[i]
    return n_ranges


@kernel
def _has_beat(spread_B):
    """Tell whether an 80-ms range stands out: over 0.15 mV and 2.5 times the median of the window's."""
    n_ranges = len(spread_B)
    largest = 0.0
    for i in range(n_ranges):
        largest = max(largest, spread_B[i])
    if largest <= 0.15:
        return False
    n_small = 0
    for i in range(n_ranges):
        n_small += 2.5 * spread_B[i] < largest
    # The median lies between the two middle ranges; only where they differ in this is it worth its price.
    if n_small > n_ranges // 2:
        return True
    if n_ranges - n_small > n_ranges // 2:
        return False
    return largest > 2.5 * np.median(spread_B)


@kernel
def _is_clipped(key_T, low, high, run):
    """Tell whether ``run`` neighbours stay at the window's smallest or at its largest value."""
    n_extreme = 0
    for t in range(len(key_T)):
        n_extreme += (key_T[t] == low) | (key_T[t] == high)
    if n_extreme < run:
        return False
    length = 1
    for t in range(1, len(key_T)):
        value = key_T[t]
        length = length + 1 if value == key_T[t - 1] and (value == low or value == high) else 1
        if length >= run:
            return True
    return False


@kernel
def _quality(raw_WT, fs, flags_W):
    n = raw_WT.shape[1]
    clip_run = max(3, int(0.04 * fs))
    step = max(1, int(0.02 * fs))
    value_T = np.empty(n, np.float32)
    key_T = value_T.view(np.int32)
    low_B, high_B = np.empty(n + 3, np.int32), np.empty(n + 3, np.int32)
    spread_B = np.empty(n)
    ends = np.empty(2, np.int32)
    ends_mv = ends.view(np.float32)
    for w in range(raw_WT.shape[0]):
        flags_W[w] = 0
        lowest, highest = _INFINITE, ~_INFINITE
        for t in range(n):
            value_T[t] = raw_WT[w, t] + np.float32(0.0)  # -0 becomes 0, which it equals
        for t in range(n):
            key_T[t] = _turn(key_T[t])
            lowest, highest = min(lowest, key_T[t]), max(highest, key_T[t])
        if lowest <= ~_INFINITE or highest >= _INFINITE:
            flags_W[w] = NONFINITE
            continue
        ends[0], ends[1] = _turn(lowest), _turn(highest)
        low, high = ends_mv[0], ends_mv[1]
        if high - low < 0.01:
            flags_W[w] = FLAT
            continue
        largest = max(abs(low), abs(high))
        if largest > 20.0:
            flags_W[w] |= HUGE
        elif largest > 4.0:
            flags_W[w] |= OVER_4MV
        if _is_clipped(key_T, lowest, highest, clip_run):
            flags_W[w] |= CLIPPED
        if not _has_beat(spread_B[: _ranges(key_T, step, low_B, high_B, spread_B)]):
            flags_W[w] |= NO_BEAT


def quality(raw_WT, *, fs):
    """Judge raw windows, before any filter.

    Parameters
    ----------
    raw_WT : float32 array, shape (W, T)
        Voltage in mV as recorded, at the record's own rate.
    fs : float
        Sampling rate in Hz.

    Returns
    -------
    uint8 array, shape (W,)
        Bits: FLAT (range under 0.01 mV), HUGE (over 20 mV), NONFINITE; CLIPPED (at least 40 ms at the window's
        largest or smallest value), OVER_4MV, NO_BEAT (no 80-ms range over 0.15 mV and 2.5 times the median one).
    """
    flags_W = np.zeros(len(raw_WT), np.uint8)
    if raw_WT.size:
        _quality(np.ascontiguousarray(raw_WT, np.float32), float(fs), flags_W)
    return flags_W


@kernel
def _fill_gaps(x_T, max_gap, filled_T):
    """Interpolate the runs of at most ``max_gap`` invalid samples between valid ones, in place, and mark them."""
    n = len(x_T)
    t = 0
    while t < n:
        if np.isfinite(x_T[t]):
            t += 1
            continue
        stop = t
        while stop < n and not np.isfinite(x_T[stop]):
            stop += 1
        if t > 0 and stop < n and stop - t <= max_gap:
            for i in range(t, stop):
                fraction = (i - t + 1) / (stop - t + 1)
                x_T[i] = x_T[t - 1] + fraction * (x_T[stop] - x_T[t - 1])
                filled_T[i] = True
        t = stop


def fill_gaps(signal, *, fs):
    """Interpolate gaps up to 40 ms linearly; longer ones, and gaps at the edges, stay.

    Parameters
    ----------
    signal : float32 array, shape (samples,)
        Voltage in mV, not finite where invalid.
    fs : float
        Sampling rate in Hz.

    Returns
    -------
    (float32 array, bool array)
        A copy without the short gaps, and where it was filled.
    """
    filled = np.array(signal, np.float32)
    was_filled = np.zeros(len(filled), bool)
    _fill_gaps(filled, int(0.04 * fs + 1e-9), was_filled)
    return filled, was_filled


def grid(n_samples, *, fs, seconds=10.0):
    """Return int64 start samples of the whole windows that fit in ``n_samples``."""
    n_windows = int(n_samples / fs / seconds + 1e-9)
    return np.floor(np.arange(n_windows) * seconds * fs + 1e-6).astype(np.int64)


@kernel
def _largest(x_T, value):
    """Return the largest magnitude of finite samples; ``value`` is scratch of one float32."""
    bits_T = x_T.view(np.int32)
    largest = np.int32(0)
    for t in range(len(bits_T)):
        largest = max(largest, bits_T[t] & _MAGNITUDE)
    value.view(np.int32)[0] = largest
    return value[0]


@kernel
def _quantise(x_WT, scale_W, out_WT):
    value = np.empty(1, np.float32)
    for w in range(x_WT.shape[0]):
        largest = np.float64(_largest(x_WT[w], value))
        scale = np.float32(largest / 32767.0) if largest > 0.0 else np.float32(1.0)
        scale_W[w] = scale
        for t in range(x_WT.shape[1]):
            out_WT[w, t] = np.int16(max(-32767.0, min(32767.0, np.rint(x_WT[w, t] / np.float64(scale)))))


def quantise(x_WT):
    """Store windows as int16 with one scale each: mV = int16 x scale, off by at most half a scale.

    Parameters
    ----------
    x_WT : float32 array, shape (W, T)
        Filtered voltage in mV, finite.

    Returns
    -------
    (int16 array (W, T), float32 array (W,))
    """
    x_WT = np.ascontiguousarray(x_WT, np.float32)
    signal_WT = np.empty(x_WT.shape, np.int16)
    scale_W = np.empty(len(x_WT), np.float32)
    _quantise(x_WT, scale_W, signal_WT)
    return signal_WT, scale_W
