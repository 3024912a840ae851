"""The windows of one recording: found on one grid, judged raw, then resampled, filtered and stored as int16."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from anyecg.kernels.prepare import prepare
from anyecg.kernels.resample import resample
from anyecg.kernels.segment import (
    DROPPED,
    FLAG_NAMES,
    FLAT,
    GAP_FILLED,
    NONFINITE,
    PADDED,
    fill_gaps,
    grid,
    quality,
    quantise,
)
from anyecg.loaders.errors import RecordError

SECONDS = 10


@dataclass(frozen=True)
class FoundWindows:
    """The windows of one recording, judged but not yet filtered.

    Attributes
    ----------
    signal : float32 array, shape (samples,)
        mV at the record's own rate ``fs``, gaps up to 40 ms filled.
    start_W, n_in
        First sample of each window, and how many samples a window has.
    flags_W : uint8 array
    padded : bool
        The recording is shorter than a window and is its only one.
    """

    name: str
    signal: np.ndarray
    fs: float
    start_W: np.ndarray
    n_in: int
    flags_W: np.ndarray
    padded: bool


def find_windows(record, *, pad_short):
    """Read a recording, cut it on one grid from its start, and judge each raw window.

    Raises
    ------
    RecordError
        Unreadable.
    """
    signal, was_filled = fill_gaps(record.read(), fs=record.fs)
    n_in = int(SECONDS * record.fs)
    start_W = grid(len(signal), fs=record.fs, seconds=SECONDS)
    padded = bool(pad_short and 0 < len(signal) < SECONDS * record.fs)
    if padded:
        start_W, n_in = np.zeros(1, np.int64), len(signal)
    raw_WT = np.stack([signal[s : s + n_in] for s in start_W]) if len(start_W) else np.empty((0, n_in))
    flags_W = quality(raw_WT, fs=record.fs)
    flags_W[[was_filled[s : s + n_in].any() for s in start_W]] |= GAP_FILLED
    flags_W[:] |= PADDED if padded else 0
    return FoundWindows(record.name, signal, record.fs, start_W, n_in, flags_W, padded)


def store_windows(found, chosen_W, *, fs, preset):
    """Resample, filter and quantise the chosen windows of a recording; those that are not finite or flat become zeros.

    Parameters
    ----------
    found : FoundWindows
    chosen_W : bool array, shape (windows,)
    fs : int
        Sampling rate of the stored windows in Hz.
    preset : str
        Filters, see ``anyecg.kernels.prepare``.

    Returns
    -------
    (int16 (chosen, samples), float32 scale (chosen,))

    Raises
    ------
    RecordError
        A sampling rate that makes no rational ratio with ``fs``.
    """
    n_out = SECONDS * fs
    whole_W = chosen_W & ((found.flags_W & (FLAT | NONFINITE)) == 0)
    stored_WT = np.zeros((len(chosen_W), n_out), np.float32)
    if whole_W.any():
        try:
            # Beyond a long gap the filter sees zeros, as it does beyond the ends of the record.
            rate_T = resample(np.nan_to_num(found.signal, nan=0.0), fs_in=found.fs, fs_out=fs)
        except ValueError as cause:
            raise RecordError(f"{found.name}: {cause}") from None
        n_used = min(len(rate_T), n_out) if found.padded else n_out
        start_W = np.zeros(1, np.int64) if found.padded else grid(len(rate_T), fs=fs, seconds=SECONDS)
        window_WT = np.stack([rate_T[s : s + n_used] for s in start_W[: len(whole_W)][whole_W]])
        used_preset = preset if n_used >= fs else "none"
        stored_WT[whole_W, :n_used] = prepare(window_WT, fs=fs, preset=used_preset, zscore=False)
    return quantise(stored_WT[chosen_W])


def drop_reasons(flags_W):
    """Count the windows that a shard does not take, by their first reason."""
    dropped = flags_W[(flags_W & DROPPED) > 0]
    reasons = [next(name for flag, name in FLAG_NAMES.items() if flags & flag & DROPPED) for flags in dropped]
    return Counter(f"windows dropped: {reason}" for reason in reasons)
