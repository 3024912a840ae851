"""Sorting networks on vectors: every lane is sorted by itself, along a tuple of vectors that LLVM keeps in registers.

A network compares in the same order whatever the values are, so it needs no branches, and a minimum or maximum of a
whole vector is one instruction.
"""

from anyecg.kernels._jit import kernel
from anyecg.kernels._lanes import put, rows, tuple_intrinsic


def _smaller(builder, left, right):
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def _larger(builder, left, right):
    return builder.select(builder.icmp_signed("<", left, right), right, left)


def _sort_bitonic(builder, values):
    values, stride = list(values), len(values) // 2
    while stride:
        for i in range(len(values)):
            if not i & stride:
                pair = values[i], values[i + stride]
                values[i], values[i + stride] = _smaller(builder, *pair), _larger(builder, *pair)
        stride //= 2
    return values


def _pairwise(compute):
    return tuple_intrinsic(2, lambda builder, *lists: [compute(builder, *pair) for pair in zip(*lists, strict=True)])


smaller, larger = _pairwise(_smaller), _pairwise(_larger)
backwards = tuple_intrinsic(1, lambda builder, values: values[::-1])
# Sorts 1, 2, 4, 8 or 16 vectors that rise and then fall, or a rotation of such: Batcher's half cleaners.
sort_bitonic = tuple_intrinsic(1, _sort_bitonic)


@kernel
def merge(low, high):
    """Merge two sorted tuples into one."""
    turned = backwards(high)
    return sort_bitonic(smaller(low, turned)) + sort_bitonic(larger(low, turned))


@kernel
def sort_four(x):
    return merge(merge(x[0:1], x[1:2]), merge(x[2:3], x[3:4]))


@kernel
def sort_pieces(x, first, n, size):
    """Sort ``n`` rows from ``first`` on, made of bitonic pieces of ``size`` rows, each above the one before.

    ``size`` is a power of two from 8 on. Two or three half cleaners at a time, lest loads and stores bind.
    """
    while size > 16:
        step = size // 8 if size > 64 else size // 4
        for piece in range(first, first + n, size):
            for i in range(piece, piece + step):
                if size > 64:
                    put(x, i, step, sort_bitonic(rows(x, i, step, 8)))
                else:
                    put(x, i, step, sort_bitonic(rows(x, i, step, 4)))
        size = step
    if size == 16:
        for i in range(first, first + n, 16):
            put(x, i, 1, sort_bitonic(rows(x, i, 1, 16)))
    else:
        for i in range(first, first + n, 8):
            put(x, i, 1, sort_bitonic(rows(x, i, 1, 8)))


@kernel
def merge_rows(x, first, half, at):
    """Merge two sorted runs of ``half`` rows each, 16 or more, that follow each other in ``x``."""
    if half == 16:
        put(x, at, 1, merge(rows(x, first, 1, 16), rows(x, first + 16, 1, 16)))
        return
    quarter = half // 4
    for i in range(quarter):
        low = rows(x, first + i, quarter, 4)
        high = rows(x, first + 2 * half - 1 - i, -quarter, 4)
        put(x, at + i, quarter, sort_bitonic(smaller(low, high)))
        put(x, at + half + i, quarter, sort_bitonic(larger(low, high)))
    sort_pieces(x, at, 2 * half, quarter)
