"""Windows of the shards by their rows, read in runs of whole chunks, every chunk checked against the index."""

import itertools
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from anyecg.loaders.choice import run_starts
from anyecg.loaders.counters import Counters
from anyecg.loaders.crc32 import crc32
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import file_hash
from anyecg.loaders.index_form import CHUNK_COLUMNS, table_path
from anyecg.loaders.shard_parse import CHUNK_WINDOWS, SIGNAL, load_filter, open_plain, opened
from anyecg.loaders.slots import Slots

MAX_OPEN_SHARDS = 64
_FIRST_WINDOW, _N_WINDOWS, _OFFSET, _N_BYTES, _CRC32 = (
    CHUNK_COLUMNS.index(name) for name in ("first_window", "n_windows", "offset", "n_bytes", "crc32")
)  # fmt: skip


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
        self._first_window = self._chunks[:, _FIRST_WINDOW]
        self._starts = run_starts(index, run_chunks)
        self._first_of_run = self._first_window[self._starts[:-1]]
        self._filter = index.head["filter"]
        load_filter(self._filter, index.folder)
        self._slots = Slots(len(self._starts) - 1, n_slots)
        self.n_windows = len(index.tables["window_visit"])
        self.shape = (len(index.leads), index.head["samples"])
        # Filled, so that the system gives the memory now and not within the reads.
        self._kept = np.full((self._slots.n_slots * run_chunks * CHUNK_WINDOWS, *self.shape), 0, np.int16)
        self._rows_a_slot = run_chunks * CHUNK_WINDOWS
        # The last runs that were asked for, and those that threads are reading ahead.
        self._n_runs, self._ahead = 0, {}
        self._files: OrderedDict = OrderedDict()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
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
            Rows that will be asked for next: threads read them while these windows are gathered.

        Returns
        -------
        int16 array, shape (B, leads, samples)

        Raises
        ------
        ShardError
            No such rows; a chunk that holds one of them is damaged or cannot be read.
        """
        signal, is_bad = self.read_what_is_whole(rows, out, then=then)
        if is_bad.any():
            raise ShardError(self.bad[self._chunk_of(np.asarray(rows)[is_bad][:1])[0]])
        return signal

    def read_what_is_whole(self, rows, out=None, *, then=()):
        """Return the windows, and bool (B,): which of them lie in a bad chunk and hold nothing of worth."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_windows:
            raise ShardError(
                f"{self.index.folder}: windows {rows.min()} to {rows.max()} of {self.n_windows}; "
                "run 'anyecg shard' again"
            )
        out = np.empty((len(rows), *self.shape), np.int16) if out is None else out
        run = self._run_of(rows)
        for runs, here in self._slots.parts(run):
            self._bring(runs)
            self._read_ahead(then)
            start = time.perf_counter_ns()
            kept = self._slots[run[here]] * self._rows_a_slot + rows[here] - self._first_of_run[run[here]]
            if isinstance(here, slice):
                np.take(self._kept, kept, axis=0, out=out, mode="clip")
            else:
                out[here] = self._kept[kept]
            self.counters.add("gather", start, n_bytes=len(kept) * self._kept[0].nbytes, n_windows=len(kept))
        return out, self._is_bad(rows)

    def _run_of(self, rows):
        return np.searchsorted(self._first_of_run, rows, side="right") - 1

    def _chunk_of(self, rows):
        return np.searchsorted(self._first_window, rows, side="right") - 1

    def _is_bad(self, rows):
        if not self.bad:
            return np.zeros(len(rows), bool)
        return np.isin(self._chunk_of(rows), list(self.bad))

    def _read_ahead(self, rows):
        """Have threads read the runs of rows that are asked for next, where the slots have room for them too."""
        runs = np.unique(self._run_of(np.asarray(rows, np.int64)))
        if self._threads and self._n_runs + len(runs) <= self._slots.n_slots:
            self._ahead = self._submit(self._slots.take(runs))

    def _submit(self, missing):
        return {run: self._threads.submit(self._load, run, slot) for run, slot in missing}

    def _bring(self, runs):
        """Have the chunks of some runs in their slots."""
        ahead, self._ahead = self._ahead, {}
        self._finish(ahead)
        self._n_runs = len(runs)
        missing = self._slots.take(runs)
        if self._threads and len(missing) > 1:
            self._finish(self._submit(missing))
        else:
            for run, slot in missing:
                with self._dropping([run]):
                    self._load(run, slot)

    def _finish(self, loads):
        """Wait for what threads are reading; where that was broken off, nothing half-read stays."""
        with self._dropping(loads):
            for load in loads.values():
                load.result()

    @contextmanager
    def _dropping(self, runs):
        try:
            yield
        except BaseException:
            for run in runs:
                self._slots.drop(run)
            raise

    def _load(self, run, slot):
        """Bring the chunks of a run into its place."""
        numbers = range(self._starts[run], self._starts[run + 1])
        firsts = range(slot * self._rows_a_slot, (slot + 1) * self._rows_a_slot, CHUNK_WINDOWS)
        stored = []
        for number, first in zip(numbers, firsts, strict=False):
            place = self._kept[first : first + CHUNK_WINDOWS].reshape(-1).view(np.uint8)
            n_bytes = int(self._chunks[number, _N_BYTES])
            if self._filter == "none":
                stored.append((number, [place, bytearray(n_bytes - len(place))]))
            else:
                stored.append((number, [bytearray(n_bytes)]))
        ends = self._chunks[numbers.start : numbers.stop, [_OFFSET, _N_BYTES]].sum(1)
        gaps = np.flatnonzero(ends[:-1] != self._chunks[numbers.start + 1 : numbers.stop, _OFFSET]) + 1
        for first, stop in itertools.pairwise([0, *gaps.tolist(), len(stored)]):
            self._fetch(stored[first:stop])
        for number, buffers in stored:
            if number in self.bad:
                continue
            self._check(number, buffers)
            if self._filter != "none" and number not in self.bad:
                self._unpack(number, firsts[number - numbers[0]])

    def _fetch(self, stored):
        """Read chunks that follow one another in one go; singly where that fails."""
        chunks = self._chunks[[number for number, _ in stored]]
        n_bytes, n_windows = chunks[:, _N_BYTES].sum(), int(chunks[:, _N_WINDOWS].sum())
        start = time.perf_counter_ns()
        try:
            n_read = os.preadv(
                self._file(stored[0][0]), [part for _, parts in stored for part in parts], chunks[0, _OFFSET]
            )
            wrong = "are damaged; remove the file and run 'anyecg shard' again" if n_read < n_bytes else ""
        except ShardError as cause:
            n_read, wrong = 0, f"are out of reach: {cause}"
        except OSError as cause:
            n_read, wrong = 0, f"cannot be read ({cause.strerror}); mend the disk or the path, then run it again"
        if wrong and len(stored) > 1:
            for one in stored:
                self._fetch([one])
            return
        for number, _ in stored:
            self.bad.pop(number, None)
            if wrong:
                self._is_wrong(number, wrong)
        with self._lock:
            self.n_bytes_read += n_read
        self.counters.add("read", start, n_bytes=n_read, n_windows=n_windows)

    def _check(self, number, buffers):
        if not self.check:
            return
        start, found = time.perf_counter_ns(), 0
        for part in buffers:
            found = crc32(part, found)
        if found != self._chunks[number, _CRC32]:
            self._is_wrong(number, "are damaged; remove the file and run 'anyecg shard' again")
        n_windows, n_bytes = self._chunks[number, [_N_WINDOWS, _N_BYTES]].tolist()
        self.counters.add("check", start, n_bytes=n_bytes, n_windows=n_windows)

    def _unpack(self, number, first):
        """Have HDF5 undo the filter of a chunk."""
        shard, first_window, n_windows = self._chunks[number, :3].tolist()
        within = first_window - int(self._first_window[np.searchsorted(self._chunks[:, 0], shard)])
        path, start = self._path(number), time.perf_counter_ns()
        try:
            with opened(path) as (file, attributes):
                if attributes["filter"] != self._filter:
                    raise ShardError(f"{path}: filter {attributes['filter']}, the index says {self._filter}")
                self._kept[first : first + n_windows] = file[SIGNAL][within : within + n_windows]
        except ShardError as cause:
            self.bad[number] = str(cause)
        self.counters.add("unpack", start, n_bytes=n_windows * self._kept[0].nbytes, n_windows=n_windows)

    def _is_wrong(self, number, what):
        first, n_windows = self._chunks[number, [_FIRST_WINDOW, _N_WINDOWS]].tolist()
        self.bad[number] = f"{self._path(number)}: windows {first} to {first + n_windows - 1} of the index {what}"

    def _path(self, number):
        return self.index.folder / self.index.head["shards"][self._chunks[number, 0]]["name"]

    def _file(self, number):
        """Return an open descriptor of a chunk's shard; those of other threads stay open."""
        shard = int(self._chunks[number, 0])
        with self._lock:
            if shard not in self._files:
                if len(self._files) >= MAX_OPEN_SHARDS:
                    os.close(self._files.popitem(last=False)[1])
                self._files[shard] = open_plain(self._path(number))
            self._files.move_to_end(shard)
            return self._files[shard]

    def close(self):
        """Close the shard files and end the threads."""
        self._ahead = {}
        if self._threads:
            self._threads.shutdown()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
