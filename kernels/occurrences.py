"""How often each pair occurs in an epoch: a function of a key, the pair, and its draw's limit and weight."""

import math

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.counter import mix_pair

_ALL = 0xFFFFFFFFFFFFFFFF


@kernel
def _times(pair, key, limit, weight):
    """Return how often a pair occurs whose hash must not be above the limit."""
    if mix_pair(key, np.uint64(pair)) > limit:
        return 0
    u = np.float64(mix_pair(key ^ np.uint64(_ALL), np.uint64(pair)) >> np.uint64(11)) * 2.0**-53
    return np.int64(math.floor(weight + u))


@kernel
def _count(first_R, stop_R, horizons_P, bit, out_R):
    for r in range(len(first_R)):
        n = 0
        for p in range(first_R[r], stop_R[r]):
            n += 1 if horizons_P[p] & bit else 0
        out_R[r] = n


@kernel
def _occurrences(first_pair, horizons_P, bit, draw_P, limit_D, weight_D, key, out_P):
    for p in range(len(horizons_P)):
        out_P[p] = 0
        if horizons_P[p] & bit:
            out_P[p] = _times(first_pair + p, key, limit_D[draw_P[p]], weight_D[draw_P[p]])


@kernel
def _smallest(first_pair, horizons_P, bit, draw_P, key, smallest_DN):
    """Keep the n smallest hashes of each draw, ascending."""
    last = smallest_DN.shape[1] - 1
    for p in range(len(horizons_P)):
        if not horizons_P[p] & bit:
            continue
        smallest_N = smallest_DN[draw_P[p]]
        value = mix_pair(key, np.uint64(first_pair + p))
        if value >= smallest_N[last]:
            continue
        n = last
        while n > 0 and smallest_N[n - 1] > value:
            smallest_N[n] = smallest_N[n - 1]
            n -= 1
        smallest_N[n] = value


def count_by_run(first_R, stop_R, horizons_P, bit):
    """Return how many pairs of each run have a horizon's bit.

    Parameters
    ----------
    first_R, stop_R : int64 arrays
        Rows of ``horizons_P`` where each run begins and ends.
    horizons_P : uint8 array

    Returns
    -------
    int64 array, shape (runs,)
    """
    out = np.empty(len(first_R), np.int64)
    _count(np.ascontiguousarray(first_R), np.ascontiguousarray(stop_R), horizons_P, bit, out)
    return out


def occurrences(first_pair, horizons_P, bit, draw_P, limit_D, weight_D, key):
    """Return how often each of some consecutive pairs occurs.

    A pair without the horizon's bit, or whose 64-bit hash under the key is above its draw's limit, does not occur;
    any other one floor(weight + u) times, u in [0, 1) another hash of the pair: on average as often as its weight.

    Parameters
    ----------
    first_pair : int
        Number of the first of them.
    horizons_P : uint8 array
    draw_P : int array
        Rows of ``limit_D`` (uint64) and ``weight_D`` (float64).
    key : int

    Returns
    -------
    int64 array, shape (pairs,)
    """
    out = np.empty(len(horizons_P), np.int64)
    _occurrences(first_pair, horizons_P, bit, draw_P, limit_D, weight_D, np.uint64(key & _ALL), out)
    return out


def limits(first_pair, horizons_P, bit, draw_P, n_draws, n, key):
    """Return the n-th smallest hash of each draw's pairs: the limit that lets n of them occur.

    Returns
    -------
    uint64 array, shape (n_draws,)
        The largest number for draws with no more than n pairs.
    """
    smallest = np.full((n_draws, n), _ALL, np.uint64)
    _smallest(first_pair, horizons_P, bit, draw_P, np.uint64(key & _ALL), smallest)
    return smallest[:, -1].copy()


@kernel
def _draw_windows(anchor_U, copy_U, first_U, stop_U, horizons_P, bit, draw_P, key, room, out_UK):
    n_each = out_UK.shape[1]
    hashes = np.empty(room, np.uint64)
    pairs = np.empty(room, np.int64)
    for u in range(len(anchor_U)):
        draw, n = draw_P[anchor_U[u]], 0
        for p in range(first_U[u], stop_U[u]):
            if draw_P[p] == draw and horizons_P[p] & bit:
                hashes[n], pairs[n] = mix_pair(key, np.uint64(p)), p
                n += 1
        by_hash = np.argsort(hashes[:n])
        for k in range(n_each):
            out_UK[u, k] = pairs[by_hash[(copy_U[u] * n_each + k) % n]] if n else anchor_U[u]


def draw_windows(anchor_U, copy_U, first_U, stop_U, horizons_P, bit, draw_P, key, n_each):
    """Return some pairs of each anchor's draw: the next ``n_each`` in order of hash, after the last the first again.

    Parameters
    ----------
    anchor_U, copy_U : int64 arrays
        A pair of the draw; which of the draw's samples this is.
    first_U, stop_U : int64 arrays
        Where the draw's pairs are looked for; the anchor lies within.
    n_each : int

    Returns
    -------
    int64 array, shape (samples, n_each)
    """
    out = np.empty((len(anchor_U), n_each), np.int64)
    room = int((stop_U - first_U).max(initial=0))
    _draw_windows(
        anchor_U, copy_U, first_U, stop_U, horizons_P, bit, draw_P, np.uint64(key & _ALL), room, out
    )  # fmt: skip
    return out
