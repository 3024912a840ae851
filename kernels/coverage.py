"""How many windows of a visit's waveforms lie around a draw, and nearest to which draw each lies."""

import numpy as np

from anyecg.kernels._jit import kernel


@kernel
def _windows_by_epoch(start_NS, stop_NS, time_ND, n_draws_N, draw_N, half_s, counts_ND):
    for n in range(len(draw_N)):
        time = time_ND[n, draw_N[n]]
        for s in range(start_NS.shape[1]):
            t = start_NS[n, s]
            # Whole windows before the horizon are skipped at once.
            if t < time - half_s:
                t += 10.0 * np.ceil((time - half_s - t) / 10.0)
            while t + 10.0 <= stop_NS[n, s] and t + 10.0 <= time + half_s:
                nearest = 0
                for d in range(1, n_draws_N[n]):
                    if abs(t + 5.0 - time_ND[n, d]) < abs(t + 5.0 - time_ND[n, nearest]):
                        nearest = d
                counts_ND[n, nearest] += 1
                t += 10.0


def windows_by_epoch(start_NS, stop_NS, time_ND, n_draws_N, draw_N, *, half_s):
    """Count the windows of one draw of each visit by the draw that each window lies nearest to.

    Parameters
    ----------
    start_NS, stop_NS : float array, shape (visits, segments)
        Begin and end of the waveform's segments in s; equal where there is none.
    time_ND : float array, shape (visits, draws)
        Draw times in s, rising; the first ``n_draws_N`` of each row count.
    draw_N : int array
        The draw whose horizon is looked at.
    half_s : float
        Half-width of the horizon.

    Returns
    -------
    int64 array, shape (visits, draws)
    """
    counts_ND = np.zeros(time_ND.shape, np.int64)
    _windows_by_epoch(start_NS, stop_NS, time_ND, n_draws_N, draw_N, float(half_s), counts_ND)
    return counts_ND
