"""The same batches without DALI: a plain torch DataLoader, for machines that do not have it."""

import atexit
import itertools
import os
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from anyecg.loaders.augment import standardised
from anyecg.loaders.counters import Counters
from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.prefetch import Prefetcher
from anyecg.loaders.source import Batch
from anyecg.loaders.stop import unheard

# A worker that gives nothing for so long is taken for dead.
SECONDS_WITHOUT_A_BATCH = 600


class _Numbers:
    """Batch numbers without end."""

    def __init__(self, first):
        self.first = first

    def __iter__(self):
        return itertools.count(self.first)


class _Blocks(Dataset):
    """Whole Blocks as items, with torch tensors in them."""

    def __init__(self, get):
        self.get = get

    def __getitem__(self, number):
        try:
            return self.get(number).each(torch.from_numpy)
        except AnyECGError as cause:
            # A worker's exception would come back with its traceback as its message.
            return cause


def _leave_at_once(_):
    # A spawned worker would take its interpreter apart while a thread of it still hands over a batch, and abort.
    atexit.register(os._exit, 0)


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
    start_method : "spawn", "forkserver" or "fork"
        How workers start. A fork takes with it whatever lock another thread of this process holds just then.
    """

    def __init__(
        self, source, *, workers, prefetch, first_step=0, device_id=None, counters=None, start_method="spawn"
    ):  # fmt: skip
        self._config, self._fs, self._device_id = source.config, source.fs, device_id
        self._counters = counters or Counters()
        on_gpu = device_id is not None
        self._prefetcher = None
        if workers:
            options = {
                "prefetch_factor": prefetch, "multiprocessing_context": start_method, "pin_memory": on_gpu,
                "timeout": SECONDS_WITHOUT_A_BATCH, "worker_init_fn": _leave_at_once,
            }  # fmt: skip
            blocks = _Blocks(source)
        else:
            self._prefetcher = Prefetcher(source, [source.buffer(pinned=on_gpu) for _ in range(prefetch + 1)])
            options = {}
            blocks = _Blocks(self._prefetcher.get)
        loader: DataLoader = DataLoader(
            blocks, batch_size=None, sampler=_Numbers(first_step), num_workers=workers, **options
        )  # fmt: skip
        with unheard():
            self._blocks: Iterator = iter(loader)

    def next(self):
        """Return the next Batch; its tensors own their memory.

        Raises
        ------
        ShardError
            Or whatever else the source raised.
        """
        block = next(self._blocks)
        if isinstance(block, AnyECGError):
            raise block
        start = time.perf_counter_ns()
        if self._device_id is not None:
            block = block.each(lambda tensor: tensor.to(self._device_id))
        with torch.no_grad():
            x_BLT = standardised(block.signal_BLT, block.scale_BL1, block.changes_Bn, self._config, fs=self._fs)
        self._counters.add("copy", start, n_bytes=x_BLT.nbytes, n_windows=len(x_BLT))
        return Batch(x_BLT, block.label_BC, *block.counts)

    def close(self):
        """End the processes and the thread that read ahead."""
        self._blocks = iter(())
        if self._prefetcher:
            self._prefetcher.close()
