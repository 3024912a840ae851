"""R peaks of a lead, and what they say of the heart: its rate and how much that varies."""

import numpy as np

from anyecg.kernels._jit import kernel

FEATURES = ("rate", "sdnn", "rmssd", "n_beats")
MIN_FS = 100
# Fewer beats have no two intervals to compare.
MIN_BEATS = 3
# The energy: samples a second, a third of the bend's width (which lets most through at 17 Hz), width of the sum.
_RATE, _THIRD_S, _SUM_S = 125.0, 0.024, 0.096
# Two beats are farther apart; before the second time a far smaller peak is a T wave; that near is the R peak itself.
_REFRACTORY_S, _T_WAVE_S, _REACH_S = 0.2, 0.36, 0.06
# A beat reaches this share of the way from noise to QRS, and of the beat before it where a T wave may be.
_SHARE, _T_SHARE = 0.4, 0.5
# After so many usual intervals without a beat, a peak of that share of the limit is one.
_GAP, _GAP_SHARE = 1.5, 0.5
# Where half of a window has more than this share of a usual beat's energy, there are no beats to be told apart.
_NOISE_SHARE = 0.5
# Energies below this share of the largest sum are the rounding of samples.
_ROUNDING = 1e-4
# Room for the edges of a bend at up to twice the rate.
_EDGES = 16
# How many of the latest values a level is the median of.
_LATEST = 8


@kernel
def _median(value_B, n, sorted_B):
    """Return the median of the first ``n`` values, of an even number the upper one."""
    for i in range(n):
        j = i
        while j > 0 and sorted_B[j - 1] > value_B[i]:
            sorted_B[j] = sorted_B[j - 1]
            j -= 1
        sorted_B[j] = value_B[i]
    return sorted_B[n // 2]


@kernel
def _add_up(x_T, step, before, sum_N):
    """Fill the sums of ``step`` samples, the first and last again at the ends.

    Return the size of the largest; NaN where a sample is not finite.
    """
    nothing = largest = 0.0
    for i in range(len(x_T) // step):
        total = 0.0
        for t in range(i * step, (i + 1) * step):
            total += x_T[t]
        sum_N[before + i] = total
        nothing += total * 0.0
        largest = max(largest, abs(total))
    sum_N[:before] = sum_N[before]
    sum_N[before + len(x_T) // step :] = sum_N[before + len(x_T) // step - 1]
    return largest + nothing


@kernel
def _energy(sum_N, third, width, bend_N, energy_N):
    """Fill the running sum, over ``width``, of |twice the ``third`` sums about each place less those on both sides|."""
    n = len(energy_N)
    bend = 0.0
    for i in range(third):
        bend += 2.0 * sum_N[third + i] - sum_N[i] - sum_N[2 * third + i]
    for i in range(n):
        bend_N[i] = abs(bend)
        if i + 1 < n:
            bend += sum_N[i] - 3.0 * sum_N[i + third] + 3.0 * sum_N[i + 2 * third] - sum_N[i + 3 * third]
    before, after = width // 2, width - width // 2
    total = 0.0
    for i in range(min(after, n)):
        total += bend_N[i]
    for i in range(n):
        energy_N[i] = total
        if i + after < n:
            total += bend_N[i + after]
        if i >= before:
            total -= bend_N[i - before]


@kernel
def _find_peaks(energy_N, least, refractory, peak_M):
    """Fill the places of maxima above ``least``, of those too near one another the highest; return how many."""
    n = 0
    for i in range(1, len(energy_N) - 1):
        if energy_N[i] > least and energy_N[i] > energy_N[i - 1] and energy_N[i] >= energy_N[i + 1]:
            if n == 0 or i - peak_M[n - 1] > refractory:
                peak_M[n] = i
                n += 1
            elif energy_N[i] > energy_N[peak_M[n - 1]]:
                peak_M[n - 1] = i
    return n


@kernel
def _first_levels(energy_N, second, level_B):
    """Fill the largest energy of each of the first seconds; where there are fewer, theirs again."""
    n_there = max(1, min(len(level_B), len(energy_N) // second))
    for b in range(len(level_B)):
        highest = 0.0
        first = b % n_there * second
        for i in range(first, min(first + second, len(energy_N))):
            highest = max(highest, energy_N[i])
        level_B[b] = highest


@kernel
def _highest(energy_N, peak_M, first, stop, after, before):
    """Return the highest of some peaks from ``after`` to ``before``, as a place; -1 where there is none."""
    best = -1
    for m in range(first, stop):
        i = peak_M[m]
        if after <= i <= before and (best < 0 or energy_N[i] > energy_N[best]):
            best = i
    return best


@kernel
def _take(i, energy_N, n, beat_M, qrs_B, interval_B):
    """Make a place beat number ``n``."""
    if n:
        interval_B[n % _LATEST] = i - beat_M[n - 1]
    qrs_B[n % _LATEST] = energy_N[i]
    beat_M[n] = i


@kernel
def _choose(energy_N, peak_M, n_peaks, second, level_4B, beat_M):
    """Fill the places of the peaks that are QRS complexes; return how many."""
    qrs_B, noise_B, interval_B, sorted_B = level_4B[0], level_4B[1], level_4B[2], level_4B[3]
    _first_levels(energy_N, int(second), qrs_B)
    noise_B[:] = 0.0
    interval_B[:] = second
    n = n_noise = after_last = 0
    for m in range(n_peaks):
        i = peak_M[m]
        noise = _median(noise_B, _LATEST, sorted_B)
        limit = noise + _SHARE * (_median(qrs_B, _LATEST, sorted_B) - noise)
        if n and i - beat_M[n - 1] > _GAP * _median(interval_B, _LATEST, sorted_B):
            after, before = beat_M[n - 1] + _T_WAVE_S * second, i - _REFRACTORY_S * second
            missed = _highest(energy_N, peak_M, after_last, m, after, before)
            if missed >= 0 and energy_N[missed] > _GAP_SHARE * limit:
                _take(missed, energy_N, n, beat_M, qrs_B, interval_B)
                n += 1
        is_beat = energy_N[i] > limit
        if is_beat and n and i - beat_M[n - 1] < _T_WAVE_S * second:
            is_beat = energy_N[i] > _T_SHARE * energy_N[beat_M[n - 1]]
        if is_beat:
            _take(i, energy_N, n, beat_M, qrs_B, interval_B)
            n += 1
            after_last = m + 1
        else:
            noise_B[n_noise % _LATEST] = energy_N[i]
            n_noise += 1
    return n


@kernel
def _to_samples(x_T, beat_M, n, step, reach):
    """Turn places into samples: the highest voltage nearby, or the lowest where beats on the whole point down."""
    up = 0.0
    for b in range(n):
        centre = beat_M[b] * step + step // 2
        first, stop = max(0, centre - reach), min(len(x_T), centre + reach + 1)
        high, low, total = np.float64(x_T[first]), np.float64(x_T[first]), 0.0
        for t in range(first, stop):
            value = np.float64(x_T[t])
            high, low = max(high, value), min(low, value)
            total += value
        up += high + low - 2.0 * total / (stop - first)
    sign = 1.0 if up >= 0.0 else -1.0
    for b in range(n):
        centre = beat_M[b] * step + step // 2
        best = max(0, centre - reach)
        for t in range(best + 1, min(len(x_T), centre + reach + 1)):
            if sign * x_T[t] > sign * x_T[best]:
                best = t
        beat_M[b] = best


@kernel
def _is_noise(energy_N, beat_M, n):
    """Tell whether half of the places have much of the beats' mean energy; ``beat_M`` still holds places."""
    usual = 0.0
    for b in range(n):
        usual += energy_N[beat_M[b]] / n
    n_high = 0
    for i in range(len(energy_N)):
        n_high += energy_N[i] > _NOISE_SHARE * usual
    return 2 * n_high > len(energy_N)


@kernel
def _detect(x_T, fs, step, may_be_noise, work_3N, place_2M, level_4B):
    """Fill ``place_2M[1]`` with the samples of R peaks; return how many."""
    n, second = len(x_T) // step, fs / step
    third, width = int(_THIRD_S * second + 0.5), int(_SUM_S * second + 0.5)
    sum_N, energy_N = work_3N[0, : n + 3 * third - 1], work_3N[2, :n]
    if n == 0:
        return 0
    largest = _add_up(x_T, step, 3 * third // 2, sum_N)
    if not largest < np.inf:
        return 0
    _energy(sum_N, third, width, work_3N[1], energy_N)
    n_peaks = _find_peaks(energy_N, _ROUNDING * largest, int(_REFRACTORY_S * second), place_2M[0])
    n = _choose(energy_N, place_2M[0], n_peaks, second, level_4B, place_2M[1])
    if not may_be_noise and _is_noise(energy_N, place_2M[1], n):
        return 0
    _to_samples(x_T, place_2M[1], n, step, int(_REACH_S * fs))
    return n


@kernel
def _describe(r_M, n, fs, work_N, sorted_N, out_F):
    """Fill rate (1/min), SDNN, RMSSD (s) and number of beats."""
    n_intervals = n - 1
    for b in range(n_intervals):
        work_N[b] = (r_M[b + 1] - r_M[b]) / fs
    middle = _median(work_N, n_intervals, sorted_N)
    if n_intervals % 2 == 0:
        middle = 0.5 * (middle + sorted_N[n_intervals // 2 - 1])
    mean = (r_M[n - 1] - r_M[0]) / fs / n_intervals
    about_mean = steps = 0.0
    for b in range(n_intervals):
        about_mean += (work_N[b] - mean) ** 2
        if b:
            steps += (work_N[b] - work_N[b - 1]) ** 2
    out_F[0] = 60.0 / middle
    out_F[1] = np.sqrt(about_mean / (n_intervals - 1))
    out_F[2] = np.sqrt(steps / (n_intervals - 1))
    out_F[3] = n


@kernel
def _features(window_WT, fs, step, work_3N, place_2M, level_4B, out_WF):
    for w in range(window_WT.shape[0]):
        n = _detect(window_WT[w], fs, step, False, work_3N, place_2M, level_4B)
        if n >= MIN_BEATS:
            _describe(place_2M[1], n, fs, work_3N[0], work_3N[1], out_WF[w])
        else:
            out_WF[w, :] = np.nan


def _room(n_samples, fs):
    """Return the samples a sum is over, and arrays for ``_detect``."""
    step = max(1, round(fs / _RATE))
    n = n_samples // step
    return step, np.empty((3, n + _EDGES)), np.empty((2, n // 2 + 1), np.int64), np.empty((4, _LATEST))


def _checked(signal, n_dimensions, fs):
    signal = np.asarray(signal)
    if signal.ndim != n_dimensions or signal.dtype.kind not in "if":
        raise ValueError(f"wanted numbers in {n_dimensions} dimensions; found {signal.dtype} {signal.shape}")
    if not MIN_FS <= fs < 100_000:
        raise ValueError(f"beats need at least {MIN_FS} Hz and less than 100 kHz; found {fs} Hz")
    return np.ascontiguousarray(signal)


def r_peaks(signal_T, fs):
    """Return the samples at which R peaks stand in one lead of a window or a recording.

    Parameters
    ----------
    signal_T : integer or float array, shape (T,)
        In any unit, filtered or raw; R peaks may point down.
    fs : float
        Sampling rate in Hz, at least 100.

    Returns
    -------
    int64 array, shape (beats,), ascending; empty where a sample is not finite

    Raises
    ------
    ValueError
        Another shape, no numbers, a lower rate.

    Notes
    -----
    As Pan and Tompkins 1985 (IEEE Trans Biomed Eng 32:230) and with the rules of Hamilton 2002 (Computers in Cardiology
    29:101): at about 125 Hz, the running sum over 96 ms of how much the signal bends, its maxima 200 ms apart; a
    maximum is a beat above a limit between the medians of the last eight beats and of the last eight other maxima, the
    first ones taken from the maxima of the first eight seconds; within 360 ms a far smaller one is a T wave; after 1.5
    usual intervals half the limit suffices. The R peak is the extreme sample within 60 ms, in the direction in which
    the beats of the whole signal stand out.
    """
    signal_T = _checked(signal_T, 1, fs)
    step, work_3N, place_2M, level_4B = _room(len(signal_T), fs)
    n = _detect(signal_T, float(fs), step, True, work_3N, place_2M, level_4B)
    return place_2M[1, :n].copy()


def heart_features(window_WT, fs):
    """Return heart rate and its variability of each window alone.

    Parameters
    ----------
    window_WT : integer or float array, shape (W, T)
        One lead, as in ``r_peaks``.
    fs : float

    Returns
    -------
    float32 array, shape (W, 4)
        ``FEATURES``: 60 / median RR interval (1/min), standard deviation of the RR intervals (s, n - 1), root mean
        square of their successive differences (s), number of R peaks. All NaN with fewer than three R peaks, and where
        half of the window has more than half the energy of its beats: noise.

    Raises
    ------
    ValueError
        As ``r_peaks``.

    Notes
    -----
    Definitions of the Task Force 1996 (Circulation 93:1043), over all beats: nothing tells ectopic ones apart.
    """
    window_WT = _checked(window_WT, 2, fs)
    out_WF = np.empty((len(window_WT), len(FEATURES)), np.float32)
    _features(window_WT, float(fs), *_room(window_WT.shape[1], fs), out_WF)
    return out_WF


def median_beat(signal_T, r_M, fs, *, before_s=0.3, after_s=0.5):
    """Return the median, sample by sample, of the beats of one lead about given R peaks.

    Parameters
    ----------
    signal_T : float array, shape (T,)
        NaN where there is no sample.
    r_M : int array
        Samples of R peaks, as of ``r_peaks``, of this lead or another one.
    fs : float
    before_s, after_s : float
        How far a beat reaches from its R peak, in seconds.

    Returns
    -------
    (float32 array, int, int)
        mV about the median of each beat's first 50 ms, NaN where no beat has a sample; which sample is the R peak; how
        many beats there were. Beats that reach beyond the signal are left out.
    """
    before, after = round(before_s * fs), round(after_s * fs)
    r_M = np.asarray(r_M)
    r_M = r_M[(r_M >= before) & (r_M + after < len(signal_T))]
    if not len(r_M):
        return np.full(before + after + 1, np.nan, np.float32), before, 0
    beat_MT = np.asarray(signal_T)[r_M[:, None] + np.arange(-before, after + 1)]
    beat_MT = beat_MT[np.isfinite(beat_MT).all(axis=1)]
    if not len(beat_MT):
        return np.full(before + after + 1, np.nan, np.float32), before, 0
    level_M1 = np.median(beat_MT[:, : max(1, round(0.05 * fs))], axis=1, keepdims=True)
    return np.median(beat_MT - level_M1, axis=0).astype(np.float32), before, len(beat_MT)
