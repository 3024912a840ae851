"""Change the sampling rate of one lead by a rational ratio, low-pass filtered."""

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.signal import firwin

from anyecg.kernels._jit import kernel
from anyecg.kernels._rows import LANES, ROWS, add, fma, load, push_first, push_last, store, transpose, zeros

MAX_FACTOR = 100_000

# Rows of scratch that a block of a signal takes, about: small enough for the cache. No power of two, since stretches
# of such a length would meet in few places of it.
_BLOCK_ROWS = 1040
_HIGH_DB = 120.0
_INFINITE = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)


class _Filter(NamedTuple):
    """Output p of a period is the sum over k of ``taps_PK[p, k]`` x input ``newest_P[p] - k``, down to ``oldest_P[p]``.

    A period is ``up`` outputs and ``down`` inputs. Where ``mirrored``, the taps of each output read the same backwards,
    and ``taps_PK`` holds the first half of them.
    """

    taps_PK: np.ndarray
    newest_P: np.ndarray
    oldest_P: np.ndarray
    up: int
    down: int
    mirrored: bool


@kernel
def _stage(x_T, first, stage_T):
    """Copy from sample ``first`` on as float32, zeros beyond the ends, and tell whether all are finite."""
    n = len(stage_T)
    begin = min(n, max(0, -first))
    end = max(begin, min(n, len(x_T) - first))
    stage_T[:begin] = 0.0
    stage_T[end:] = 0.0
    from_T, to_T = x_T[first + begin : first + end], stage_T[begin:end]
    for i in range(len(to_T)):
        to_T[i] = from_T[i]
    bits_T = to_T.view(np.int32)
    largest = np.int32(0)
    for i in range(len(bits_T)):
        largest = max(largest, bits_T[i] & _MAGNITUDE)
    return largest < _INFINITE


@kernel
def _sum(in_NL, taps_K, newest, oldest, stride):
    """Sum taps x rows, from the newest row back, for 8 outputs whose inputs lie ``stride`` apart."""
    sums = zeros()
    for k in range(newest - oldest + 1):
        sums = fma(taps_K[k], load(in_NL, (newest - k) * LANES, stride), sums)
    return sums


@kernel
def _sum_mirrored(in_NL, taps_K, newest, oldest, stride):
    """Do the same where taps read the same backwards: rows that share a tap are added first.

    Going ``down`` taps further, each output needs the rows that its neighbour had: all but one stay in registers.
    """
    sums = zeros()
    down = stride // LANES
    for first in range(down):
        new, old = (newest - first) * LANES, (oldest + first) * LANES
        new_rows, old_rows = load(in_NL, new, stride), load(in_NL, old, stride)
        old += (ROWS - 1) * stride
        for k in range(first, (newest - oldest) // 2 + 1, down):
            sums = fma(taps_K[k], add(new_rows, old_rows), sums)
            new, old = new - stride, old + stride
            new_rows, old_rows = push_first(new_rows, in_NL, new), push_last(old_rows, in_NL, old)
    return sums


@kernel
def _resample(x_T, fir, start, n_together, flat_T, in_NL, out_NL, out_T):
    """Fill ``out_T`` block by block, from output ``start`` on; return whether all samples in reach are finite.

    A block is cut into 16 stretches of up to ``n_together`` periods, which lie side by side in the rows of ``in_NL``
    and ``out_NL``; outputs of one phase in 8 neighbouring periods are summed together. Rows beyond a block hold
    anything: what is made of them is not copied out.
    """
    taps_PK, newest_P, oldest_P, up, down, mirrored = fir
    stride = down * LANES
    first_period, skipped = start // up, start % up
    n_phases = min(up, skipped + len(out_T))
    before, after = oldest_P[0], newest_P[n_phases - 1]
    n_periods = (skipped + len(out_T) + up - 1) // up
    finite = True
    for period in range(0, n_periods, n_together * LANES):
        length = min(n_together, (n_periods - period + LANES - 1) // LANES)
        n_stretches = min(LANES, (n_periods - period + length - 1) // length)
        n_in, n_out = (length - 1) * down + after - before + 1, (length - 1) * up + n_phases
        stage_T = flat_T[: (n_stretches - 1) * length * down + n_in]
        finite &= _stage(x_T, (first_period + period) * down + before, stage_T)
        for row in range(0, n_in, LANES):
            transpose(flat_T, row, length * down, in_NL, row * LANES, LANES)
        for begin in range(0, length, ROWS):
            for p in range(n_phases):
                newest = begin * down + newest_P[p] - before
                oldest = begin * down + oldest_P[p] - before
                if mirrored:
                    sums = _sum_mirrored(in_NL, taps_PK[p], newest, oldest, stride)
                else:
                    sums = _sum(in_NL, taps_PK[p], newest, oldest, stride)
                store(out_NL, (begin * up + p) * LANES, up * LANES, sums)
        # From the end backwards: what a tile writes past its stretch, the next stretch overwrites.
        for row in range((n_out - 1) // LANES * LANES, -1, -LANES):
            transpose(out_NL, row * LANES, LANES, flat_T, row, length * up)
        first = period * up - skipped
        block_T = out_T[max(0, first) : first + n_stretches * length * up]
        from_T = flat_T[max(0, -first) :]
        for i in range(len(block_T)):
            block_T[i] = from_T[i]
    return finite


def _aligned(n_rows):
    """Return scratch of shape (rows, 16); each row fills one cache line, so that no load touches two."""
    flat = np.empty((n_rows + 1) * LANES, np.float32)
    skipped = -flat.__array_interface__["data"][0] // flat.itemsize % LANES
    return flat[skipped : skipped + n_rows * LANES].reshape(n_rows, LANES)


@lru_cache(maxsize=32)
def _ratio(fs_in, fs_out):
    """Return (up, down) as the smallest integers with fs_out / fs_in = up / down."""
    if not (0 < fs_in < 1e6 and 0 < fs_out < 1e6):
        raise ValueError(f"sampling rates must lie between 0 and 1e6 Hz; found {fs_in} and {fs_out}")
    ratio = Fraction(repr(float(fs_out))) / Fraction(repr(float(fs_in)))
    if max(ratio.numerator, ratio.denominator) > MAX_FACTOR:
        raise ValueError(f"{fs_in} Hz to {fs_out} Hz needs factors above {MAX_FACTOR}; give rates with fewer digits")
    return ratio.numerator, ratio.denominator


def resampled_length(n_samples, *, fs_in, fs_out):
    """Return how many values ``resample`` makes of ``n_samples``."""
    up, down = _ratio(fs_in, fs_out)
    return -(-n_samples * up // down)


@lru_cache(maxsize=32)
def _design(up, down, quality):
    rate = max(up, down)
    if quality == "scipy":
        half, cutoff, beta = 10 * rate, 1.0 / rate, 5.0
    else:
        # Kaiser's formula: the transition band ends at the lower Nyquist frequency.
        half, beta = 48 * rate, 0.1102 * (_HIGH_DB - 8.7)
        cutoff = 1.0 / rate - (_HIGH_DB - 7.95) / (2.285 * np.pi * 2 * half) / 2
    taps = up * firwin(2 * half + 1, cutoff, window=("kaiser", beta))
    # Output p lies at position p * down + half of the up-sampled input, whose every up-th value is an input.
    newest_P, phase_P = np.divmod(np.arange(up) * down + half, up)
    n_taps_P = -(-(len(taps) - phase_P) // up)
    taps = np.concatenate([taps, np.zeros(-len(taps) % up)]).reshape(-1, up).T[phase_P].astype(np.float32)
    mirrored = up <= 2  # each phase is then its own mirror image
    if mirrored:
        for p in range(up):
            taps[p, n_taps_P[p] // 2] *= 0.5 if n_taps_P[p] % 2 else 1.0  # the middle one meets its row twice
    return _Filter(np.ascontiguousarray(taps), newest_P, newest_P - n_taps_P + 1, up, down, mirrored)


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
    Sums run in float32, each product added with one rounding.
    """
    signal = np.asarray(signal)
    out_T = np.empty(resampled_length(signal.size, fs_in=fs_in, fs_out=fs_out), np.float32)
    resample_into(out_T, 0, signal, fs_in=fs_in, fs_out=fs_out, quality=quality)
    return out_T


def resample_into(out_T, start, signal, *, fs_in, fs_out, quality="scipy"):
    """Fill ``out_T``, float32, with the values that ``resample`` gives from ``start`` on: the same bytes.

    Read, and checked, are the samples around these values, from the start of a period of the two rates on.

    Raises
    ------
    ValueError
        As ``resample``, or values beyond its last one.
    """
    signal = np.asarray(signal)
    if signal.ndim != 1 or signal.dtype.kind not in "fiu":
        raise ValueError(f"signal must be numbers of shape (samples,); found {signal.dtype} {signal.shape}")
    signal = np.ascontiguousarray(signal, np.int16 if signal.dtype == np.int16 else np.float32)
    if quality not in ("scipy", "high"):
        raise ValueError(f"quality must be 'scipy' or 'high'; found {quality!r}")
    n_values = resampled_length(len(signal), fs_in=fs_in, fs_out=fs_out)
    if not 0 <= start <= start + len(out_T) <= n_values:
        raise ValueError(f"values {start} to {start + len(out_T)} asked for; {len(signal)} samples give {n_values}")
    up, down = _ratio(fs_in, fs_out)
    if up == down:
        out_T[:] = signal[start : start + len(out_T)]
        finite = np.isfinite(out_T).all()
    else:
        finite = _fill(out_T, start, signal, _design(up, down, quality))
    if not finite:
        raise ValueError("signal holds samples that are not finite; fill short gaps and split at long ones first")


def _fill(out_T, start, signal, fir):
    up, down = fir.up, fir.down
    n_periods = -(-(start % up + len(out_T)) // up)
    n_together = max(ROWS, _BLOCK_ROWS // max(up, down) // ROWS * ROWS)
    n_together = min(n_together, max(1, -(-n_periods // LANES)))
    n_span = fir.newest_P[-1] - fir.oldest_P[0] + 2 * LANES
    flat_T = np.empty(LANES * n_together * max(up, down) + n_span, np.float32)
    # Sums take 8 periods at a time, and the next row before they know that it is not needed.
    n_rows = -(-n_together // ROWS) * ROWS + 1
    in_NL, out_NL = _aligned(n_rows * down + n_span), _aligned(n_rows * up + LANES)
    return _resample(signal, fir, start, n_together, flat_T, in_NL, out_NL, out_T)
