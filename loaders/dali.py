"""Carry batches of windows to the network: one DALI pipeline for the CPU and the GPU."""

import os
import time
from collections import deque

import numpy as np

from anyecg.loaders.augment import EPSILON_MV, EPSILON_STEPS, MISSING_SCALE, columns, hum_waves, in_mv, normals
from anyecg.loaders.counters import Counters
from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.prefetch import Prefetcher
from anyecg.loaders.source import Batch

# Batches inside DALI: one is computed while another is trained on.
QUEUE = 2


def _dali():
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.math
    except ImportError as cause:
        raise AnyECGError(
            f"NVIDIA DALI is missing ({cause}); pip install 'anyecg-lab[cuda130]' or '[cuda120]', for your driver, or "
            "set stream.loader = 'torch'"
        ) from None
    return nvidia.dali


def _changed(dali, signal, scale, changes, config, *, shape, fs, device):
    """Add the graph of the configured augmentations: what ``anyecg.loaders.augment.change`` does in torch."""
    fn, types = dali.fn, dali.types
    n_leads, n_samples = shape
    at = {name: i for i, name in enumerate(columns(config))}
    drawn = changes.gpu() if device == "gpu" else changes

    def start(name):
        """Return a drawn whole number as the start of a slice, which DALI takes from the host."""
        return fn.cast(changes[at[name] : at[name] + 1], dtype=types.INT32)

    def constant(values):
        return types.Constant(values, device=device)

    if config.shift_seconds:
        signal = fn.slice(fn.cat(signal, signal, axis=1), start("shift"), [n_samples], axes=[1])
    if config.stretch:
        row = changes[at["pace"] : at["pace_first"] + 1]
        matrix = fn.cat(fn.cat(row[:1], dali.types.Constant([0.0]), row[1:]), dali.types.Constant([0.0, 1.0, 0.0]))
        image = fn.reshape(signal, shape=[n_leads, n_samples, 1], layout="HWC")
        image = fn.warp_affine(image, matrix=fn.reshape(matrix, shape=[2, 3]), dtype=types.FLOAT)
        signal = fn.reshape(image, shape=[n_leads, n_samples], layout="")
    if config.flip:
        signal = signal * drawn[at["sign"]]
    x = signal * scale if in_mv(config) else signal
    if config.wander_mv:
        time_T = constant(np.arange(n_samples, dtype=np.float32))
        angle = drawn[at["wander_step"]] * time_T + drawn[at["wander_phase"]]
        x = x + drawn[at["wander_mv"]] * dali.math.sin(angle)
    if config.hum_mv:
        sine, cosine = (constant(wave) for wave in hum_waves(config, fs=fs, n_samples=n_samples))
        x = x + drawn[at["hum_sine"]] * sine + drawn[at["hum_cosine"]] * cosine
    if config.noise_mv:
        n_values = n_leads * n_samples
        noise = fn.slice(constant(normals(n_values)), start("noise_start"), [n_values], axes=[0])
        x = x + drawn[at["noise_mv"]] * fn.reshape(noise, shape=[n_leads, n_samples])
    if config.mask_seconds:
        first, stop = (changes[at[name] : at[name] + 1] for name in ("mask_start", "mask_stop"))
        x = fn.erase(x, anchor=first, shape=stop - first, axes=[1], fill_value=0)
    if in_mv(config) and n_leads > 1:
        x = x * fn.cast(scale < MISSING_SCALE, dtype=types.FLOAT)
    return x


def make_pipeline(
    source, *, batch_size, shape, fs, config, label_dtype=np.int8, prefetch=QUEUE, device_id=None, checkpoint=None
):  # fmt: skip
    """Build the pipeline: scale to mV, augment, standardise each lead of each window.

    Parameters
    ----------
    source : callable of the batch number
        Gives a Block. A function of the number alone is what DALI's own checkpoints can resume.
    batch_size : int
        Largest number of rows in a batch of this rank.
    shape : (int, int)
        Leads and samples of a window.
    fs : int
        Sampling rate in Hz.
    config : anyecg.loaders.stream_config.AugmentConfig
        Only what it switches on becomes part of the graph. Without anything in mV the scale, which cancels in the
        z-score, is left out too, and one operator reads int16 and writes standardised float32.
    label_dtype : np.int8 or np.float32
    prefetch : int
        Batches inside DALI.
    device_id : int, optional
        GPU; None runs everything on the CPU.
    checkpoint : bytes, optional
        ``pipeline.checkpoint()`` of a pipeline like this one; goes on with the batch after its last.

    Returns
    -------
    nvidia.dali.Pipeline with outputs signal float32 (B, leads, samples) and labels (B, targets)
    """
    dali = _dali()
    fn, types = dali.fn, dali.types
    device = "cpu" if device_id is None else "gpu"
    # name of the part of a Block: its type and dimensions in one row
    labels = types.INT8 if label_dtype == np.int8 else types.FLOAT
    parts = {"signal_BLT": (types.INT16, 2), "label_BC": (labels, 1)}
    if in_mv(config):
        parts["scale_BL1"] = (types.FLOAT, 2)
    if columns(config):
        parts["changes_Bn"] = (types.FLOAT, 1)

    def feed(info):
        block = source(info.iteration)
        return [getattr(block, name) for name in parts]

    @dali.pipeline_def(
        batch_size=batch_size, num_threads=min(4, len(os.sched_getaffinity(0))) if device_id is None else 1,
        device_id=device_id, prefetch_queue_depth=prefetch, exec_dynamic=True, enable_checkpointing=True,
        checkpoint=checkpoint,
    )  # fmt: skip
    def pipeline():
        dtypes, ndims = zip(*parts.values(), strict=True)
        # Copied by DALI: half as fast again as no_copy=True, and the source may use its buffer for the next batch.
        fed = fn.external_source(
            source=feed, num_outputs=len(parts), batch=True, batch_info=True, dtype=list(dtypes), ndim=list(ndims)
        )  # fmt: skip
        given = dict(zip(parts, fed, strict=True))
        changes = given.pop("changes_Bn", None)
        if device == "gpu":
            given = {name: node.gpu() for name, node in given.items()}
        x = _changed(
            dali, given["signal_BLT"], given.get("scale_BL1"), changes, config, shape=shape, fs=fs, device=device
        )  # fmt: skip
        epsilon = EPSILON_MV if in_mv(config) else EPSILON_STEPS
        return fn.normalize(x, axes=[1], epsilon=epsilon, dtype=types.FLOAT), given["label_BC"]

    built = pipeline()
    built.build()
    return built


class DaliBatches:
    """Batches of a source through DALI, as torch tensors.

    Parameters
    ----------
    source : anyecg.loaders.source.PairSource or WindowSource
    prefetch : int
        Batches that a thread prepares ahead of DALI.
    first_step : int
        The source's first batch.
    device_id : int, optional
        GPU; None is the CPU.
    counters : anyecg.loaders.counters.Counters, optional
    checkpoint : bytes, optional
        Of ``checkpoint()`` of an object made with the same arguments; goes on after the last batch it gave.
    """

    def __init__(self, source, *, prefetch, first_step=0, device_id=None, counters=None, checkpoint=None):
        self._prefetcher = Prefetcher(source, [source.buffer() for _ in range(prefetch + 1)])
        self._counters = counters or Counters()
        self._first_step, self._on_gpu = first_step, device_id is not None
        # What the blocks inside DALI count, in order; outputs that torch may still be copying from.
        self._counts: deque = deque()
        self._held: deque = deque()
        self._error = None
        self._pipeline = make_pipeline(
            self._feed, batch_size=source.batch_size, shape=(source.n_leads, source.n_samples), fs=source.fs,
            config=source.config, label_dtype=source.label_dtype, device_id=device_id, checkpoint=checkpoint,
        )  # fmt: skip

    def _feed(self, number):
        start = time.perf_counter_ns()
        try:
            block = self._prefetcher.get(self._first_step + number)
        except Exception as cause:
            # DALI would give it back as text inside an error of its own.
            self._error = cause
            raise
        self._counters.add("feed", start, n_windows=len(block.signal_BLT))
        self._counts.append(block.counts)
        return block

    def next(self):
        """Return the next Batch; its tensors own their memory.

        Raises
        ------
        ShardError
            Or whatever else the source raised.
        """
        start = time.perf_counter_ns()
        try:
            outputs = self._pipeline.run()
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise
        self._counters.add("dali", start, n_windows=len(outputs[0]))
        start = time.perf_counter_ns()
        x_BLT, label_BC = self._to_torch(outputs)
        self._counters.add("copy", start, n_bytes=x_BLT.nbytes, n_windows=len(x_BLT))
        return Batch(x_BLT, label_BC, *self._counts.popleft())

    def _to_torch(self, outputs):
        """Return the outputs as torch tensors.

        On the CPU they share memory, which the dynamic executor gives back only when the tensor goes. On a GPU, where
        torch may still be at work on a tensor that is gone, they are copied on torch's stream, and the outputs are held
        until that copy is done.
        """
        import torch

        tensors = [torch.from_dlpack(output.as_tensor()) for output in outputs]
        if self._on_gpu:
            tensors = [tensor.clone() for tensor in tensors]
            copied = torch.cuda.Event()
            copied.record()
            self._held.append((copied, outputs))
            if len(self._held) > QUEUE:
                self._held[0][0].synchronize()
                self._held.popleft()
        return tensors

    def checkpoint(self):
        """Return DALI's own state: where the next batch is. Bytes."""
        return self._pipeline.checkpoint()

    def close(self):
        """End the thread that reads ahead, and the pipeline."""
        self._prefetcher.close()
        self._held.clear()
        self._pipeline = None
