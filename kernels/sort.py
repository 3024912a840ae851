"""The order of scores, highest first."""

import numpy as np

from anyecg.kernels._jit import kernel

_DIGITS, _BITS = 3, 11


@kernel
def _radix(bits_N, packed_N, room_N, order_N):
    """Fill the stable order of falling float32, given as bits: three passes over digits of 11 bits."""
    size = 1 << _BITS
    mask = np.uint64(size - 1)
    count = np.zeros((_DIGITS, size), np.int64)
    for i in range(len(bits_N)):
        bits = bits_N[i]
        rising = np.uint32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        falling = np.uint64(rising ^ np.uint32(0x7FFFFFFF))
        packed_N[i] = falling << np.uint64(32) | np.uint64(i)
        for digit in range(_DIGITS):
            count[digit, falling >> np.uint64(_BITS * digit) & mask] += 1
    for digit in range(_DIGITS):
        total = 0
        for value in range(size):
            count[digit, value], total = total, total + count[digit, value]
        shift = np.uint64(32 + _BITS * digit)
        for i in range(len(packed_N)):
            value = packed_N[i] >> shift & mask
            room_N[count[digit, value]] = packed_N[i]
            count[digit, value] += 1
        packed_N, room_N = room_N, packed_N
    for i in range(len(packed_N)):
        order_N[i] = packed_N[i] & np.uint64(0xFFFFFFFF)


def falling_order(score):
    """Return the int64 order of finite scores, shape (n,), highest first; equal ones keep theirs.

    -0.0 counts as below 0.0.
    float32, as the windows' logits are, is sorted by its digits, five to fifteen times as fast as NumPy's argsort.
    """
    if score.dtype != np.float32 or len(score) >= 1 << 31:
        return np.argsort(-score, kind="stable")
    order = np.empty(len(score), np.int64)
    _radix(np.ascontiguousarray(score).view(np.int32), *np.empty((2, len(score)), np.uint64), order)
    return order
