"""Batches of one rank, from the order through the shards and DALI to torch."""

import numpy as np

from anyecg.loaders.dali import augmentation, make_pipeline, next_batch
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.stream import batch, n_batches, rows_of_rank


class PairBatches:
    """Training batches without end: step s is batch s mod n_batches of epoch s // n_batches.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    stream : anyecg.loaders.dali.StreamConfig
    order : dict
        seed, batch_size (global), split and horizon_min of ``anyecg.loaders.stream.batch``.
    comm : MPI communicator
    first_step : int
        Where to start, so that resuming is arithmetic.
    device_id : int, optional
        GPU; None is the CPU.
    """

    def __init__(self, index, stream, order, comm, *, first_step=0, device_id=None):
        self.index, self.stream, self.order, self.comm = index, stream, order, comm
        self.reader = WindowReader(index)
        self.n_batches = n_batches(index, epoch=0, **order)
        self.pipeline = make_pipeline(
            lambda number: self._source(first_step + number), batch_size=-(-order["batch_size"] // comm.size),
            n_samples=self.reader.shape[1], augmented=True, prefetch=stream.prefetch, device_id=device_id,
        )  # fmt: skip

    def pairs(self, step):
        """Return the pairs of a global batch."""
        epoch, number = divmod(step, self.n_batches)
        return batch(self.index, number, epoch=epoch, **self.order)

    def n_observed(self, step):
        """Return how many labels of a global batch were measured: the denominator of the loss on every rank."""
        return int((self.index.tables["draw_labels"][self.index.tables["pair_draw"][self.pairs(step)]] >= 0).sum())

    def _source(self, step):
        pairs = self.pairs(step)
        mine = rows_of_rank(pairs, self.comm.rank, self.comm.size)
        # In a last batch smaller than the number of ranks, a rank without rows takes one that counts for nothing.
        idle = not len(mine)
        mine = pairs[:1] if idle else mine
        tables = self.index.tables
        windows = tables["pair_window"][mine]
        labels = np.array(tables["draw_labels"][tables["pair_draw"][mine]])
        if idle:
            labels[:] = -1
        shift, wander = augmentation(
            mine, seed=self.order["seed"], epoch=step // self.n_batches, config=self.stream,
            fs=self.index.head["fs"],
        )  # fmt: skip
        return [self.reader.read(windows), tables["window_scale"][windows][:, None, None], labels, shift, wander]

    def next(self):
        """Return the next batch of this rank: float32 (B, leads, samples), int8 labels (B, targets)."""
        return next_batch(self.pipeline)


class WindowBatches:
    """Windows once each, in order, without augmentation: iterate to get float32 (B, leads, samples)."""

    def __init__(self, index, windows, *, batch_size, prefetch, device_id=None):
        self.index, self.windows, self.batch_size = index, windows, batch_size
        self.reader = WindowReader(index, run_chunks=1, n_slots=8)
        self.pipeline = make_pipeline(
            self._source, batch_size=batch_size, n_samples=self.reader.shape[1], augmented=False, prefetch=prefetch,
            device_id=device_id,
        )  # fmt: skip

    def _source(self, number):
        # Without end, so that every pass can be followed by another; the prefetched start of the next is kept.
        number %= max(1, -(-len(self.windows) // self.batch_size))
        rows = self.windows[number * self.batch_size : (number + 1) * self.batch_size]
        scale = self.index.tables["window_scale"][rows][:, None, None]
        return [self.reader.read(rows), scale, np.zeros((len(rows), 1), np.int8)]

    def __iter__(self):
        for _ in range(0, len(self.windows), self.batch_size):
            yield next_batch(self.pipeline)[0]
