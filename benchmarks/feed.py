"""Windows a second through each way from shards to float32 torch tensors: threads, processes, DALI, torch."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from anyecg.loaders.augment import draw_changes
from anyecg.loaders.dali import DaliBatches, make_pipeline
from anyecg.loaders.plain import TorchBatches
from anyecg.loaders.source import WindowSource
from anyecg.loaders.stream import open_index
from anyecg.loaders.stream_config import AugmentConfig
from tests.loaders import tiny

BATCH, SAMPLES = 256, 5000
MIXED = AugmentConfig(noise_mv=0.05, mask_seconds=1.0, shift_seconds=10.0)


class Ready(WindowSource):
    """A source that always has its block at hand."""

    def __init__(self, index, config):
        super().__init__(index, np.arange(BATCH), batch_size=BATCH)
        self.config = config
        changes_Bn = draw_changes(np.arange(BATCH), seed=1, epoch=0, config=config, fs=500, n_samples=SAMPLES)
        self.block = super().__call__(0)._replace(changes_Bn=changes_Bn)

    def __call__(self, number, buffer=None):
        """Return the block."""
        return self.block


class Samples:
    """A source in the form that DALI's own processes want: lists of samples."""

    def __init__(self, source):
        self.source = source

    def __call__(self, info):
        """Return windows and labels of a batch."""
        block = self.source(info.iteration)
        return list(block.signal_BLT), list(block.label_BC)


def through_worker_processes(source, n_workers):
    """Return a function that runs a DALI pipeline whose source runs in DALI's own processes, sample by sample."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(
        batch_size=BATCH, num_threads=2, device_id=None, py_num_workers=n_workers, py_start_method="spawn"
    )  # fmt: skip
    def pipeline():
        signal, label = fn.external_source(
            source=Samples(source), num_outputs=2, batch=True, batch_info=True, parallel=True,
            dtype=[types.INT16, types.INT8],
        )  # fmt: skip
        return fn.normalize(signal, axes=[1], dtype=types.FLOAT), label

    built = pipeline()
    built.build()
    return lambda: [torch.from_dlpack(output.as_tensor()) for output in built.run()]


def raw(source):
    """Return a function that runs a DALI pipeline which hands the int16 block on as it is."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=2, device_id=None, prefetch_queue_depth=2)
    def pipeline():
        return fn.external_source(
            source=lambda info: source(info.iteration).signal_BLT, batch=True, batch_info=True, dtype=types.INT16
        )  # fmt: skip

    built = pipeline()
    built.build()
    return built.run


def rate(step, n_batches):
    """Return windows a second, the best of three passes."""
    for _ in range(5):
        step()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(n_batches):
            step()
        seconds.append(time.perf_counter() - start)
    return n_batches * BATCH / min(seconds)


def direct(source, config):
    """Return a function that runs our pipeline with the source called in the main thread."""
    pipeline = make_pipeline(source, batch_size=BATCH, shape=(1, SAMPLES), fs=500, config=config)
    return lambda: [torch.from_dlpack(output.as_tensor()) for output in pipeline.run()]


def main():
    """Print one line a way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    tiny.SAMPLES, tiny.SHARDS = SAMPLES, (("train", options.windows), ("val", 64), ("test", 64))
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_tiny_set(Path(folder) / "shards")
        index = open_index(Path(folder) / "shards")

        def source():
            return WindowSource(index, np.arange(options.windows), batch_size=BATCH)

        counter = iter(range(1 << 60))
        plain, reader = AugmentConfig(), source()
        ways = {
            "ready block, DALI, int16 out": lambda: raw(Ready(index, plain)),
            "ready block, DALI, float32 z-scored": lambda: DaliBatches(Ready(index, plain), prefetch=2).next,
            "ready block, DALI, noise + mask + shift": lambda: DaliBatches(Ready(index, MIXED), prefetch=2).next,
            "ready block, torch, float32 z-scored": lambda: (
                TorchBatches(Ready(index, plain), workers=0, prefetch=2).next
            ),
            "ready block, torch, noise + mask + shift": lambda: (
                TorchBatches(Ready(index, MIXED), workers=0, prefetch=2).next
            ),
            "shards, int16 read only": lambda: lambda: reader(next(counter)),
            "shards, DALI, no thread": lambda: direct(source(), plain),
            "shards, DALI, our thread": lambda: DaliBatches(source(), prefetch=2).next,
            "shards, DALI, parallel=True, 2 processes": lambda: through_worker_processes(source(), 2),
            **{
                f"shards, torch, {n} processes" if n else "shards, torch, our thread": (
                    lambda n=n: TorchBatches(source(), workers=n, prefetch=2).next
                )
                for n in (0, 1, 2)
            },
        }
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, blocks of {BATCH} x 1 x {SAMPLES}")
        for name, make in ways.items():
            print(f"{name:42} {rate(make(), options.batches) / 1e3:7.1f} k windows/s", flush=True)


if __name__ == "__main__":
    main()
