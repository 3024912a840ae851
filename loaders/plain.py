"""The same batches without DALI: a plain torch DataLoader, for machines that do not have it."""

import itertools
import time

from anyecg.loaders.augment import standardised
from anyecg.loaders.counters import Counters
from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.prefetch import Prefetcher
from anyecg.loaders.source import Batch, Block


class _Numbers:
    """Batch numbers without end."""

    def __init__(self, first):
        self.first = first

    def __iter__(self):
        return itertools.count(self.first)


class _Blocks:
    """A map-style data set: its items are whole Blocks, as torch tensors."""

    def __init__(self, get):
        self.get = get

    def __getitem__(self, number):
        import torch

        try:
            block = self.get(number)
        except AnyECGError as cause:
            # A worker's exception would come back with its traceback as its message.
            return cause
        return Block(*map(torch.from_numpy, block[:-3]), *block[-3:])


class TorchBatches:
    """Batches of a source through a torch DataLoader; scaled, augmented and standardised in torch on the device.

    Parameters
    ----------
    source : anyecg.loaders.source.PairSource or WindowSource
    workers : int
        Processes that read; 0 is a thread of this process, which is faster as long as one keeps up.
    prefetch : int
        Batches prepared ahead, by each worker.
    first_step : int
        The source's first batch.
    device_id : int, optional
        GPU; None is the CPU.
    counters : anyecg.loaders.counters.Counters, optional
    start_method : "fork", "spawn" or "forkserver", optional
        How workers start; the system's default otherwise.
    """

    def __init__(
        self, source, *, workers, prefetch, first_step=0, device_id=None, counters=None, start_method=None
    ):  # fmt: skip
        from torch.utils.data import DataLoader

        self._source, self._device_id, self._counters = source, device_id, counters or Counters()
        self._prefetcher = None
        options = {}
        if workers:
            options = {"prefetch_factor": prefetch, "multiprocessing_context": start_method}
        else:
            buffers = [source.buffer(pinned=device_id is not None) for _ in range(prefetch + 1)]
            self._prefetcher = Prefetcher(source, buffers)
        self._loader = DataLoader(
            _Blocks(source if workers else self._prefetcher.get), batch_size=None, sampler=_Numbers(first_step),
            num_workers=workers, pin_memory=bool(workers) and device_id is not None, **options,
        )  # fmt: skip
        self._blocks = None

    def next(self):
        """Return the next Batch; its tensors own their memory.

        Raises
        ------
        ShardError
            Or whatever else the source raised.
        """
        import torch

        if self._blocks is None:
            self._blocks = iter(self._loader)
        block = next(self._blocks)
        if isinstance(block, AnyECGError):
            raise block
        start = time.perf_counter_ns()
        with torch.no_grad():
            if self._device_id is not None:
                block = Block(*(tensor.to(self._device_id) for tensor in block[:-3]), *block[-3:])
            x_BLT = standardised(*block[:2], block.changes_Bn, self._source.config, fs=self._source.fs)
        self._counters.add("copy", start, n_bytes=x_BLT.nbytes, n_windows=len(x_BLT))
        return Batch(x_BLT, block.label_BC, *block[-3:])

    def close(self):
        """End the processes and the thread that read ahead."""
        self._blocks = None
        if self._prefetcher:
            self._prefetcher.close()
