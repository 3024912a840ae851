"""Change the sampling rate of one lead by a rational ratio, low-pass filtered."""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from scipy.signal import firwin

from anyecg.kernels._jit import kernel
from anyecg.kernels._lanes import LANES, load, splat, total

MAX_FACTOR = 100_000


@kernel
def _polyphase(padded_T, taps_PK, up, down, delay, out_T):
    """out[m] = sum_k taps[phase, k] * padded[n + k], with m * down + delay = n * up + phase.

    Eight partial sums a sample, added in one fixed order, so that no addition waits for the last one.
    """
    n_taps = taps_PK.shape[1]
    n, phase = delay // up, delay % up
    for m in range(out_T.shape[0]):
        sums = splat(0.0)
        for k in range(0, n_taps, LANES):
            sums = sums + load(taps_PK, phase * n_taps + k) * load(padded_T, n + k)
        out_T[m] = total(sums)
        n += down // up
        phase += down % up
        if phase >= up:
            n += 1
            phase -= up


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
    """Return the filter as (phases, taps a phase, a multiple of 8) and its delay at the up-sampled rate."""
    rate = max(up, down)
    if quality == "scipy":
        half, cutoff, beta = 10 * rate, 1.0 / rate, 5.0
    else:
        # Kaiser's formula for 120 dB: the transition band ends at the lower Nyquist frequency.
        half, beta = 48 * rate, 0.1102 * (120.0 - 8.7)
        cutoff = 1.0 / rate - (120.0 - 7.95) / (2.285 * np.pi * 2 * half) / 2
    taps = up * firwin(2 * half + 1, cutoff, window=("kaiser", beta))
    taps = np.concatenate([taps, np.zeros(-len(taps) % (up * LANES))])
    # Sample n of the input meets the first tap, n - 1 the second: last tap first, both run forwards.
    return np.ascontiguousarray(taps.reshape(-1, up)[::-1].T), half


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
    last = ((len(out_T) - 1) * down + delay) // up
    padded_T = np.zeros(n_taps - 1 + max(len(signal), last + 1))
    padded_T[n_taps - 1 : n_taps - 1 + len(signal)] = signal
    _polyphase(padded_T, taps_PK, up, down, delay, out_T)
    return out_T
