"""The order of the pairs of a pool, and the lanes that pools are taken from."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.counter import mix_pair

_ALL = 2**64 - 1


@kernel
def _lot(pair, copy, key):
    """Return the hash that decides the turn of an occurrence of a pair among those of its window."""
    return mix_pair(key + np.uint64(1) + np.uint64(3) * np.uint64(copy), np.uint64(pair))


@kernel
def _sort_keys(window_P, pair_P, copy_P, key, out_P):
    """Spread the pairs of a window evenly over 64 bits, from a start that the window's hash decides."""
    first = 0
    for p in range(len(pair_P)):
        if window_P[p] != window_P[first]:
            first = p
        mine, turn, q = _lot(pair_P[p], copy_P[p], key), np.uint64(0), first
        while q < len(pair_P) and window_P[q] == window_P[p]:
            other = _lot(pair_P[q], copy_P[q], key)
            turn += np.uint64(1 if other < mine or (other == mine and q < p) else 0)
            q += 1
        n_pairs = np.uint64(q - first)
        out_P[p] = mix_pair(key + np.uint64(2), np.uint64(window_P[p])) // n_pairs + turn * (np.uint64(_ALL) // n_pairs)


def pool_order(window_P, pair_P, copy_P, key):
    """Return the order in which a pool gives its pairs.

    The m pairs of a window stand in the pool at (u + 0) / m, (u + 1) / m, ... of its length, u a hash of the window in
    [0, 1): as far apart as they can be, and windows with many pairs as frequent at its start as at its end.

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
