"""The order of the pairs of a pool, and the lanes that pools are taken from."""

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


@kernel
def _places(position_P, n, n_lanes, out_P):
    shortest, n_longer = n // n_lanes, n % n_lanes
    for p in range(len(position_P)):
        turn, lane = position_P[p] // n_lanes, position_P[p] % n_lanes
        first, length = lane * shortest + min(lane, n_longer), shortest + (1 if lane < n_longer else 0)
        out_P[p] = first + (length - 1 - turn if lane % 2 else turn)


def places_in_lanes(position_P, n, n_lanes):
    """Return where the turns of lanes lie in the sequence that they are cut from.

    The sequence of ``n`` is cut into lanes of equal length, the first ones longer by one where that does not come out
    even. Position k is turn k // n_lanes of lane k % n_lanes; every second lane runs backwards.

    Parameters
    ----------
    position_P : int64 array
        Each in 0 .. n - 1.

    Returns
    -------
    int64 array, shape of ``position_P``; all positions give all places
    """
    out = np.empty(len(position_P), np.int64)
    _places(position_P, n, n_lanes, out)
    return out
