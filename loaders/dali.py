"""Carry batches of windows to the network: one DALI pipeline for the CPU and the GPU."""

import math
import re

import numpy as np
from pydantic import Field

from anyecg.kernels.counter import uniform
from anyecg.loaders.errors import AnyECGError, ShardError
from anyecg.loaders.files import digest
from anyecg.loaders.settings import Section


class StreamConfig(Section):
    """How windows travel from the shards to the network."""

    prefetch: int = Field(2, ge=1, le=64, description="batches prepared ahead")
    shift_seconds: float = Field(0.0, ge=0, le=10, description="training: shift each window, circularly, by up to this")
    wander_mv: float = Field(0.0, ge=0, le=5, description="training: add baseline wander (0.1-0.5 Hz) of up to this")


def augmentation(pairs, *, seed, epoch, config, fs):
    """Draw each pair's augmentation as a function of (seed, epoch, pair) alone.

    Parameters
    ----------
    pairs : int64 array, shape (B,)

    Returns
    -------
    (int32 (B, 1), float32 (B, 3))
        Shift in samples, not negative; amplitude in mV, frequency in rad a sample, and phase in rad of the wander.
    """
    shift, amplitude, frequency, phase = (
        uniform(int(digest([what, seed, epoch]), 16), pairs) for what in ("shift", "amplitude", "frequency", "phase")
    )
    n_shift = np.floor(shift * config.shift_seconds * fs).astype(np.int32)
    wander = [amplitude * config.wander_mv, 2 * math.pi * (0.1 + 0.4 * frequency) / fs, 2 * math.pi * phase]
    return n_shift[:, None], np.stack(wander, axis=1).astype(np.float32)


def make_pipeline(source, *, batch_size, n_samples, augmented, prefetch, device_id=None):
    """Build the pipeline: cast, scale to mV, augment, standardise each lead of each window.

    Parameters
    ----------
    source : callable of the batch number
        Gives [int16 (B, leads, samples), float32 scale (B, 1, 1), int8 labels (B, targets)] and, when ``augmented``,
        int32 shift (B, 1) and float32 wander (B, 3) as well; raises StopIteration after the last batch. A callable of
        the number alone is what DALI's own checkpoints can resume.
    batch_size : int
        Largest number of rows in a batch of this rank.
    device_id : int, optional
        GPU; None runs everything on the CPU.

    Returns
    -------
    nvidia.dali.Pipeline with outputs signal float32 (B, leads, samples) and labels int8 (B, targets)
    """
    try:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali import math as dali_math
    except ImportError as cause:
        raise AnyECGError(
            f"NVIDIA DALI is missing ({cause}); pip install 'anyecg-lab[cuda130]' or '[cuda120]', as your driver's CUDA"
        ) from None

    on_gpu = device_id is not None

    @pipeline_def(
        batch_size=batch_size, num_threads=1, device_id=device_id, prefetch_queue_depth=prefetch,
        exec_dynamic=on_gpu,
    )  # fmt: skip
    def pipeline():
        n_outputs = 5 if augmented else 3
        dtypes = [types.INT16, types.FLOAT, types.INT8, types.INT32, types.FLOAT][:n_outputs]
        ndims = [2, 2, 1, 1, 1][:n_outputs]
        signal, scale, labels, *drawn = fn.external_source(
            source=lambda info: source(info.iteration),
            num_outputs=n_outputs, batch=True, batch_info=True, dtype=dtypes, ndim=ndims,
        )  # fmt: skip
        if on_gpu:
            signal, scale, labels = signal.gpu(), scale.gpu(), labels.gpu()
        mv = fn.cast(signal, dtype=types.FLOAT) * scale
        if augmented:
            shift, wander = drawn
            mv = fn.slice(fn.cat(mv, mv, axis=1), shift, [n_samples], axes=[1])
            if on_gpu:
                wander = wander.gpu()
            time = types.Constant(np.arange(n_samples, dtype=np.float32), device="gpu" if on_gpu else "cpu")
            mv = mv + wander[0] * dali_math.sin(wander[1] * time + wander[2])
        return fn.normalize(mv, axes=[1], epsilon=1e-16), labels

    built = pipeline()
    built.build()
    return built


def next_batch(pipeline):
    """Run the pipeline once; return its outputs as torch tensors.

    Raises
    ------
    ShardError
        The source found a damaged chunk; DALI gives that back as text inside an error of its own.
    """
    try:
        outputs = pipeline.run()
    except RuntimeError as cause:
        found = re.search(r"ShardError: (.+)", str(cause))
        if found is None:
            raise
        raise ShardError(found[1].strip()) from None
    return to_torch(outputs)


def to_torch(outputs):
    """Return the pipeline's outputs as torch tensors that own their memory (DALI reuses its buffers)."""
    import torch

    tensors = tuple(torch.from_dlpack(output.as_tensor()).clone() for output in outputs)
    if tensors[0].is_cuda:
        # The copies are queued on torch's stream; DALI may reuse its buffers as soon as we return.
        torch.cuda.current_stream().synchronize()
    return tensors
