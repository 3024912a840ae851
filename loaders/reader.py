"""Windows of the shards by their rows, read in runs of whole chunks, every chunk checked against the index."""

import math
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from anyecg.loaders.choice import run_starts
from anyecg.loaders.counters import Counters
from anyecg.loaders.crc32 import crc32
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import file_hash
from anyecg.loaders.index_form import CHUNK_COLUMNS, table_path
from anyecg.loaders.shard_parse import CHUNK_WINDOWS, SIGNAL, load_filter, open_plain, opened
from anyecg.loaders.slots import Slots, sorted_set

MAX_OPEN_SHARDS = 64
_UNREADABLE = "cannot be read ({}); mend the disk or the path, then run it again"


class Chunk(NamedTuple):
    """A row of the index's table of chunks, and its number."""

    number: int
    shard: int
    first_window: int
    n_windows: int
    offset: int
    n_bytes: int
    crc32: int


class WindowReader:
    """Read windows by global row.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    run_chunks : int
        Chunks of 64 windows (640 kB at 500 Hz) that are read in one go.
    n_slots : int
        Runs that stay in memory.
    check : bool
        Compare each chunk with its CRC-32 in the index.
    threads : int
        Runs that are read at one time.
    counters : anyecg.loaders.counters.Counters, optional

    Attributes
    ----------
    bad : dict of chunk number -> str
        The damaged chunks that were met, and what is wrong with each.
    n_bytes_read : int
    """

    def __init__(self, index, *, run_chunks=2, n_slots=64, check=True, threads=1, counters=None):
        self.index, self.check = index, check
        self.counters = counters or Counters()
        path = table_path(index.folder, "chunks")
        if file_hash(path) != index.head["tables"]["chunks"]["sha256"]:
            raise ShardError(f"{path}: changed since it was written; run 'anyecg shard' again")
        self._chunks = np.array(index.tables["chunks"])
        self._first_window = self._chunks[:, CHUNK_COLUMNS.index("first_window")]
        self._starts = run_starts(index, run_chunks)
        self._first_of_run = self._first_window[self._starts[:-1]]
        self._filter = index.head["filter"]
        load_filter(self._filter, index.folder)
        self._slots = Slots(len(self._starts) - 1, n_slots)
        self.n_windows = len(index.tables["window_visit"])
        self.shape = (len(index.leads), index.head["samples"])
        self._rows_a_slot = run_chunks * CHUNK_WINDOWS
        shape = self._slots.n_slots * self._rows_a_slot, *self.shape
        n_bytes, n_there = 2 * math.prod(shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if n_bytes > n_there / 2:
            raise ShardError(
                f"{index.folder}: {self._slots.n_slots} runs of {run_chunks} chunks take {n_bytes / 1e9:.1f} GB of the "
                f"{n_there / 1e9:.1f} GB of memory here; set stream.lanes or stream.pool_runs lower"
            )
        # Filled, so that the system gives the memory now and not within the reads.
        self._kept = np.full(shape, 0, np.int16)
        # How many runs were asked for last; those that threads are reading.
        self._n_runs = 0
        self._ahead: dict[int, Future] = {}
        self._files: OrderedDict = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(threads)
        self.bad: dict[int, str] = {}
        self.n_bytes_read = 0

    def read(self, rows, out=None, *, then=()):
        """Return the windows in some global rows.

        Parameters
        ----------
        rows : int64 array, shape (B,)
        out : int16 array, shape (B, leads, samples), optional
            Where to put them.
        then : int64 array, optional
            Rows that will be asked for later: threads read them meanwhile.

        Returns
        -------
        int16 array, shape (B, leads, samples)

        Raises
        ------
        ShardError
            No such rows; a chunk that holds one of them is damaged or cannot be read.
        """
        signal, _, wrong = self._gather(rows, out, then)
        if wrong:
            raise ShardError(wrong[0])
        return signal

    def read_what_is_whole(self, rows, out=None, *, then=()):
        """Return the windows, and bool (B,): which of them lie in a bad chunk and hold nothing of worth."""
        signal, is_bad, _ = self._gather(rows, out, then)
        return signal, is_bad

    def _gather(self, rows, out, then):
        """Return the windows, which of them lie in a bad chunk, and what is wrong with each such chunk."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_windows:
            raise ShardError(
                f"{self.index.folder}: windows {rows.min()} to {rows.max()} of {self.n_windows}; "
                "run 'anyecg shard' again"
            )
        out = np.empty((len(rows), *self.shape), np.int16) if out is None else out
        run, is_bad, wrong = self._run_of(rows), np.zeros(len(rows), bool), []
        for runs, here in self._slots.parts(run):
            self._bring(runs)
            if self.bad:
                # Before anything is read ahead, which may be one of these chunks again.
                chunk = self._chunk_of(rows[here])
                is_bad[here] = np.isin(chunk, list(self.bad))
                wrong += [self.bad[number] for number in sorted_set(chunk[is_bad[here]]).tolist()]
            self._read_ahead(then)
            start = time.perf_counter_ns()
            kept = self._slots[run[here]] * self._rows_a_slot + rows[here] - self._first_of_run[run[here]]
            if isinstance(here, slice):
                np.take(self._kept, kept, axis=0, out=out, mode="clip")
            else:
                out[here] = self._kept[kept]
            self.counters.add("gather", start, n_bytes=len(kept) * self._kept[0].nbytes, n_windows=len(kept))
        return out, is_bad, wrong

    def _run_of(self, rows):
        return np.searchsorted(self._first_of_run, rows, side="right") - 1

    def _chunk_of(self, rows):
        return np.searchsorted(self._first_window, rows, side="right") - 1

    def _read_ahead(self, rows):
        """Have threads read the runs of rows that are asked for later, where the slots have room for them too."""
        runs = sorted_set(self._run_of(np.asarray(rows, np.int64)))
        if self._n_runs + len(runs) <= self._slots.n_slots:
            self._submit(self._take(runs))

    def _take(self, runs):
        missing = self._slots.take(runs)
        if missing:
            # A slot that is given to another run, or to the same one once more, must not be written to any more.
            taken = {run for run, _ in missing}
            with self._dropping(missing):
                self._finish([run for run in self._ahead if run in taken or run not in self._slots])
        return missing

    def _submit(self, missing):
        for run, slot in missing:
            self._ahead[run] = self._threads.submit(self._load, run, slot)

    def _bring(self, runs):
        """Have the chunks of some runs in their slots."""
        self._n_runs = len(runs)
        if self._ahead:
            self._finish([run for run in runs.tolist() if run in self._ahead])
        missing = self._take(runs)
        with self._dropping(missing):
            if len(missing) == 1:
                self._load(*missing[0])
            else:
                self._submit(missing)
                self._finish([run for run, _ in missing])

    def _finish(self, runs):
        """Wait for runs that threads are reading."""
        for run in runs:
            with self._dropping([(run, None)]):
                self._ahead.pop(run).result()

    @contextmanager
    def _dropping(self, loads):
        """Forget runs whose reading was broken off: nothing half-read stays."""
        try:
            yield
        except BaseException:
            for run, _ in loads:
                if run in self._slots:
                    self._slots.drop(run)
            raise

    def _load(self, run, slot):
        """Bring the chunks of a run into its place."""
        first_chunk, stop = self._starts[run : run + 2].tolist()
        stored = []
        for i, row in enumerate(self._chunks[first_chunk:stop].tolist()):
            first = slot * self._rows_a_slot + i * CHUNK_WINDOWS
            place = self._kept[first : first + CHUNK_WINDOWS].reshape(-1).view(np.uint8)
            chunk = Chunk(first_chunk + i, *row)
            if self._filter == "none":
                stored.append((chunk, first, [place, bytearray(chunk.n_bytes - len(place))]))
            else:
                stored.append((chunk, first, [bytearray(chunk.n_bytes)]))
        together = [stored[0]]
        for one in stored[1:]:
            last = together[-1][0]
            if one[0].offset != last.offset + last.n_bytes:
                self._fetch(together)
                together = []
            together.append(one)
        self._fetch(together)
        for chunk, first, buffers in stored:
            if chunk.number not in self.bad and self._is_whole(chunk, buffers) and self._filter != "none":
                self._unpack(chunk, first)

    def _fetch(self, stored):
        """Read chunks that follow one another in one go; singly where that fails."""
        n_bytes, n_windows = (sum(getattr(chunk, what) for chunk, *_ in stored) for what in ("n_bytes", "n_windows"))
        start, buffers = time.perf_counter_ns(), [part for *_, parts in stored for part in parts]
        try:
            n_read = self._read_into(buffers, self._file(stored[0][0]), stored[0][0].offset)
            wrong = "are damaged; remove the file and run 'anyecg shard' again" if n_read < n_bytes else ""
        except ShardError as cause:
            n_read, wrong = 0, f"are out of reach: {cause}"
        except OSError as cause:
            n_read, wrong = 0, _UNREADABLE.format(cause.strerror)
        if wrong and len(stored) > 1:
            for one in stored:
                self._fetch([one])
            return
        for chunk, *_ in stored:
            self.bad.pop(chunk.number, None)
            if wrong:
                self._is_wrong(chunk, wrong)
        with self._lock:
            self.n_bytes_read += n_read
        self.counters.add("read", start, n_bytes=n_read, n_windows=n_windows)

    @staticmethod
    def _read_into(buffers, file, offset):
        """Fill buffers from a file as far as it goes; a read that a signal cut short goes on. Return the bytes read."""
        n_read = os.preadv(file, buffers, offset)
        left = n_read
        for buffer in buffers:
            rest = memoryview(buffer)[left:]
            left = max(0, left - len(buffer))
            while len(rest):
                part = os.pread(file, len(rest), offset + n_read)
                if not part:
                    return n_read
                rest[: len(part)] = part
                rest, n_read = rest[len(part) :], n_read + len(part)
        return n_read

    def _is_whole(self, chunk, buffers):
        if not self.check:
            return True
        start, found = time.perf_counter_ns(), 0
        for part in buffers:
            found = crc32(part, found)
        if found != chunk.crc32:
            self._is_wrong(chunk, "are damaged; remove the file and run 'anyecg shard' again")
        self.counters.add("check", start, n_bytes=chunk.n_bytes, n_windows=chunk.n_windows)
        return found == chunk.crc32

    def _unpack(self, chunk, first):
        """Have HDF5 undo the filter of a chunk."""
        within = chunk.first_window - int(self._first_window[np.searchsorted(self._chunks[:, 0], chunk.shard)])
        path, start = self._path(chunk), time.perf_counter_ns()
        try:
            with opened(path) as (file, attributes):
                if attributes["filter"] != self._filter:
                    raise ShardError(f"{path}: filter {attributes['filter']}, the index says {self._filter}")
                self._kept[first : first + chunk.n_windows] = file[SIGNAL][within : within + chunk.n_windows]
        except ShardError as cause:
            self.bad[chunk.number] = str(cause)
        except OSError as cause:
            self._is_wrong(chunk, _UNREADABLE.format(cause.strerror))
        n_bytes = chunk.n_windows * self._kept[0].nbytes
        self.counters.add("unpack", start, n_bytes=n_bytes, n_windows=chunk.n_windows)

    def _is_wrong(self, chunk, what):
        last = chunk.first_window + chunk.n_windows - 1
        self.bad[chunk.number] = f"{self._path(chunk)}: windows {chunk.first_window} to {last} of the index {what}"

    def _path(self, chunk):
        return self.index.folder / self.index.head["shards"][chunk.shard]["name"]

    def _file(self, chunk):
        """Return an open descriptor of a chunk's shard; those of other threads stay open."""
        with self._lock:
            if chunk.shard not in self._files:
                if len(self._files) >= MAX_OPEN_SHARDS:
                    os.close(self._files.popitem(last=False)[1])
                self._files[chunk.shard] = open_plain(self._path(chunk))
            self._files.move_to_end(chunk.shard)
            return self._files[chunk.shard]

    def close(self):
        """Close the shard files and end the threads."""
        self._threads.shutdown()
        self._ahead.clear()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
