"""Filter each window alone, as the foundation model's own preparation does."""

import json
import zlib
from functools import lru_cache

import numpy as np
from scipy.signal import butter, iirnotch, lfilter_zi

from anyecg.kernels._jit import kernel
from anyecg.kernels._lanes import LANES, load, splat, store, total
from anyecg.kernels.median import median_scratch, slide_median

PRESETS = ("ecgfounder", "ecgfounder-paper", "none")


# The longest edge extension of a filter: three times its coefficients.
_EDGE = 27


@kernel
def _second_order(b, a, zi, x, first, step, n):
    """Filter ``n`` samples of 8 lanes in place from sample ``first`` on, the state starting at zi * x[first]."""
    b0, b1, b2 = splat(b[0]), splat(b[1]), splat(b[2])
    a1, a2 = splat(a[1]), splat(a[2])
    at = first * LANES
    x0 = load(x, at)
    s0, s1 = splat(zi[0]) * x0, splat(zi[1]) * x0
    for _ in range(n):
        x0 = load(x, at)
        y0 = s0 + b0 * x0
        s0 = s1 + b1 * x0 - a1 * y0
        s1 = b2 * x0 - a2 * y0
        store(x, at, y0)
        at += step * LANES


@kernel
def _eighth_order(b, a, zi, x, first, step, n):
    """As ``_second_order``; written out, so that the whole state stays in registers."""
    b0, b1, b2, b3, b4 = splat(b[0]), splat(b[1]), splat(b[2]), splat(b[3]), splat(b[4])
    b5, b6, b7, b8 = splat(b[5]), splat(b[6]), splat(b[7]), splat(b[8])
    a1, a2, a3, a4 = splat(a[1]), splat(a[2]), splat(a[3]), splat(a[4])
    a5, a6, a7, a8 = splat(a[5]), splat(a[6]), splat(a[7]), splat(a[8])
    at = first * LANES
    x0 = load(x, at)
    s0, s1, s2, s3 = splat(zi[0]) * x0, splat(zi[1]) * x0, splat(zi[2]) * x0, splat(zi[3]) * x0
    s4, s5, s6, s7 = splat(zi[4]) * x0, splat(zi[5]) * x0, splat(zi[6]) * x0, splat(zi[7]) * x0
    for _ in range(n):
        x0 = load(x, at)
        y0 = s0 + b0 * x0
        s0 = s1 + b1 * x0 - a1 * y0
        s1 = s2 + b2 * x0 - a2 * y0
        s2 = s3 + b3 * x0 - a3 * y0
        s3 = s4 + b4 * x0 - a4 * y0
        s4 = s5 + b5 * x0 - a5 * y0
        s5 = s6 + b6 * x0 - a6 * y0
        s6 = s7 + b7 * x0 - a7 * y0
        s7 = b8 * x0 - a8 * y0
        store(x, at, y0)
        at += step * LANES


@kernel
def _filtfilt(b, a, zi, x_TL, n):
    """Filter forward and backward in place, odd extension at both ends (scipy.signal.filtfilt).

    The ``n`` samples start at row _EDGE; the filter is in direct form II transposed, as scipy.signal.lfilter.
    """
    pad = 3 * len(b)
    start, stop = _EDGE, _EDGE + n
    for i in range(1, pad + 1):
        for lane in range(LANES):
            x_TL[start - i, lane] = 2.0 * x_TL[start, lane] - x_TL[start + i, lane]
            x_TL[stop - 1 + i, lane] = 2.0 * x_TL[stop - 1, lane] - x_TL[stop - 1 - i, lane]
    for first, step in ((start - pad, 1), (stop - 1 + pad, -1)):
        if len(zi) == 2:
            _second_order(b, a, zi, x_TL, first, step, n + 2 * pad)
        else:
            _eighth_order(b, a, zi, x_TL, first, step, n + 2 * pad)


@kernel
def _to_lanes(windows_WT, first, x_TL):
    """Put eight windows side by side from ``first`` on; beyond the last one its own copy fills the lanes."""
    last = windows_WT.shape[0] - 1
    for t in range(windows_WT.shape[1]):
        for lane in range(LANES):
            x_TL[_EDGE + t, lane] = windows_WT[min(first + lane, last), t]


@kernel
def _from_lanes(x_TL, edge, x_LT):
    for t in range(x_LT.shape[1] - 2 * edge):
        for lane in range(LANES):
            x_LT[lane, edge + t] = x_TL[_EDGE + t, lane]


@kernel
def _sum(x_T, mean, power):
    """Return the sum of (x - mean)^power, power 1 or 2: 8 partial sums, so that no addition waits for the last one."""
    n = len(x_T)
    middle, sums = splat(mean), splat(0.0)
    whole = n - n % LANES
    for t in range(0, whole, LANES):
        difference = load(x_T, t) - middle
        sums = sums + (difference * difference if power == 2 else difference)
    result = total(sums)
    for t in range(whole, n):
        difference = x_T[t] - mean
        result += difference * difference if power == 2 else difference
    return result


@kernel
def _zscore(x_T):
    """(x - mean) / (SD + 1e-8), in place."""
    mean = _sum(x_T, 0.0, 1) / len(x_T)
    variance = _sum(x_T, mean, 2) / len(x_T)
    scale = 1.0 / (np.sqrt(variance) + 1e-8)
    for t in range(len(x_T)):
        x_T[t] = (x_T[t] - mean) * scale


@kernel
def _prepare(windows_WT, filters, median_width, zscore, out_WT):
    n_windows, n = windows_WT.shape
    half = median_width // 2
    x_TL = np.empty((n + 2 * _EDGE, LANES))
    x_LT = np.zeros((LANES, n + 2 * half))
    median_T = np.empty(n)
    scratch = median_scratch(n + 2 * half)
    for first in range(0, n_windows, LANES):
        _to_lanes(windows_WT, first, x_TL)
        for f in range(filters.shape[0]):
            length = int(filters[f, 3, 0])
            _filtfilt(filters[f, 0, :length], filters[f, 1, :length], filters[f, 2, : length - 1], x_TL, n)
        _from_lanes(x_TL, half, x_LT)
        for lane in range(min(LANES, n_windows - first)):
            x_T = x_LT[lane, half : half + n]
            if median_width:
                slide_median(x_LT[lane], median_width, scratch, median_T)
                for t in range(n):
                    median_T[t] = x_T[t] - median_T[t]
                x_T = median_T
            if zscore:
                _zscore(x_T)
            for t in range(n):
                out_WT[first + lane, t] = x_T[t]


@lru_cache(maxsize=16)
def _design(preset, fs):
    """Return the preset's filters as one array (filters, [b, a, zi, length], 16) and its median width."""
    if preset == "ecgfounder":
        pairs = [iirnotch(50, 30, fs=fs), butter(4, [0.67, 40], btype="bandpass", fs=fs)]
        median_width = 2 * int(0.2 * fs) + 1
    elif preset == "ecgfounder-paper":
        pairs = [butter(2, 0.5, btype="highpass", fs=fs), butter(2, 50, btype="lowpass", fs=fs)]
        median_width = 0
    else:
        pairs, median_width = [], 0
    filters = np.zeros((len(pairs), 4, 16))
    for row, (b, a) in zip(filters, pairs, strict=True):
        row[0, : len(b)], row[1, : len(a)], row[2, : len(b) - 1] = b, a, lfilter_zi(b, a)
        row[3, 0] = len(b)
    return filters, median_width


def preset_hash(preset, fs):
    """Return eight hexadecimal digits of the preset's parameters, the same on every machine.

    The parameters, not the designed coefficients, are hashed: the latter may differ in the last bit between builds.
    """
    parameters = {
        "ecgfounder": ["notch 50 Hz Q 30", "butter 4 0.67-40 Hz", "median 2*floor(0.2 fs)+1", "filtfilt b,a"],
        "ecgfounder-paper": ["butter 2 highpass 0.5 Hz", "butter 2 lowpass 50 Hz", "filtfilt b,a"],
        "none": [],
    }[preset]
    return f"{zlib.crc32(json.dumps([preset, float(fs), parameters]).encode()):08x}"


def prepare(windows_WT, *, fs=500, preset="ecgfounder", zscore=True):
    """Filter each window alone and standardise it.

    Parameters
    ----------
    windows_WT : array, shape (W, T)
        Voltage in mV, finite; each row is one window.
    fs : int or float
        Sampling rate in Hz, above 100.
    preset : {"ecgfounder", "ecgfounder-paper", "none"}
        ``ecgfounder``: notch 50 Hz (Q 30), Butterworth band-pass 0.67-40 Hz (N = 4), both forward and backward, minus
        the running median of 2*floor(0.2 fs)+1 samples (ECGFounder's published code). ``ecgfounder-paper``:
        high-pass 0.5 Hz then low-pass 50 Hz (N = 2 each), forward and backward. ``none``: no filter.
    zscore : bool
        End with (x - mean) / (SD + 1e-8).

    Returns
    -------
    float32 array, shape (W, T)

    Raises
    ------
    ValueError
        Another shape, an unknown preset, a window shorter than the filters' padding, a sample that is not finite.

    Notes
    -----
    Within 1e-3 standard deviations of scipy.signal's iirnotch, butter, filtfilt and medfilt, edges included;
    recurrences run in float64.
    """
    windows_WT = np.asarray(windows_WT)
    if windows_WT.ndim != 2:
        raise ValueError(f"windows must have shape (W, T); found {windows_WT.shape}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; found {preset!r}")
    if preset != "none" and (fs <= 100 or windows_WT.shape[1] < fs):
        raise ValueError(
            f"preset {preset} needs at least 1 s at more than 100 Hz; found {windows_WT.shape[1]} samples at {fs} Hz"
        )
    if not np.isfinite(windows_WT).all():
        raise ValueError("windows hold samples that are not finite; cut around them first")
    filters, median_width = _design(preset, float(fs))
    out_WT = np.empty(windows_WT.shape, np.float32)
    _prepare(windows_WT, filters, median_width, zscore, out_WT)
    return out_WT
