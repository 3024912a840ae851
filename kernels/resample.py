"""Change the sampling rate of one lead by a rational ratio, low-pass filtered."""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.signal import firwin

from anyecg.kernels._jit import kernel
from anyecg.kernels._lanes import LANES, load, splat, store

MAX_FACTOR = 100_000


# Outputs of one phase that are summed together: four vectors, so that an addition seldom waits for the last one.
_ABREAST = 4 * LANES


@kernel
def _deal(x_T, first, input_DN):
    """Deal the input onto the rows like cards, from flat position ``first`` on: row = position % down."""
    down = input_DN.shape[0]
    row, column = first % down, first // down
    for t in range(len(x_T)):
        input_DN[row, column] = x_T[t]
        row += 1
        if row == down:
            row, column = 0, column + 1


@kernel
def _polyphase(input_DN, taps_PK, up, delay, out_T):
    """out[m] = sum_k taps[phase, k] * x[n - k], with m * down + delay = n * up + phase.

    Outputs ``up`` apart share their phase and meet inputs ``down`` apart: those are neighbours in a row of
    ``input_DN``, which begins with as many zeros as there are taps.
    """
    down, n_columns = input_DN.shape
    n_out, n_taps = len(out_T), taps_PK.shape[1]
    sums = np.empty(_ABREAST)
    for start in range(0, n_out, _ABREAST * up):
        for first in range(start, min(start + up, n_out)):
            position = first * down + delay
            phase, newest = position % up, position // up + n_taps
            row, column = newest % down, newest // down
            sum0 = sum1 = sum2 = sum3 = splat(0.0)
            for k in range(n_taps):
                tap, at = splat(taps_PK[phase, k]), row * n_columns + column
                sum0 = sum0 + tap * load(input_DN, at)
                sum1 = sum1 + tap * load(input_DN, at + LANES)
                sum2 = sum2 + tap * load(input_DN, at + 2 * LANES)
                sum3 = sum3 + tap * load(input_DN, at + 3 * LANES)
                row -= 1
                if row < 0:
                    row, column = down - 1, column - 1
            store(sums, 0, sum0)
            store(sums, LANES, sum1)
            store(sums, 2 * LANES, sum2)
            store(sums, 3 * LANES, sum3)
            for i in range(min(_ABREAST, (n_out - first + up - 1) // up)):
                out_T[first + i * up] = sums[i]


@lru_cache(maxsize=32)
def _ratio(fs_in, fs_out):
    """Return (up, down) as the smallest integers with fs_out / fs_in = up / down."""
    if not (0 < fs_in < 1e6 and 0 < fs_out < 1e6):
        raise ValueError(f"sampling rates must lie between 0 and 1e6 Hz; found {fs_in} and {fs_out}")
    ratio = Fraction(repr(float(fs_out))) / Fraction(repr(float(fs_in)))
    if max(ratio.numerator, ratio.denominator) > MAX_FACTOR:
        raise ValueError(f"{fs_in} Hz to {fs_out} Hz needs factors above {MAX_FACTOR}; give rates with fewer digits")
    return ratio.numerator, ratio.denominator


@lru_cache(maxsize=32)
def _taps(up, down, quality):
    """Return the filter as (phases, taps a phase) and its delay at the up-sampled rate."""
    rate = max(up, down)
    if quality == "scipy":
        half, cutoff, beta = 10 * rate, 1.0 / rate, 5.0
    else:
        # Kaiser's formula for 120 dB: the transition band ends at the lower Nyquist frequency.
        half, beta = 48 * rate, 0.1102 * (120.0 - 8.7)
        cutoff = 1.0 / rate - (120.0 - 7.95) / (2.285 * np.pi * 2 * half) / 2
    taps = up * firwin(2 * half + 1, cutoff, window=("kaiser", beta))
    taps = np.concatenate([taps, np.zeros(-len(taps) % up)])
    return np.ascontiguousarray(taps.reshape(-1, up).T), half


def resample(signal, *, fs_in, fs_out, quality="scipy"):
    """Resample one lead from ``fs_in`` to ``fs_out``, low-pass filtered first.

    Parameters
    ----------
    signal : array of numbers, shape (samples,)
        Voltage; int16 as it is, everything else as float32. NaN and infinity are refused: fill short gaps and split
        at long ones before.
    fs_in, fs_out : int or float
        Sampling rates in Hz; any rational ratio.
    quality : {"scipy", "high"}
        "scipy" is the filter of ``scipy.signal.resample_poly`` (Kaiser, beta 5, 10 zero crossings);
        "high" a Kaiser filter of 120 dB that passes 0.84 of the lower Nyquist band.

    Returns
    -------
    float32 array, shape (ceil(samples * fs_out / fs_in),)

    Raises
    ------
    ValueError
        Not one-dimensional, another dtype, a sample that is not finite, or unusable rates.

    Notes
    -----
    With "scipy" equal to ``scipy.signal.resample_poly`` (zeros beyond the edges) to 1e-5 of the largest sample.
    Sums run in float64.
    """
    signal = np.asarray(signal)
    if signal.ndim != 1 or signal.dtype.kind not in "fiu":
        raise ValueError(f"signal must be numbers of shape (samples,); found {signal.dtype} {signal.shape}")
    if signal.dtype != np.int16:
        signal = signal.astype(np.float32, copy=False)
    if signal.dtype == np.float32 and not np.isfinite(signal).all():
        raise ValueError("signal holds samples that are not finite; fill short gaps and split at long ones first")
    up, down = _ratio(fs_in, fs_out)
    if quality not in ("scipy", "high"):
        raise ValueError(f"quality must be 'scipy' or 'high'; found {quality!r}")
    if up == down:
        return signal.astype(np.float32)
    taps_PK, delay = _taps(up, down, quality)
    out_T = np.empty(-(-len(signal) * up // down), np.float32)
    n_taps = taps_PK.shape[1]
    newest = ((len(out_T) - 1) * down + delay) // up
    input_DN = np.zeros((down, -(-(n_taps + max(newest + 1, len(signal))) // down) + _ABREAST))
    _deal(signal, n_taps, input_DN)
    _polyphase(input_DN, taps_PK, up, delay, out_T)
    return out_T
