"""The smallest and the largest sample of each block of a lead, for pictures that keep every spike."""

import numpy as np

from anyecg.kernels._jit import kernel


@kernel
def _extremes(x_T, step, out_N2):
    for n in range(len(out_N2)):
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for t in range(n * step, min((n + 1) * step, len(x_T))):
            # Both are false for NaN.
            if x_T[t] < low:
                low = x_T[t]
            if x_T[t] > high:
                high = x_T[t]
        out_N2[n, 0] = low if low <= high else np.float32(np.nan)
        out_N2[n, 1] = high if low <= high else np.float32(np.nan)


@kernel
def _halve(in_N2, out_M2):
    for m in range(len(out_M2)):
        first, second = 2 * m, min(2 * m + 1, len(in_N2) - 1)
        out_M2[m] = in_N2[first]
        if not in_N2[first, 0] <= in_N2[second, 0]:
            out_M2[m, 0] = in_N2[second, 0] if not np.isnan(in_N2[second, 0]) else in_N2[first, 0]
        if not in_N2[first, 1] >= in_N2[second, 1]:
            out_M2[m, 1] = in_N2[second, 1] if not np.isnan(in_N2[second, 1]) else in_N2[first, 1]


def extremes(signal_T, step):
    """Return the smallest and the largest sample of each block of ``step`` samples, the last block shorter.

    Parameters
    ----------
    signal_T : float32 array, shape (T,)
        NaN where there is no sample.
    step : int
        At least 1.

    Returns
    -------
    float32 array, shape (ceil(T / step), 2)
        NaN for a block without any sample.

    Raises
    ------
    ValueError
        Another shape or type, or a step below 1.
    """
    signal_T = np.asarray(signal_T)
    if signal_T.ndim != 1 or signal_T.dtype != np.float32 or step < 1:
        raise ValueError(
            f"wanted float32 (samples,) and a step from 1; found {signal_T.dtype} {signal_T.shape}, {step}"
        )
    out_N2 = np.empty((-(-len(signal_T) // step), 2), np.float32)
    _extremes(signal_T, step, out_N2)
    return out_N2


def halved(extreme_N2):
    """Return the extremes of each two neighbouring blocks, float32 (ceil(N / 2), 2)."""
    out_M2 = np.empty((-(-len(extreme_N2) // 2), 2), np.float32)
    _halve(extreme_N2, out_M2)
    return out_M2
