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


@kernel
def _n_beats(x_T, fs, spread):
    """Count stretches whose 80-ms range stands out: over 0.15 mV and 2.5 times the window's median range.

    ``spread`` is scratch of one value for each 20-ms block.
    """
    step = max(1, int(0.02 * fs))
    n_blocks = len(x_T) // step
    for i in range(n_blocks):
        start = max(0, (i - 1) * step)
        stop = min(len(x_T), (i + 3) * step)
        low = high = x_T[start]
        for t in range(start, stop):
            low = min(low, x_T[t])
            high = max(high, x_T[t])
        spread[i] = high - low
    threshold = max(0.15, 2.5 * np.median(spread[:n_blocks]))
    beats, quiet = 0, 10
    for i in range(n_blocks):
        if spread[i] > threshold:
            if quiet >= 10:
                beats += 1
            quiet = 0
        else:
            quiet += 1
    return beats


@kernel
def _quality(raw_WT, fs, flags_W):
    n = raw_WT.shape[1]
    clip_run = max(3, int(0.04 * fs))
    spread = np.empty(n)
    for w in range(raw_WT.shape[0]):
        flags_W[w] = 0
        low = high = raw_WT[w, 0]
        finite = True
        for t in range(n):
            value = raw_WT[w, t]
            if not np.isfinite(value):
                finite = False
                break
            low = min(low, value)
            high = max(high, value)
        if not finite:
            flags_W[w] = NONFINITE
            continue
        if high - low < 0.01:
            flags_W[w] = FLAT
            continue
        largest = max(abs(low), abs(high))
        if largest > 20.0:
            flags_W[w] |= HUGE
        elif largest > 4.0:
            flags_W[w] |= OVER_4MV
        run = 1
        for t in range(1, n):
            value = raw_WT[w, t]
            run = run + 1 if value == raw_WT[w, t - 1] and (value == low or value == high) else 1
            if run >= clip_run:
                flags_W[w] |= CLIPPED
                break
        if _n_beats(raw_WT[w], fs, spread) == 0:
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
def _quantise(x_WT, scale_W, out_WT):
    for w in range(x_WT.shape[0]):
        largest = 0.0
        for t in range(x_WT.shape[1]):
            largest = max(largest, abs(x_WT[w, t]))
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
