"""Cut a lead into windows on one grid, judge each raw window, and store it as int16 with a scale."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels._rows import LANES, transpose

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
_MINUS_ZERO = ~_MAGNITUDE


@kernel
def _turn(bits):
    """Between the bits of a float32 and an integer of the same order: negative floats grow downwards.

    LLVM turns the minimum of integers into vectors, that of floats not, since a NaN would matter.
    """
    return np.int32(bits ^ ((bits >> np.int32(31)) & _MAGNITUDE))


@kernel
def _largest(bits_T):
    """Return the bits of the largest magnitude; not finite lies above all numbers."""
    largest = np.int32(0)
    for t in range(len(bits_T)):
        largest = max(largest, bits_T[t] & _MAGNITUDE)
    return largest


@kernel
def _blocks(key_T, step, key_TB, low_B, high_B):
    """Fill the smallest and the largest key of each block of ``step`` samples.

    ``key_T`` holds the bits of keys as float32 and reaches a tile beyond the last block. In ``key_TB`` the blocks lie
    side by side, where vectors compare them.
    """
    n_blocks = key_TB.shape[1]
    for t in range(0, step, LANES):
        for block in range(0, n_blocks, LANES):
            transpose(key_T, block * step + t, step, key_TB, t * n_blocks + block, n_blocks)
    turned_TB = key_TB.view(np.int32)
    low_B[:] = turned_TB[0]
    high_B[:] = turned_TB[0]
    for t in range(1, step):
        key_B = turned_TB[t]
        for i in range(n_blocks):
            low_B[i] = min(low_B[i], key_B[i])
            high_B[i] = max(high_B[i], key_B[i])


@kernel
def _ranges(low_B, high_B, n_blocks, spread_B):
    """Fill the range of each 20-ms block with one block before and two after it.

    The keys of block i stand at i + 1; they are used up.
    """
    # Beyond the ends the outermost block again, so that each range has four.
    low_B[0], high_B[0] = low_B[1], high_B[1]
    low_B[n_blocks + 1 : n_blocks + 3], high_B[n_blocks + 1 : n_blocks + 3] = low_B[n_blocks], high_B[n_blocks]
    n_ranges = len(spread_B)
    for i in range(n_ranges):
        low_B[i] = _turn(min(min(low_B[i], low_B[i + 1]), min(low_B[i + 2], low_B[i + 3])))
        high_B[i] = _turn(max(max(high_B[i], high_B[i + 1]), max(high_B[i + 2], high_B[i + 3])))
    low_mv_B, high_mv_B = low_B.view(np.float32), high_B.view(np.float32)
    for i in range(n_ranges):
        spread_B[i] = high_mv_B[i] - low_mv_B[i]


@kernel
def _has_beat(spread_B):
    """Tell whether an 80-ms range stands out: over 0.15 mV and 2.5 times the median of the window's."""
    n_ranges, bits_B = len(spread_B), spread_B.view(np.int32)  # no range is negative
    widest = _largest(bits_B)
    largest = 0.0
    for i in range(n_ranges):
        if bits_B[i] == widest:
            largest = np.float64(spread_B[i])
            break
    if largest <= 0.15:
        return False
    n_small = np.int32(0)
    for i in range(n_ranges):
        n_small = np.int32(n_small + (2.5 * np.float64(spread_B[i]) < largest))
    # The median lies between the two middle ranges; only where they differ in this is it worth its price.
    if n_small > n_ranges // 2:
        return True
    if n_ranges - n_small > n_ranges // 2:
        return False
    return largest > 2.5 * np.median(spread_B.astype(np.float64))


@kernel
def _is_clipped(key_T, low, high, run):
    """Tell whether ``run`` neighbours stay at the window's smallest or at its largest value."""
    n_extreme = np.int32(0)  # as wide as the keys, so that vectors count
    for t in range(len(key_T)):
        n_extreme = np.int32(n_extreme + ((key_T[t] == low) | (key_T[t] == high)))
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
def _quality(bits_T, start_W, n, fs, flags_W):
    clip_run = max(3, int(0.04 * fs))
    step = max(1, int(0.02 * fs))
    n_blocks, n_ranges = (n + step - 1) // step, n // step
    # A row more than needed: rows 2 KiB apart would meet in few places of the cache.
    n_abreast = (n_blocks + 2 * LANES - 1) // LANES * LANES
    padded_T = np.zeros(n_abreast * step + LANES, np.float32)
    padded_key_T = padded_T.view(np.int32)
    key_T = padded_key_T[:n]
    key_TB = np.empty(((step + LANES - 1) // LANES * LANES, n_abreast), np.float32)
    low_B, high_B = np.empty(n_abreast + 3, np.int32), np.empty(n_abreast + 3, np.int32)
    spread_B = np.empty(n_ranges, np.float32)
    ends = np.empty(2, np.int32)
    ends_mv = ends.view(np.float32)
    for w in range(len(start_W)):
        flags_W[w] = 0
        window_T = bits_T[start_W[w] : start_W[w] + n]
        for t in range(n):
            # -0 becomes 0, which it equals.
            key_T[t] = 0 if window_T[t] == _MINUS_ZERO else _turn(window_T[t])
        padded_key_T[n : n_blocks * step] = key_T[n - 1]
        _blocks(padded_T, step, key_TB, low_B[1 : n_abreast + 1], high_B[1 : n_abreast + 1])
        lowest, highest = _INFINITE, ~_INFINITE
        for i in range(1, n_blocks + 1):
            lowest, highest = min(lowest, low_B[i]), max(highest, high_B[i])
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
        _ranges(low_B, high_B, n_blocks, spread_B)
        if not _has_beat(spread_B):
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
    n_windows, n = np.shape(raw_WT)
    return quality_at(np.ravel(raw_WT), np.arange(n_windows) * n, n, fs=fs)


def quality_at(signal, start_W, n, *, fs):
    """Judge the windows of ``n`` samples that begin at ``start_W`` in a signal of any length, where they lie.

    Returns
    -------
    uint8 array, shape (W,)
        See ``quality``.

    Raises
    ------
    ValueError
        A window that reaches beyond the signal.
    """
    signal = np.ascontiguousarray(signal, np.float32)
    start_W = np.ascontiguousarray(start_W, np.int64)
    flags_W = np.zeros(len(start_W), np.uint8)
    if n and len(start_W):
        if start_W.min() < 0 or start_W.max() + n > len(signal):
            raise ValueError(
                f"windows of {n} samples start from {start_W.min()} to {start_W.max()}; the signal has {len(signal)}"
            )
        _quality(signal.view(np.int32), start_W, n, float(fs), flags_W)
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
    (float32 array, int64 array)
        The signal without the short gaps, a copy unless it has no gaps at all, and which samples were filled.
    """
    signal = np.ascontiguousarray(signal, np.float32)
    if _largest(signal.view(np.int32)) < _INFINITE:
        return signal, np.empty(0, np.int64)
    signal, was_filled = signal.copy(), np.zeros(len(signal), bool)
    _fill_gaps(signal, int(0.04 * fs + 1e-9), was_filled)
    return signal, np.flatnonzero(was_filled)


def grid(n_samples, *, fs, seconds=10.0):
    """Return int64 start samples of the whole windows that fit in ``n_samples``."""
    n_windows = int(n_samples / fs / seconds + 1e-9)
    return np.floor(np.arange(n_windows) * seconds * fs + 1e-6).astype(np.int64)


@kernel
def _quantise(x_WT, bits_WT, row_W, out_WT, scale_W):
    found = np.empty(1, np.int32)
    found_mv = found.view(np.float32)
    for w in range(len(x_WT)):
        x_T, bits_T, out_T = x_WT[w], bits_WT[w], out_WT[row_W[w]]
        found[0] = _largest(bits_T)
        largest = np.float64(found_mv[0])
        scale = np.float32(largest / 32767.0) if largest > 0.0 else np.float32(1.0)
        scale_W[row_W[w]] = scale
        per_mv = 1.0 / np.float64(scale)
        for t in range(len(x_T)):
            out_T[t] = np.int16(max(-32767.0, min(32767.0, np.rint(x_T[t] * per_mv))))


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
    out_WT, scale_W = np.empty(np.shape(x_WT), np.int16), np.empty(len(x_WT), np.float32)
    quantise_into(out_WT, scale_W, np.arange(len(x_WT)), x_WT)
    return out_WT, scale_W


def quantise_into(out_WT, scale_W, row_W, x_WT):
    """Write what ``quantise`` returns into the rows ``row_W`` of arrays at least as wide; what is beyond stays."""
    x_WT = np.ascontiguousarray(x_WT, np.float32)
    if len(row_W) != len(x_WT) or x_WT.shape[1] > out_WT.shape[1] or row_W.max(initial=-1) >= len(out_WT):
        raise ValueError(f"windows {x_WT.shape} do not fit into {len(row_W)} rows of {out_WT.shape}")
    _quantise(x_WT, x_WT.view(np.int32), row_W, out_WT, scale_W)
