"""What the loaders carry: the windows, labels and changes of one rank's batches, each a function of its number."""

import os
from typing import Any, NamedTuple

import numpy as np

from anyecg.loaders.augment import AugmentConfig, check_preset, draw_changes
from anyecg.loaders.index import open_index
from anyecg.loaders.stream import ChunkReader, batch, n_batches, rows_of_rank


class Block(NamedTuple):
    """One rank's part of a batch, on the host, before anything is done to it.

    Attributes
    ----------
    signal_BLT : int16 array (B, leads, samples)
    scale_B11 : float32 array (B, 1, 1)
        mV a step.
    label_BC : int8 array (B, targets)
    changes_Bn : float32 array (B, n)
        Of ``draw_changes``.
    n_pairs : int
        Pairs of the whole batch, over all ranks.
    n_measured : int
        Measured labels among ``label_BC``.
    n_substituted : int
        Windows of ``signal_BLT`` that stand in for damaged ones.
    """

    signal_BLT: Any
    scale_B11: Any
    label_BC: Any
    changes_Bn: Any
    n_pairs: int
    n_measured: int
    n_substituted: int

    @property
    def counts(self):
        """What a Batch counts too."""
        return self.n_pairs, self.n_measured, self.n_substituted

    def each(self, convert):
        """Return the Block with every array converted."""
        names = ("signal_BLT", "scale_B11", "label_BC", "changes_Bn")
        return self._replace(**{name: convert(getattr(self, name)) for name in names})


class Batch(NamedTuple):
    """One rank's part of a batch, standardised, as torch tensors on the loader's device; the counts are a Block's."""

    x_BLT: Any
    label_BC: Any
    n_pairs: int
    n_measured: int
    n_substituted: int


class _Source:
    """An index and its reader, opened anew by every process that uses them: no open file crosses a fork or a pickle."""

    cache_chunks = 256

    def __init__(self, index, batch_size):
        self.batch_size = batch_size
        self.n_leads, self.n_samples, self.fs = len(index.leads), index.head["samples"], index.head["fs"]
        self._folder, self._index = index.folder, index
        self._reader: Any = None
        self._pid: int | None = None

    def __getstate__(self):
        return {**self.__dict__, "_index": None, "_reader": None, "_pid": None}

    @property
    def index(self):
        if self._index is None:
            self._index = open_index(self._folder)
        return self._index

    @property
    def reader(self):
        if self._pid != os.getpid():
            self._reader, self._pid = ChunkReader(self.index, cache_chunks=self.cache_chunks), os.getpid()
        return self._reader

    def buffer(self, *, pinned=False):
        """Return room for the signal of one batch, int16 (batch_size, leads, samples); pinned for copies to a GPU."""
        shape = (self.batch_size, self.n_leads, self.n_samples)
        if not pinned:
            return np.empty(shape, np.int16)
        import torch

        return torch.empty(shape, dtype=torch.int16, pin_memory=True).numpy()

    def _read(self, windows, buffer):
        signal_BLT = self.reader.read(windows)
        if buffer is None:
            return signal_BLT
        buffer[: len(windows)] = signal_BLT
        return buffer[: len(windows)]

    def close(self):
        """Close this process's files."""
        if self._pid == os.getpid():
            self._reader.close()
        self._pid = None


class PairSource(_Source):
    """Training pairs without end: step s is batch s mod n_batches of epoch s // n_batches.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    config : anyecg.loaders.stream_config.StreamConfig
    order : dict
        seed, batch_size (global), split and horizon_min of ``anyecg.loaders.stream.batch``.
    rank, n_ranks : int

    Raises
    ------
    ShardError
        Wander or hum for windows that are filtered already.
    """

    def __init__(self, index, config, order, *, rank=0, n_ranks=1):
        super().__init__(index, -(-order["batch_size"] // n_ranks))
        check_preset(config, index)
        self.config, self.order, self.rank, self.n_ranks = config, order, rank, n_ranks
        self.n_batches = n_batches(index, **{key: order[key] for key in ("batch_size", "split", "horizon_min")})

    def __call__(self, step, buffer=None):
        """Return the Block of a step; its signal lies in ``buffer`` when there is one."""
        epoch, number = divmod(step, self.n_batches)
        pairs = batch(self.index, number, epoch=epoch, **self.order)
        mine = rows_of_rank(pairs, self.rank, self.n_ranks)
        # In a last batch smaller than the number of ranks, a rank without rows takes one that counts for nothing.
        idle = not len(mine)
        mine = pairs[:1] if idle else mine
        tables = self.index.tables
        windows = tables["pair_window"][mine]
        label_BC = np.array(tables["draw_labels"][tables["pair_draw"][mine]])
        if idle:
            label_BC[:] = -1
        changes_Bn = draw_changes(
            mine, seed=self.order["seed"], epoch=epoch, config=self.config, fs=self.fs, n_samples=self.n_samples
        )  # fmt: skip
        return Block(
            self._read(windows, buffer), tables["window_scale"][windows][:, None, None], label_BC, changes_Bn,
            n_pairs=len(pairs), n_measured=int((label_BC >= 0).sum()), n_substituted=0,
        )  # fmt: skip


class WindowSource(_Source):
    """Windows in the order of ``windows``, again and again, without labels and without augmentation."""

    cache_chunks = 8
    config = AugmentConfig()

    def __init__(self, index, windows, *, batch_size):
        super().__init__(index, batch_size)
        self.windows = windows
        self.n_batches = -(-len(windows) // batch_size)

    def __call__(self, step, buffer=None):
        """Return the Block of a step."""
        number = step % self.n_batches
        rows = self.windows[number * self.batch_size : (number + 1) * self.batch_size]
        return Block(
            self._read(rows, buffer), self.index.tables["window_scale"][rows][:, None, None],
            np.full((len(rows), 1), -1, np.int8), np.empty((len(rows), 0), np.float32),
            n_pairs=len(rows), n_measured=0, n_substituted=0,
        )  # fmt: skip
