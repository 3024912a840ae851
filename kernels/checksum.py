"""Fletcher32 of a chunk, as HDF5's filter of that name computes it."""

import numpy as np

from anyecg.kernels._jit import kernel

# Words summed in 32 bits before the sums are carried over: 64 x 65 / 2 x 65,535 fits.
_RUN = 64


@kernel
def _sums(words_T):
    """Return the sum of the words, and their sum weighted by how many words are left, both exact."""
    n = len(words_T)
    plain, weighted = np.uint64(0), np.uint64(0)
    whole = n - n % _RUN
    for first in range(0, whole, _RUN):
        run_plain, run_weighted = np.uint32(0), np.uint32(0)
        for t in range(_RUN):
            # HDF5 takes the bytes of a word the other way round.
            stored = np.uint32(words_T[first + t])
            word = ((stored & np.uint32(0xFF)) << np.uint32(8)) | (stored >> np.uint32(8))
            run_plain += word
            run_weighted += np.uint32(_RUN - t) * word
        weighted += np.uint64(_RUN) * plain + np.uint64(run_weighted)
        plain += np.uint64(run_plain)
        # Far below 2^64 in any file of less than 2^32 words; folded so that it stays there in all.
        weighted %= np.uint64(65535)
        plain %= np.uint64(65535)
    for t in range(whole, n):
        last = np.uint64(words_T[t])
        plain += ((last & np.uint64(0xFF)) << np.uint64(8)) | (last >> np.uint64(8))
        weighted += plain
    return plain % np.uint64(65535), weighted % np.uint64(65535)


def fletcher32(data):
    """Return the Fletcher32 checksum of bytes.

    Parameters
    ----------
    data : bytes-like
        A byte left over counts as the upper half of a word.

    Returns
    -------
    int
        32 bits; HDF5 stores them, little-endian, behind the chunk.

    Notes
    -----
    Equal to ``H5_checksum_fletcher32``, which represents a sum that is a multiple of 65,535 but not 0 as 65,535.
    Every flip of one bit is found; words of 0x0000 and 0xFFFF cannot be told apart (Fletcher 1982).
    """
    words_T = np.frombuffer(data if len(data) % 2 == 0 else bytes(data) + b"\0", "<u2")
    plain, weighted = (int(value) for value in _sums(words_T))
    if not (plain and weighted) and words_T.any():
        plain, weighted = plain or 65535, weighted or 65535
    return weighted << 16 | plain
