"""Filter each window alone, as the foundation model's own preparation does."""

import json
import zlib
from functools import lru_cache

import numpy as np
from scipy.signal import butter, iirnotch, lfilter_zi

from anyecg.kernels._jit import kernel

PRESETS = ("ecgfounder", "ecgfounder-paper", "none")


@kernel
def _lfilter(b, a, zi, first, x, out, state):
    """Direct form II transposed, as scipy.signal.lfilter; the state starts at zi * first."""
    order = len(zi)
    for i in range(order):
        state[i] = zi[i] * first
    for t in range(len(x)):
        sample = x[t]
        y = state[0] + b[0] * sample
        for i in range(order - 1):
            state[i] = state[i + 1] + b[i + 1] * sample - a[i + 1] * y
        state[order - 1] = b[order] * sample - a[order] * y
        out[t] = y


@kernel
def _filtfilt(b, a, zi, x_T, padded, reverse, state):
    """Filter forward and backward in place, odd extension at both ends (scipy.signal.filtfilt)."""
    n = len(x_T)
    pad = 3 * len(b)
    for i in range(pad):
        padded[i] = 2.0 * x_T[0] - x_T[pad - i]
        padded[pad + n + i] = 2.0 * x_T[n - 1] - x_T[n - 2 - i]
    for i in range(n):
        padded[pad + i] = x_T[i]
    total = n + 2 * pad
    _lfilter(b, a, zi, padded[0], padded[:total], reverse[:total], state)
    for i in range(total):
        padded[i] = reverse[total - 1 - i]
    _lfilter(b, a, zi, padded[0], padded[:total], reverse[:total], state)
    for i in range(n):
        x_T[i] = reverse[total - 1 - pad - i]


@kernel
def _place(ranked, n, value):
    """Return the first position in ranked[:n] whose value is not below ``value``."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if ranked[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _subtract_median(x_T, width, ranked, out_T):
    """out = x - running median of ``width`` samples, zeros beyond the edges (scipy.signal.medfilt)."""
    n = len(x_T)
    half = width // 2
    for i in range(width):
        value = x_T[i - half] if i >= half else 0.0
        at = _place(ranked, i, value)
        for j in range(i, at, -1):
            ranked[j] = ranked[j - 1]
        ranked[at] = value
    out_T[0] = x_T[0] - ranked[half]
    for t in range(1, n):
        leaving = x_T[t - half - 1] if t - half - 1 >= 0 else 0.0
        entering = x_T[t + half] if t + half < n else 0.0
        gap = _place(ranked, width, leaving)
        if entering > leaving:
            while gap + 1 < width and ranked[gap + 1] < entering:
                ranked[gap] = ranked[gap + 1]
                gap += 1
        else:
            while gap > 0 and ranked[gap - 1] > entering:
                ranked[gap] = ranked[gap - 1]
                gap -= 1
        ranked[gap] = entering
        out_T[t] = x_T[t] - ranked[half]


@kernel
def _zscore(x_T):
    """(x - mean) / (SD + 1e-8), in place."""
    n = len(x_T)
    mean = 0.0
    for t in range(n):
        mean += x_T[t]
    mean /= n
    variance = 0.0
    for t in range(n):
        variance += (x_T[t] - mean) ** 2
    scale = 1.0 / (np.sqrt(variance / n) + 1e-8)
    for t in range(n):
        x_T[t] = (x_T[t] - mean) * scale


@kernel
def _prepare(windows_WT, filters, median_width, zscore, out_WT):
    n = windows_WT.shape[1]
    x = np.empty(n)
    filtered = np.empty(n)
    padded = np.empty(n + 6 * 16)
    reverse = np.empty(n + 6 * 16)
    state = np.empty(16)
    ranked = np.empty(max(median_width, 1))
    for w in range(windows_WT.shape[0]):
        for t in range(n):
            x[t] = windows_WT[w, t]
        for f in range(filters.shape[0]):
            length = int(filters[f, 3, 0])
            _filtfilt(
                filters[f, 0, :length], filters[f, 1, :length], filters[f, 2, : length - 1], x, padded, reverse, state
            )
        if median_width:
            _subtract_median(x, median_width, ranked, filtered)
            x, filtered = filtered, x
        if zscore:
            _zscore(x)
        for t in range(n):
            out_WT[w, t] = x[t]


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
