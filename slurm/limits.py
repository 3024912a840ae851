"""What the machine could do at best, measured: windows a second from the disk, within memory, to the GPU."""

import errno
import mmap
import os
import time
from itertools import cycle

import numpy as np

BLOCK_BYTES = 4 << 20
MEMORY_BYTES = 128 << 20
WINDOWS = 256


class SequentialDisk:
    """Read files from start to end, again and again, past the page cache.

    Parameters
    ----------
    paths : list of path

    Attributes
    ----------
    how : str
        "O_DIRECT", or "page cache dropped" where the file system knows no direct reads.
    """

    def __init__(self, paths):
        self.how = "O_DIRECT"
        self._paths = cycle(paths)
        # A map of its own begins on a page, as direct reads want it.
        self._buffer = mmap.mmap(-1, BLOCK_BYTES)
        self._file, self._offset = -1, 0

    def read(self):
        """Read the next block and return its bytes; 0 at the end of a file."""
        if self._file < 0:
            self._file, self._offset = self._open(next(self._paths)), 0
        n_bytes = os.preadv(self._file, [self._buffer], self._offset)
        self._offset += n_bytes
        if n_bytes < BLOCK_BYTES:
            self.close()
        return n_bytes

    def _open(self, path):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if self.how == "O_DIRECT":
            try:
                return os.open(path, flags | os.O_DIRECT)
            except OSError as cause:
                if cause.errno != errno.EINVAL:
                    raise
                self.how = "page cache dropped"
        file = os.open(path, flags)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return file

    def close(self):
        """Close the file that is open."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def memory_copier(n_leads, n_samples):
    """Return a function that copies ``WINDOWS`` windows from a set larger than the caches and returns their number."""
    n_blocks = max(1, MEMORY_BYTES // (WINDOWS * n_leads * n_samples * 2))
    source = np.ones((n_blocks, WINDOWS, n_leads, n_samples), np.int16)
    target = np.empty_like(source[0])
    blocks = cycle(source)

    def copy():
        np.copyto(target, next(blocks))
        return WINDOWS

    return copy


def device_copier(n_leads, n_samples, device):
    """Return a function that copies ``WINDOWS`` windows from pinned memory to a GPU and returns their number."""
    import torch

    source = torch.ones((WINDOWS, n_leads, n_samples), dtype=torch.int16).pin_memory()
    target = torch.empty_like(source, device=device)

    def copy():
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        return WINDOWS

    return copy


def repeat(work, seconds, *, comm=None, told=None):
    """Call ``work`` until ``seconds`` have passed.

    Parameters
    ----------
    work : function
        Returns how much it did.
    comm : MPI communicator, optional
        Its ranks work together: they stop after the same call, when rank 0 says so.
    told : function of seconds, optional
        Is given the time of each call, ``seconds`` in all and no more.

    Returns
    -------
    (what was done, seconds it took)
    """
    start = last = time.perf_counter()
    done, go_on = 0, True
    while go_on:
        done += work()
        now = time.perf_counter()
        if told:
            told(min(now - start, seconds) - min(last - start, seconds))
        last, go_on = now, now - start < seconds
        if comm is not None:
            go_on = comm.bcast(go_on)
    return done, last - start
