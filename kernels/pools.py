"""The order of the pairs of a pool: shuffled by their windows, the pairs of one window far apart."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.counter import mix_pair

_MOST_TURNS = 255


@kernel
def _sort_keys(window_P, pair_P, copy_P, key, out_P):
    """Pack the turn of a pair within its window above the hash of the window."""
    first = 0
    for p in range(len(pair_P)):
        if window_P[p] != window_P[first]:
            first = p
        mine, turn, q = mix_pair(key + np.uint64(1), np.uint64(pair_P[p])), 0, first
        while q < len(pair_P) and window_P[q] == window_P[p]:
            other = mix_pair(key + np.uint64(1), np.uint64(pair_P[q]))
            turn += 1 if other < mine or (other == mine and copy_P[q] < copy_P[p]) else 0
            q += 1
        of_window = mix_pair(key + np.uint64(2), np.uint64(window_P[p]))
        out_P[p] = np.uint64(min(turn, _MOST_TURNS)) << np.uint64(56) | of_window >> np.uint64(8)


def pool_order(window_P, pair_P, copy_P, key):
    """Return the order in which a pool gives its pairs.

    First every window with one of its pairs, then those that have a second one, and so on; the windows each time in the
    same shuffled order, so that two pairs of a window lie about as far apart as the pool has windows.

    Parameters
    ----------
    window_P, pair_P, copy_P : int64 arrays
        Pairs, those of a window one after the other; a pair that occurs several times stands there as often, numbered
        by ``copy_P``.
    key : int
        64 bits; another key gives another order.

    Returns
    -------
    int64 array, shape (pairs,)
        Rows of ``pair_P``.
    """
    keys_P = np.empty(len(pair_P), np.uint64)
    _sort_keys(window_P, pair_P, copy_P, np.uint64(key), keys_P)
    return np.argsort(keys_P, kind="stable")
