"""What the loaders carry: the windows, labels and changes of one rank's batches, each a function of its number."""

import bisect
import logging
import os
import time
from typing import Any, NamedTuple

import numpy as np

from anyecg.kernels.counter import uniform
from anyecg.loaders.augment import check_preset, draw_changes
from anyecg.loaders.counters import Counters
from anyecg.loaders.errors import ShardError
from anyecg.loaders.files import digest
from anyecg.loaders.index import open_index
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stream import order_of, rows_of_rank, slots_of_rank
from anyecg.loaders.stream_config import AugmentConfig

log = logging.getLogger(__name__)
# Batches between the one whose runs threads begin to read and the one that is gathered.
READ_AHEAD = 4
MOST_TRIALS = 100


class Block(NamedTuple):
    """One rank's part of a batch, on the host, before anything is done to it.

    Where a sample has several windows, they follow one another, each with the sample's labels.

    Attributes
    ----------
    signal_BLT : int16 array (B, leads, samples)
    scale_BL1 : float32 array (B, leads, 1)
        mV a step.
    label_BC : int8 array (B, targets); float32 for values
    changes_Bn : float32 array (B, n)
        Of ``draw_changes``.
    n_pairs : int
        Pairs, or samples of several windows, of the whole batch, over all ranks.
    n_substituted : int
        Samples of this rank that stand in for damaged ones.
    """

    signal_BLT: Any
    scale_BL1: Any
    label_BC: Any
    changes_Bn: Any
    n_pairs: int
    n_substituted: int

    @property
    def counts(self):
        """What a Batch counts too."""
        return self.n_pairs, self.n_substituted

    def each(self, convert):
        """Return the Block with every array converted."""
        names = ("signal_BLT", "scale_BL1", "label_BC", "changes_Bn")
        return self._replace(**{name: convert(getattr(self, name)) for name in names})


class Batch(NamedTuple):
    """One rank's part of a batch, standardised, as torch tensors on the loader's device; the counts are a Block's."""

    x_BLT: Any
    label_BC: Any
    n_pairs: int
    n_substituted: int


class _Source:
    """An index and its reader, opened anew by every process that uses them: no open file crosses a fork or a pickle."""

    def __init__(self, index, batch_size, counters, **reader):
        self.batch_size = batch_size
        self.n_leads, self.n_samples, self.fs = len(index.leads), index.head["samples"], index.head["fs"]
        self.counters = counters or Counters()
        self._options = reader
        self._folder, self._index = index.folder, index
        self._reader: Any = None
        self._pid: int | None = None

    def __getstate__(self):
        return {**self.__dict__, "_index": None, "_reader": None, "_pid": None, "counters": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.counters = Counters()

    @property
    def index(self):
        if self._index is None:
            self._index = open_index(self._folder)
        return self._index

    @property
    def reader(self):
        if self._pid != os.getpid():
            self._reader, self._pid = WindowReader(self.index, counters=self.counters, **self._options), os.getpid()
        return self._reader

    def buffer(self, *, pinned=False):
        """Return room for the signal of one batch, int16 (batch_size, leads, samples); pinned for copies to a GPU."""
        shape = (self.batch_size, self.n_leads, self.n_samples)
        if not pinned:
            return np.empty(shape, np.int16)
        import torch

        return torch.empty(shape, dtype=torch.int16, pin_memory=True).numpy()

    def close(self):
        """Close this process's files."""
        if self._pid == os.getpid():
            self._reader.close()
        self._pid = None


class PairSource(_Source):
    """Training pairs without end, one epoch after the other.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    config : anyecg.loaders.stream_config.StreamConfig
    order : dict
        seed, batch_size (global), split and horizon_min of ``anyecg.loaders.stream.batch``.
    rank, n_ranks : int
    stride : int
        How far apart the steps are that this process is asked for: what is read ahead.
    counters : anyecg.loaders.counters.Counters, optional
    label_DC : array (draws, targets), optional
        What the draws are labelled with, by default the shards' int8 labels; float32 values, NaN not measured, too.

    Raises
    ------
    ShardError
        Wander or hum for windows that are filtered already; while reading, a damaged chunk, unless ``on_damage`` is
        "quarantine", and even then where 100 trials find nothing whole; an epoch without a pair.

    Notes
    -----
    In quarantine the k-th trial to replace what stands at place p of an epoch is what stands at the place that a hash
    of (seed, epoch, p, k) names: on any number of ranks the same.
    """

    def __init__(self, index, config, order, *, rank=0, n_ranks=1, stride=1, counters=None, label_DC=None):
        self._label_DC = label_DC
        self.label_dtype = np.dtype(np.int8 if label_DC is None else label_DC.dtype)
        self.windows_per_sample = config.windows_per_sample
        n_rows = -(-order["batch_size"] // n_ranks)
        super().__init__(
            index, n_rows * self.windows_per_sample, counters, run_chunks=config.run_chunks,
            threads=config.read_threads, n_slots=slots_of_rank(config, batch_size=order["batch_size"], n_ranks=n_ranks),
        )  # fmt: skip
        check_preset(config, index)
        self.config, self.order, self.rank, self.n_ranks = config, order, rank, n_ranks
        # What was worked out for later steps.
        self._known: dict[int, tuple] = {}
        self._pairs = {"choice": config, **{key: order[key] for key in ("seed", "split", "horizon_min")}}
        self._ends, self._stride = [0], stride
        # Chunks that were named in the log.
        self._told: set[int] = set()

    def n_batches(self, epoch):
        """Return how many batches an epoch has."""
        return self.first_step(epoch + 1) - self.first_step(epoch)

    def names_of(self, step, samples):
        """Return the windows of some of this rank's samples of a step as ``shard:row``, as the order has them."""
        windows = self.index.tables["pair_window"][self._places_of(step)[3]]
        return self.index.names_of(windows.reshape(-1, self.windows_per_sample)[samples].reshape(-1))

    def first_step(self, epoch):
        """Return the number of the first batch of an epoch, counted through all epochs."""
        return self._ends_until(lambda ends: len(ends) > epoch)[epoch]

    def epoch_of(self, step):
        """Return the epoch of a step."""
        return bisect.bisect_right(self._ends_until(lambda ends: ends[-1] > step), step) - 1

    def _ends_until(self, enough):
        """Return the first steps of epochs 0, 1, … up to where it is enough."""
        # The trainer and the thread that reads ahead both ask: a new list, so that none sees the other's half-made one.
        ends = self._ends
        while not enough(ends):
            n_all = self._order_of(len(ends) - 1).n_units
            if not n_all:
                raise ShardError(f"{self.index.folder}: an epoch without a pair; check [stream] and the horizon")
            ends = [*ends, ends[-1] - (-n_all // self.order["batch_size"])]
        self._ends = ends
        return ends

    def _order_of(self, epoch):
        return order_of(self.index, epoch=epoch, **self._pairs)

    def _places_of(self, step):
        """Return the epoch of a step, how many places its batch has, those of this rank, the pairs there, and if idle.

        In a last batch smaller than the number of ranks, a rank without rows is idle: it takes one that counts for
        nothing.
        """
        if step in self._known:
            return self._known[step]
        epoch, start = self.epoch_of(step), time.perf_counter_ns()
        first = (step - self.first_step(epoch)) * self.order["batch_size"]
        order = self._order_of(epoch)
        places = np.arange(first, min(first + self.order["batch_size"], order.n_units))
        mine = rows_of_rank(places, self.rank, self.n_ranks)
        idle = not len(mine)
        mine = places[:1] if idle else mine
        pairs = order.at(mine).reshape(-1)
        self.counters.add("order", start, n_windows=len(pairs))
        return epoch, len(places), mine, pairs, idle

    def __call__(self, step, buffer=None):
        """Return the Block of a step; its signal lies in ``buffer`` when there is one."""
        epoch, n_places, mine, pairs, idle = self._places_of(step)
        later = step + READ_AHEAD * self._stride
        self._known = {known: found for known, found in self._known.items() if step < known < later}
        self._known[later] = self._places_of(later)
        then = self.index.tables["pair_window"][self._known[later][3]]
        signal_BLT = np.empty((len(pairs), self.n_leads, self.n_samples), np.int16) if buffer is None else buffer
        signal_BLT = signal_BLT[: len(pairs)]
        n_substituted = self._read(epoch, mine, pairs, signal_BLT, then)
        n_substituted *= not idle
        tables = self.index.tables
        label_DC = tables["draw_labels"] if self._label_DC is None else self._label_DC
        label_BC = np.array(label_DC[tables["pair_draw"][pairs]])
        if idle:
            label_BC[:] = -1 if label_BC.dtype == np.int8 else np.nan
        changes_Bn = draw_changes(
            pairs, seed=self.order["seed"], epoch=epoch, config=self.config, fs=self.fs, n_samples=self.n_samples
        )  # fmt: skip
        return Block(
            signal_BLT, self.index.scale_of(tables["pair_window"][pairs])[:, :, None], label_BC, changes_Bn,
            n_pairs=n_places, n_substituted=n_substituted,
        )  # fmt: skip

    def _read(self, epoch, places, pairs, signal_BLT, then):
        """Read the windows of ``pairs``; replace, there too, what lies in bad chunks; return how many samples."""
        window, n_each = self.index.tables["pair_window"], self.windows_per_sample
        if self.config.on_damage == "fail":
            self.reader.read(window[pairs], signal_BLT, then=then)
            return 0
        replaced = np.zeros(len(places), bool)
        _, is_bad = self.reader.read_what_is_whole(window[pairs], signal_BLT, then=then)
        trial = 0
        while is_bad.any():
            self._tell()
            trial += 1
            if trial > MOST_TRIALS:
                raise ShardError(
                    f"{self.index.folder}: no whole window found in {MOST_TRIALS} trials, so much of it is damaged; "
                    "run 'anyecg verify' to see what, remove those files and run 'anyecg shard' again"
                )
            rows = np.flatnonzero(is_bad.reshape(-1, n_each).any(1))
            replaced[rows] = True
            there = self._other_places(epoch, places[rows], trial)
            others = self._order_of(epoch).at(there).reshape(-1)
            flat = (rows[:, None] * n_each + np.arange(n_each)).reshape(-1)
            pairs[flat] = others
            signal_BLT[flat], still_bad = self.reader.read_what_is_whole(window[others])
            is_bad[flat] = still_bad
        return int(replaced.sum())

    def _other_places(self, epoch, places, trial):
        key = int(digest(["instead", self.order["seed"], epoch, trial]), 16)
        return (uniform(key, places) * self._order_of(epoch).n_units).astype(np.int64)

    def _tell(self):
        """Name in the log the bad chunks that were not named yet."""
        for number, said in tuple(self.reader.bad.items()):
            if number not in self._told:
                self._told.add(number)
                log.warning("quarantined: %s", said)


class WindowSource(_Source):
    """Windows in the order of ``windows``, again and again, without labels and without augmentation."""

    config = AugmentConfig()
    windows_per_sample = 1
    label_dtype = np.dtype(np.int8)

    def __init__(self, index, windows, *, batch_size, counters=None):
        super().__init__(index, batch_size, counters, run_chunks=1, n_slots=-(-batch_size // 64) + 8)
        self.windows = windows
        self.n_batches = -(-len(windows) // batch_size)

    def __call__(self, step, buffer=None):
        """Return the Block of a step."""
        number = step % self.n_batches
        rows = self.windows[number * self.batch_size : (number + 1) * self.batch_size]
        signal_BLT = self.reader.read(rows, None if buffer is None else buffer[: len(rows)])
        return Block(
            signal_BLT, self.index.scale_of(rows)[:, :, None], np.full((len(rows), 1), -1, np.int8),
            np.empty((len(rows), 0), np.float32), n_pairs=len(rows), n_substituted=0,
        )  # fmt: skip
