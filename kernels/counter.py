"""Random numbers that are functions of a counter: the same on any rank, thread, machine and after any restart."""

import numpy as np

from anyecg.kernels._jit import kernel

# 2^64 / the golden ratio.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@kernel
def mix(value):
    """Return the 64-bit finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@kernel
def mix_pair(seed, value):
    """Return 64 bits that depend on both arguments."""
    return mix(mix(seed + GOLDEN) ^ (value + GOLDEN))


@kernel
def _permute(positions, n, half_bits, key, out):
    """Balanced Feistel network of six rounds on 2 * half_bits bits; walk its cycle until below n."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    for i in range(len(positions)):
        value = np.uint64(positions[i])
        while True:
            left, right = value >> half_bits, value & mask
            for round_number in range(6):
                left, right = right, left ^ (mix_pair(key + np.uint64(round_number), right) & mask)
            value = (left << half_bits) | right
            if value < n:
                break
        out[i] = np.int64(value)


def permute(positions, n, key):
    """Return where a keyed permutation of 0..n-1 sends each position, in time and memory of the positions alone.

    Parameters
    ----------
    positions : int64 array
        Each in 0..n-1.
    n : int
    key : int
        Another key gives another permutation.

    Returns
    -------
    int64 array, shape of ``positions``

    Notes
    -----
    A Feistel network with cycle walking (Black, Rogaway 2002).
    """
    positions = np.ascontiguousarray(positions, np.int64)
    if positions.size and not 0 <= positions.min() <= positions.max() < n:
        raise ValueError(f"positions must lie in 0..{n - 1}; found {positions.min()}..{positions.max()}")
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    out = np.empty(positions.shape, np.int64)
    _permute(positions, np.uint64(n), np.uint64(half_bits), np.uint64(key & 0xFFFFFFFFFFFFFFFF), out)
    return out


@kernel
def _hashes(key, values, out):
    for i in range(len(values)):
        out[i] = mix_pair(key, values[i])


def uniform(key, values):
    """Return float64 in [0, 1) for each uint64 value under a key.

    Parameters
    ----------
    key : int
    values : uint64 array, shape (n,)
    """
    values = np.ascontiguousarray(values, np.uint64)
    out = np.empty(len(values), np.uint64)
    _hashes(np.uint64(key & 0xFFFFFFFFFFFFFFFF), values, out)
    return (out >> np.uint64(11)) * 2.0**-53
