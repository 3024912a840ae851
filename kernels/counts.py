"""Turn the raw counts of a lead into millivolt, and sum them for the header's checksum."""

import numpy as np

from anyecg.kernels._jit import kernel

_NEVER = -(2**63)


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
    baseline, factor : float
        The count of 0 mV, and mV for each count.
    invalid : int or None
        The count that stands for "no valid sample"; None where a format has none.
    out_T : float32 array, shape (T,)
        Filled here; each value is rounded once, from float64.

    Returns
    -------
    int
        The sum of all counts, invalid ones too: a WFDB header's checksum is its low 16 bits.
    """
    if counts_T.shape != out_T.shape or counts_T.dtype.char not in "hi" or out_T.dtype.char != "f":
        raise ValueError(f"counts {counts_T.shape} {counts_T.dtype}, output {out_T.shape} {out_T.dtype}; "
                         "wanted int16 or int32 and float32 of one shape")  # fmt: skip
    invalid = _NEVER if invalid is None else invalid
    return _counts_to_mv(counts_T, float(baseline), float(factor), invalid, out_T)
