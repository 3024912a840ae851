"""Weights of bootstrap replicates: Poisson(1) for each cluster, functions of (seed, replicate, cluster key)."""

import numpy as np

from anyecg.kernels._jit import kernel
from anyecg.kernels.counter import GOLDEN, mix, mix_pair

# Replicates whose weights lie side by side, so that kernels work on all of them at once; a row fills a cache line.
LANES = 64

# Distribution function of Poisson(1) at 0, 1, 2, ..., scaled to 64 bits; beyond 12 lies less than 1e-10.
_POISSON = np.array([sum(np.exp(-1.0) / np.prod(np.arange(1.0, k + 1)) for k in range(n + 1)) for n in range(13)])
POISSON_64 = np.minimum(np.floor(_POISSON * 2.0**64), np.nextafter(2.0**64, 0)).astype(np.uint64)


@kernel
def _poisson(bits, poisson):
    weight = 0
    while weight < len(poisson) and bits >= poisson[weight]:
        weight += 1
    return weight


@kernel
def fill_weights(seed, replicate, cluster_P, poisson, weight_P):
    """Fill each cluster's Poisson(1) weight, a function of (seed, replicate, cluster key)."""
    key = mix_pair(seed, np.uint64(replicate))
    for p in range(len(cluster_P)):
        weight_P[p] = _poisson(mix_pair(key, cluster_P[p]), poisson)


@kernel
def _fill_rows(seed, first, cluster_P, poisson, weight_RP):
    for r in range(len(weight_RP)):
        fill_weights(seed, first + r, cluster_P, poisson, weight_RP[r])


@kernel
def _fill_lanes(seed, first, cluster_P, poisson, weight_PL):
    """Fill a block of the same weights, lane beside lane: how many values of the distribution function lie below."""
    key_L, bits_L, total_L = np.empty(LANES, np.uint64), np.empty(LANES, np.uint64), np.empty(LANES, np.int64)
    for lane in range(LANES):
        key_L[lane] = mix(mix_pair(seed, np.uint64(first + lane)) + GOLDEN)
    for p in range(len(cluster_P)):
        shifted = cluster_P[p] + GOLDEN
        for lane in range(LANES):
            bits_L[lane] = mix(key_L[lane] ^ shifted)
        total_L[:] = 0
        for k in range(len(poisson)):
            n_above = np.int64(0)
            for lane in range(LANES):
                is_above = np.int64(bits_L[lane] >= poisson[k])
                total_L[lane] += is_above
                n_above += is_above
            if not n_above:
                break
        for lane in range(LANES):
            weight_PL[p, lane] = total_L[lane]


def seed_bits(seed):
    """Return the seed as the kernels take it."""
    return np.uint64(seed & 0xFFFFFFFFFFFFFFFF)


def poisson_weights(cluster_P, first, last, *, seed):
    """Return int64 (last - first, clusters): the weights of uint64 cluster keys in replicates first..last-1."""
    weight_RP = np.empty((last - first, len(cluster_P)), np.int64)
    _fill_rows(seed_bits(seed), first, cluster_P, POISSON_64, weight_RP)
    return weight_RP


class Resampling:
    """The weights of clusters in blocks of ``LANES`` replicates.

    Parameters
    ----------
    cluster_P : uint64 array, shape (clusters,)
        Keys, each once.
    seed : int
    n_bytes : int
        Blocks are kept up to this size in all, then worked out anew.

    Notes
    -----
    A block's weights do not depend on which other clusters or blocks there are.
    """

    def __init__(self, cluster_P, *, seed, n_bytes=64 << 20):
        self.clusters, self.seed = np.ascontiguousarray(cluster_P, np.uint64), seed
        self._kept: dict[int, np.ndarray] = {}
        self._n_most = n_bytes // max(1, len(self.clusters) * LANES)

    def block(self, number):
        """Return int8 (clusters, LANES): the weights in replicates ``LANES`` x number and on."""
        if number not in self._kept:
            weight_PL = np.empty((len(self.clusters), LANES), np.int8)
            _fill_lanes(seed_bits(self.seed), number * LANES, self.clusters, POISSON_64, weight_PL)
            if len(self._kept) >= self._n_most:
                return weight_PL
            self._kept[number] = weight_PL
        return self._kept[number]


def n_blocks(n_replicates):
    """Return how many blocks of ``LANES`` hold that many replicates."""
    return -(-n_replicates // LANES)
