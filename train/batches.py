"""Batches of one rank, from the order through the shards and the configured loader to torch."""

import time

from anyecg.loaders.counters import Counters
from anyecg.loaders.dali import DaliBatches
from anyecg.loaders.plain import TorchBatches
from anyecg.loaders.source import PairSource, WindowSource


def _load(source, config, **options):
    if config.loader == "dali":
        return DaliBatches(source, prefetch=config.prefetch, **options)
    return TorchBatches(source, workers=config.workers, prefetch=config.prefetch, **options)


class PairBatches:
    """Training batches without end, one epoch after the other.

    Parameters
    ----------
    index : anyecg.loaders.index.Index
    stream : anyecg.loaders.stream_config.StreamConfig
    order : dict
        seed, batch_size (global), split and horizon_min of ``anyecg.loaders.stream.batch``.
    comm : MPI communicator
    first_step : int
        Where to start, counted through all epochs, so that resuming is arithmetic.
    device_id : int, optional
        GPU; None is the CPU.
    counters : anyecg.loaders.counters.Counters, optional
    label_DC : array (draws, targets), optional
        As in ``anyecg.loaders.source.PairSource``.

    Attributes
    ----------
    n_batches, first_step : functions of the epoch
    epoch_of : function of the step
    names_of : function of the step and of samples of it
    n_each : int
        Windows of a sample, which follow one another in a batch.
    """

    def __init__(self, index, stream, order, comm, *, first_step=0, device_id=None, counters=None, label_DC=None):
        self.counters = counters or Counters()
        stride = max(1, stream.workers) if stream.loader == "torch" else 1
        self._source = PairSource(
            index, stream, order, rank=comm.rank, n_ranks=comm.size, stride=stride, counters=self.counters,
            label_DC=label_DC,
        )  # fmt: skip
        source = self._source
        self.n_batches, self.first_step, self.epoch_of = source.n_batches, source.first_step, source.epoch_of
        self.names_of, self.n_each = source.names_of, stream.windows_per_sample
        self._loader = _load(source, stream, first_step=first_step, device_id=device_id, counters=self.counters)

    def next(self):
        """Return this rank's part of the next batch, an ``anyecg.loaders.source.Batch``."""
        start = time.perf_counter_ns()
        batch = self._loader.next()
        self.counters.add("wait", start, n_windows=len(batch.x_BLT))
        return batch

    def close(self):
        """End what reads ahead and close the shards."""
        self._loader.close()
        self._source.close()


class WindowBatches:
    """Windows once each, in order, without augmentation: iterate to get float32 (B, leads, samples)."""

    def __init__(self, index, windows, stream, *, batch_size, device_id=None):
        self._source = WindowSource(index, windows, batch_size=batch_size)
        self._loader = _load(self._source, stream, device_id=device_id)

    def __iter__(self):
        # Every pass can be followed by another; the prefetched start of the next is kept.
        for _ in range(self._source.n_batches):
            yield self._loader.next().x_BLT

    def close(self):
        """End what reads ahead and close the shards."""
        self._loader.close()
        self._source.close()
