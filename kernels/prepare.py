"""Filter each window alone, as the foundation model's own preparation does."""

import json
import zlib
from functools import lru_cache

import numpy as np
from scipy.signal import butter, iirnotch, lfilter_zi

from anyecg.kernels._jit import kernel
from anyecg.kernels._lanes import LANES, aligned_rows, from_lanes, load, splat, store, to_lanes
from anyecg.kernels.median import block_of, median_scratch, subtract_median
from anyecg.kernels.presets import PRESETS

# The longest edge extension of a filter: three times its coefficients.
_EDGE = 27


@kernel
def _second_order(b, a, zi, x, first, step, n):
    """Filter ``n`` rows of 8 lanes in place from row ``first`` on, the state starting at zi * x[first].

    Direct form II transposed, in the very order of scipy.signal.lfilter: at 1 kHz and above the band-pass turns a
    difference in the last bit into 1e-3 SD.
    """
    b0, b1, b2, a1, a2 = splat(b[0]), splat(b[1]), splat(b[2]), splat(a[1]), splat(a[2])
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
def _band_pass(b, a, zi, x, first, step, n):
    """As ``_second_order``, of order 8 and b0 * (1, 0, -4, 0, 6, 0, -4, 0, 1), a Butterworth band-pass.

    Written out, so that the whole state stays in registers.
    """
    b0, b2, b4 = splat(b[0]), splat(b[2]), splat(b[4])
    a1, a2, a3, a4 = splat(a[1]), splat(a[2]), splat(a[3]), splat(a[4])
    a5, a6, a7, a8 = splat(a[5]), splat(a[6]), splat(a[7]), splat(a[8])
    at = first * LANES
    x0 = load(x, at)
    s0, s1, s2, s3 = splat(zi[0]) * x0, splat(zi[1]) * x0, splat(zi[2]) * x0, splat(zi[3]) * x0
    s4, s5, s6, s7 = splat(zi[4]) * x0, splat(zi[5]) * x0, splat(zi[6]) * x0, splat(zi[7]) * x0
    for _ in range(n):
        x0 = load(x, at)
        outer, inner = b0 * x0, b2 * x0
        y0 = s0 + outer
        s0 = s1 - a1 * y0
        s1 = (s2 + inner) - a2 * y0
        s2 = s3 - a3 * y0
        s3 = (s4 + b4 * x0) - a4 * y0
        s4 = s5 - a5 * y0
        s5 = (s6 + inner) - a6 * y0
        s6 = s7 - a7 * y0
        s7 = outer - a8 * y0
        store(x, at, y0)
        at += step * LANES


@kernel
def _filtfilt(b, a, zi, x_TL, edge):
    """Filter forward and backward in place, odd extension into the ``edge`` rows at both ends (as scipy.signal)."""
    pad = 3 * len(b)
    start, stop = edge, len(x_TL) - edge
    for i in range(1, pad + 1):
        for lane in range(LANES):
            x_TL[start - i, lane] = 2.0 * x_TL[start, lane] - x_TL[start + i, lane]
            x_TL[stop - 1 + i, lane] = 2.0 * x_TL[stop - 1, lane] - x_TL[stop - 1 - i, lane]
    for first, step in ((start - pad, 1), (stop - 1 + pad, -1)):
        if len(zi) == 2:
            _second_order(b, a, zi, x_TL, first, step, stop - start + 2 * pad)
        else:
            _band_pass(b, a, zi, x_TL, first, step, stop - start + 2 * pad)


@kernel
def _moments(x_TL, edge, mean_L, scale_L):
    """Fill each lane's mean and 1 / (SD + 1e-8).

    Sums run over x less its first sample: (mean - first)^2 is at most n variances, so the difference of sums is safe,
    and the first of an odd number of samples adds nothing.
    Two sums of each, so that an addition seldom waits for the last one.
    """
    n = len(x_TL) - 2 * edge
    first = load(x_TL, edge * LANES)
    sum0 = sum1 = square0 = square1 = splat(0.0)
    for t in range(edge + n % 2, edge + n, 2):
        x0, x1 = load(x_TL, t * LANES) - first, load(x_TL, (t + 1) * LANES) - first
        sum0, sum1, square0, square1 = sum0 + x0, sum1 + x1, square0 + x0 * x0, square1 + x1 * x1
    store(mean_L, 0, sum0 + sum1)
    store(scale_L, 0, square0 + square1)
    for lane in range(LANES):
        mean = mean_L[lane] / n
        variance = max(0.0, scale_L[lane] / n - mean * mean)
        mean_L[lane] = mean + x_TL[edge, lane]
        scale_L[lane] = 1.0 / (np.sqrt(variance) + 1e-8)


@kernel
def _prepare(windows_WT, filters, width, block, zscore, out_WT):
    """Fill ``out_WT`` and tell whether all samples are finite; ``width`` 0 is no median."""
    n_windows, n = windows_WT.shape
    edge, key, scratch = median_scratch(n, width, block)
    edge = max(edge, _EDGE)
    x_TL = aligned_rows(n + 2 * edge)
    mean_L, scale_L = np.zeros(LANES), np.ones(LANES)
    for first in range(0, n_windows, LANES):
        if not to_lanes(windows_WT, first, x_TL, edge):
            return False
        for f in range(filters.shape[0]):
            length = int(filters[f, 3, 0])
            _filtfilt(filters[f, 0, :length], filters[f, 1, :length], filters[f, 2, : length - 1], x_TL, edge)
        if width:
            subtract_median(x_TL, edge, width, block, key, scratch)
        if zscore:
            _moments(x_TL, edge, mean_L, scale_L)
        from_lanes(x_TL, edge, mean_L, scale_L, first, out_WT)
    return True


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
    Within 1e-3 standard deviations of scipy.signal's iirnotch, butter, filtfilt and medfilt, edges included. Filters
    run in float64 in SciPy's order; the median is of the band-passed window in steps of its largest size / 32767.
    Eight windows cost as much as one: give at least eight a call.
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
    windows_WT = np.ascontiguousarray(windows_WT, np.float32 if windows_WT.dtype == np.float32 else np.float64)
    filters, width = _design(preset, float(fs))
    out_WT = np.empty(windows_WT.shape, np.float32)
    if windows_WT.size and not _prepare(windows_WT, filters, width, block_of(width), zscore, out_WT):
        raise ValueError("windows hold samples that are not finite; cut around them first")
    return out_WT
