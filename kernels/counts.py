"""Turn the raw counts of a lead into millivolt, and sum them for the header's checksum."""

import numpy as np
from numba import types
from numba.extending import intrinsic

from anyecg.kernels._jit import kernel

_NEVER = -(2**63)


@intrinsic
def _fma(typing_context, a, b, c):
    """a x b + c in float32, rounded once."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), codegen


@kernel
def _int16_to_mv(counts_T, baseline, factor, rest, invalid, out_T):
    """Scale in float32 by ``factor`` + ``rest``: twice the speed of float64, and rounded as there."""
    total = np.int32(0)
    for t in range(len(counts_T)):
        count = np.int32(counts_T[t])
        total = np.int32(total + count)
        x = np.float32(count) - baseline
        product = x * factor
        mv = product + (_fma(x, factor, -product) + x * rest)
        out_T[t] = np.float32(np.nan) if count == invalid else mv
    return total


@kernel
def _counts_to_mv(counts_T, baseline, factor, invalid, out_T):
    total = np.int64(0)
    for t in range(len(counts_T)):
        count = np.int64(counts_T[t])
        total += count
        mv = np.float32((np.float64(count) - baseline) * factor)
        out_T[t] = np.float32(np.nan) if count == invalid else mv
    return total


def counts_to_mv(counts_T, *, baseline, factor, invalid, out_T):
    """Write (count - baseline) x factor into ``out_T``, NaN where a count marks an invalid sample.

    Parameters
    ----------
    counts_T : int16 or int32 array, shape (T,)
        Raw counts, of any stride.
    baseline : int
        The count of 0 mV.
    factor : float
        mV for each count.
    invalid : int or None
        The count that stands for "no valid sample"; None where a format has none.
    out_T : float32 array, shape (T,)
        Filled here; each value is that of float64 arithmetic, rounded once.

    Returns
    -------
    int
        The low 16 bits of the sum of all counts, invalid ones too: a WFDB header's checksum.
    """
    if counts_T.shape != out_T.shape or counts_T.dtype.char not in "hi" or out_T.dtype.char != "f":
        raise ValueError(
            f"counts {counts_T.shape} {counts_T.dtype}, output {out_T.shape} {out_T.dtype}; "
            "wanted int16 or int32 and float32 of one shape"
        )
    # Where count - baseline is exact in float32, and no product leaves its range, two float32 factors do.
    if counts_T.dtype.char == "h" and abs(baseline) < 2**22 and 1e-20 < abs(factor) < 1e20:
        first = np.float32(factor)
        rest = np.float32(factor - float(first))
        never = np.int32(2**16 if invalid is None else invalid)
        return _int16_to_mv(counts_T, np.float32(baseline), first, rest, never, out_T) & 0xFFFF
    invalid = _NEVER if invalid is None else invalid
    return _counts_to_mv(counts_T, float(baseline), float(factor), invalid, out_T) & 0xFFFF
