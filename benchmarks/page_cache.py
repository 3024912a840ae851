"""What of a file is in the page cache, how to drop it, and what the disk gives without it."""

import ctypes
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BLOCK = 1 << 20


def flush(paths):
    """Write what is not on the disk yet, so that it is not written while something is measured."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def drop(paths):
    """Drop the pages of files from the page cache; what is not on the disk yet is written first."""
    flush(paths)
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def resident(paths):
    """Return the share of the files' pages that are in the page cache, by mincore."""
    counted = [_resident_pages(path) for path in paths if path.stat().st_size]
    return sum(there for there, _ in counted) / sum(n_pages for _, n_pages in counted)


def _resident_pages(path):
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        n_pages = -(-len(mapped) // mmap.PAGESIZE)
        found = np.zeros(n_pages, np.uint8)
        size, place = ctypes.c_size_t(len(mapped)), ctypes.c_void_p(found.ctypes.data)
        if libc.mincore(ctypes.c_void_p(address), size, place):
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return int((found & 1).sum()), n_pages


def direct_rate(paths, n_threads):
    """Return the bytes/s of reading files past the page cache (O_DIRECT), one block of 1 MiB a thread at a time."""
    blocks = [(path, offset) for path in paths for offset in range(0, path.stat().st_size - _BLOCK + 1, _BLOCK)]
    with ThreadPoolExecutor(n_threads) as pool:
        start = time.perf_counter()
        n_bytes = sum(pool.map(_read_direct, [blocks[first::n_threads] for first in range(n_threads)]))
        return n_bytes / (time.perf_counter() - start)


def _read_direct(blocks):
    n_bytes, opened = 0, {}
    with mmap.mmap(-1, _BLOCK) as aligned:
        for path, offset in blocks:
            if path not in opened:
                opened[path] = os.open(path, os.O_RDONLY | os.O_DIRECT)
            n_bytes += os.preadv(opened[path], [aligned], offset)
    for descriptor in opened.values():
        os.close(descriptor)
    return n_bytes


def disk_rate(paths):
    """Return the best bytes/s of the disk over 1, 2, 4 and 8 reads at a time."""
    return max(direct_rate(paths, n_threads) for n_threads in (1, 2, 4, 8))
