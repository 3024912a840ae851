"""The order of the pairs, as a pure function, and the windows behind them, read by whole chunks."""

import os
import zlib
from collections import OrderedDict

import numpy as np

from anyecg.kernels.counter import permute
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest, file_hash
from anyecg.loaders.index import Index, open_index
from anyecg.loaders.index_form import CHUNK_COLUMNS, table_path
from anyecg.loaders.shard_parse import SIGNAL, load_filter, open_plain, opened

MAX_OPEN_SHARDS = 64
__all__ = ["ChunkReader", "Index", "batch", "epoch_order", "n_batches", "open_index", "rows_of_rank"]


def n_batches(index, *, batch_size, split="train", horizon_min=60):
    """Return how many batches an epoch has; the last one may be smaller."""
    return -(-index.n_pairs(split, horizon_min) // batch_size)


def batch(index, number, *, seed, epoch, batch_size, split="train", horizon_min=60):
    """Return the pairs of one batch: a pure function of its arguments.

    It takes time and memory of the batch and of the horizon bits of the shards it touches.

    Parameters
    ----------
    index : Index
    number : int
        0 .. n_batches - 1; the last batch of an epoch holds what is left.
    seed, epoch : int
    batch_size : int
        Global, over all ranks.

    Returns
    -------
    int64 array, shape (batch_size,) or less
        Pair numbers, which count through the index in shard order.
    """
    n_pairs = index.n_pairs(split, horizon_min)
    first, last = number * batch_size, min((number + 1) * batch_size, n_pairs)
    if not 0 <= first < last:
        raise ValueError(f"batch {number} of an epoch with {-(-n_pairs // batch_size)} batches")
    key = int(digest([seed, epoch, split, horizon_min]), 16)
    return index.pairs_at(split, horizon_min, permute(np.arange(first, last), n_pairs, key))


def epoch_order(index, *, seed, epoch, split="train", horizon_min=60):
    """Return an epoch's pair numbers in order, int64; each pair of the split and horizon exactly once."""
    n_pairs = index.n_pairs(split, horizon_min)
    if not n_pairs:
        return np.empty(0, np.int64)
    return batch(
        index, 0, seed=seed, epoch=epoch, batch_size=n_pairs, split=split, horizon_min=horizon_min
    )  # fmt: skip


def rows_of_rank(rows, rank, n_ranks):
    """Return the part of a global batch that one rank takes: floor(rB/W) to floor((r+1)B/W)."""
    return rows[rank * len(rows) // n_ranks : (rank + 1) * len(rows) // n_ranks]


class ChunkReader:
    """Read windows by global row, whole chunks at a time, every chunk checked against the index.

    Parameters
    ----------
    index : Index
    cache_chunks : int
        How many chunks of 64 windows (640 kB) stay in memory.
    """

    def __init__(self, index, cache_chunks=256):
        self.index, self.cache_chunks = index, cache_chunks
        self.n_samples = index.head["samples"]
        self.n_leads = len(index.leads)
        path = table_path(index.folder, "chunks")
        if file_hash(path) != index.head["tables"]["chunks"]["sha256"]:
            raise ShardError(f"{path}: changed since it was written; run 'anyecg shard' again")
        self.chunks = np.asarray(index.tables["chunks"])
        self.n_windows = len(index.tables["window_visit"])
        self.first_windows = self.chunks[:, CHUNK_COLUMNS.index("first_window")]
        self.filter = index.head["filter"]
        load_filter(self.filter, index.folder)
        self.cache: OrderedDict = OrderedDict()
        self.files: OrderedDict = OrderedDict()

    def _chunk(self, number):
        if number in self.cache:
            self.cache.move_to_end(number)
            return self.cache[number]
        shard, first, n_windows, offset, n_bytes, crc32 = (int(value) for value in self.chunks[number])
        path = self.index.folder / self.index.head["shards"][shard]["name"]
        if shard not in self.files:
            if len(self.files) >= MAX_OPEN_SHARDS:
                os.close(self.files.popitem(last=False)[1])
            self.files[shard] = open_plain(path)
        try:
            stored = os.pread(self.files[shard], n_bytes, offset)
        except OSError as cause:
            raise ShardError(
                f"{path}: windows {first} to {first + n_windows - 1} of the index cannot be read ({cause.strerror}); "
                "mend the disk or the path, then run it again"
            ) from None
        n_values = n_windows * self.n_leads * self.n_samples
        if len(stored) != n_bytes or zlib.crc32(stored) != crc32:
            raise ShardError(
                f"{path}: windows {first} to {first + n_windows - 1} of the index are damaged; "
                "remove the file and run 'anyecg shard' again"
            )
        if self.filter == "none":
            windows = np.frombuffer(stored, "<i2", n_values).reshape(n_windows, self.n_leads, self.n_samples)
        else:
            windows = self._through_hdf5(path, first - self._first_of_shard(shard), n_windows)
        self.cache[number] = windows
        if len(self.cache) > self.cache_chunks:
            self.cache.popitem(last=False)
        return windows

    def _first_of_shard(self, shard):
        return int(self.first_windows[np.searchsorted(self.chunks[:, 0], shard)])

    def _through_hdf5(self, path, first, n_windows):
        """Return windows that a filter has to unpack; ``first`` counts within the shard."""
        with opened(path) as (file, attributes):
            if attributes["filter"] != self.filter:
                raise ShardError(f"{path}: filter {attributes['filter']}, the index says {self.filter}; make it again")
            return file[SIGNAL][first : first + n_windows]

    def read(self, rows):
        """Return int16 (rows, leads, samples) of the windows in those global rows."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_windows:
            raise ShardError(
                f"{self.index.folder}: windows {rows.min()} to {rows.max()} of {self.n_windows}; "
                "run 'anyecg shard' again"
            )
        out = np.empty((len(rows), self.n_leads, self.n_samples), np.int16)
        numbers = np.searchsorted(self.first_windows, rows, side="right") - 1
        for number in np.unique(numbers):
            here = numbers == number
            out[here] = self._chunk(int(number))[rows[here] - self.first_windows[number]]
        return out

    def close(self):
        """Close the shard files."""
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files.clear()
