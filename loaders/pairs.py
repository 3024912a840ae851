"""Which windows belong to which draw: horizons around the draw, and a sample that needs no state."""

import numpy as np

from anyecg.kernels.counter import uniform
from anyecg.loaders.files import digest
from anyecg.loaders.index import HORIZON_BIT

WINDOW_US = 10_000_000


def pair_windows(start_W, time_D, visit_key, *, seed, before_only=False, cap=200, horizons=tuple(HORIZON_BIT)):
    """Pair a visit's windows with its draws.

    Parameters
    ----------
    start_W : int64 array, shape (W,)
        Window starts in microseconds.
    time_D : int64 array, shape (D,)
        Draw times on the same axis.
    visit_key : int
        Pseudonymous key of the visit.
    seed : int
    before_only : bool
        A window must end before the draw.
    cap : int
        Windows sampled per draw and horizon.
    horizons : iterable of int
        Half-widths in minutes.

    Returns
    -------
    (window, draw, horizon_bits)
        Row of the window, row of the draw, uint8 bits (1 = 60, 2 = 30, 4 = 15 min), ordered by window then draw; a pair
        with no bit is left out.

    Notes
    -----
    A window belongs to a draw at t if it lies wholly in [t - h, t + h] (``before_only``: [t - h, t]). Each window has
    u = hash(seed, visit, draw time, window start); a horizon takes the ``cap`` smallest, ties by start.
    """
    start_W = np.asarray(start_W, np.int64)
    bits_WD = np.zeros((len(start_W), len(time_D)), np.uint8)
    for draw, time in enumerate(np.asarray(time_D, np.int64)):
        u_W = uniform(int(digest([seed, int(visit_key), int(time)]), 16), start_W.view(np.uint64))
        for horizon in horizons:
            half = horizon * 60_000_000
            last = time if before_only else time + half
            inside = np.flatnonzero((start_W >= time - half) & (start_W + WINDOW_US <= last))
            chosen = inside[np.lexsort([start_W[inside], u_W[inside]])[:cap]]
            bits_WD[chosen, draw] |= HORIZON_BIT[horizon]
    window, paired = np.nonzero(bits_WD)
    return window, paired, bits_WD[window, paired]
