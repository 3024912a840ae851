"""The windows of one recording: found on one grid in all leads, judged raw, resampled, filtered, stored as int16."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from anyecg.kernels.prepare import prepare
from anyecg.kernels.resample import resample_into, resampled_length
from anyecg.kernels.segment import (
    DROPPED,
    FLAG_NAMES,
    FLAT,
    GAP_FILLED,
    NONFINITE,
    PADDED,
    fill_gaps,
    grid,
    quality_at,
    quantise_into,
)
from anyecg.loaders.errors import RecordError
from anyecg.loaders.shard_config import SECONDS

# Windows filtered at a time: their intermediates stay in the cache, and memory is not asked for again and again.
_TOGETHER = 64


@dataclass(frozen=True)
class FoundWindows:
    """The windows of one lead, judged but not yet filtered.

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


@dataclass(frozen=True)
class FoundLeads:
    """The windows of one recording in several leads, on one grid over the shortest of them.

    Attributes
    ----------
    records : tuple of Record or None
    leads : tuple of FoundWindows or None
        None for a lead that is missing; its windows are zeros.
    start_s_W : float array
        Where each window begins, in seconds.
    flags_W : uint8 array
        Every flag that a window has in any lead.
    """

    records: tuple
    leads: tuple
    start_s_W: np.ndarray
    flags_W: np.ndarray


def find_leads(records, *, pad_short, keep=True):
    """Read the leads of a recording one after the other, cut them on one grid, and judge each raw window.

    Parameters
    ----------
    records : tuple of Record or None
        Of ``anyecg.loaders.records.open_leads``: at least one of them is there.
    pad_short : bool
    keep : bool
        Keep the leads' samples until they are stored; otherwise they are read a second time then.

    Returns
    -------
    FoundLeads

    Raises
    ------
    RecordError
        Unreadable.
    """
    leads = []
    for record in records:
        found = None if record is None else find_windows(record, pad_short=pad_short)
        leads.append(found if keep or found is None else replace(found, signal=None))
    there = [found for found in leads if found is not None]
    n_windows = min(len(found.flags_W) for found in there)
    flags_W = np.bitwise_or.reduce([found.flags_W[:n_windows] for found in there])
    start_s_W = there[0].start_W[:n_windows] / there[0].fs
    return FoundLeads(tuple(records), tuple(leads), start_s_W, flags_W)


def store_leads(found, chosen_W, *, fs, preset):
    """Resample, filter and quantise the chosen windows of a recording, each lead by itself as ``store_windows`` does.

    Parameters
    ----------
    found : FoundLeads
    chosen_W, fs, preset
        As for ``store_windows``.

    Returns
    -------
    (int16 (chosen, leads, samples), float32 scale (chosen, leads))

    Raises
    ------
    RecordError
        As ``store_windows``; unreadable, where the samples are read a second time.
    """
    shape = int(chosen_W.sum()), len(found.leads)
    signal_WLT, scale_WL = np.zeros((*shape, SECONDS * fs), np.int16), np.ones(shape, np.float32)
    for place, (record, lead) in enumerate(zip(found.records, found.leads, strict=True)):
        if lead is None:
            continue
        if lead.signal is None:
            lead = replace(lead, signal=fill_gaps(record.read(), fs=record.fs)[0])
        signal_WLT[:, place], scale_WL[:, place] = store_windows(lead, chosen_W, fs=fs, preset=preset)
    return signal_WLT, scale_WL


def find_windows(record, *, pad_short):
    """Read a lead, cut it on one grid from its start, and judge each raw window.

    Raises
    ------
    RecordError
        Unreadable.
    """
    signal, filled = fill_gaps(record.read(), fs=record.fs)
    n_in = int(SECONDS * record.fs)
    start_W = grid(len(signal), fs=record.fs, seconds=SECONDS)
    padded = bool(pad_short and 0 < len(signal) < SECONDS * record.fs)
    if padded:
        start_W, n_in = np.zeros(1, np.int64), len(signal)
    flags_W = quality_at(signal, start_W, n_in, fs=record.fs)
    flags_W[np.searchsorted(filled, start_W) < np.searchsorted(filled, start_W + n_in)] |= GAP_FILLED
    flags_W[:] |= PADDED if padded else 0
    return FoundWindows(record.name, signal, record.fs, start_W, n_in, flags_W, padded)


def store_windows(found, chosen_W, *, fs, preset):
    """Resample, filter and quantise the chosen windows of a lead; those that are not finite or flat become zeros.

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
    number_W = np.flatnonzero(chosen_W)
    signal_WT, scale_W = np.zeros((len(number_W), SECONDS * fs), np.int16), np.ones(len(number_W), np.float32)
    row_W = np.flatnonzero((found.flags_W[number_W] & (FLAT | NONFINITE)) == 0)
    signal = found.signal
    if found.fs != fs and not np.isfinite(signal).all():
        # Beyond a long gap the filter sees zeros, as it does beyond the ends of the record.
        signal = np.nan_to_num(signal, nan=0.0)
    for rows in np.split(row_W, range(_TOGETHER, len(row_W), _TOGETHER)) if len(row_W) else []:
        try:
            window_WT = _cut(signal, number_W[rows], found, fs)
        except ValueError as cause:
            raise RecordError(f"{found.name}: {cause}") from None
        used_preset = preset if window_WT.shape[1] >= fs else "none"
        window_WT = prepare(window_WT, fs=fs, preset=used_preset, zscore=False)
        quantise_into(signal_WT, scale_W, rows, window_WT)
    return signal_WT, scale_W


def _cut(signal, number_W, found, fs):
    """Return these windows of the grid at ``fs``, float32 (W, T)."""
    n = SECONDS * fs
    if found.padded:
        n = min(n, resampled_length(len(signal), fs_in=found.fs, fs_out=fs))
    first_of_run = np.flatnonzero(np.diff(number_W, prepend=-2) > 1)
    if found.fs == fs:
        window_WT = signal[: len(signal) // n * n].reshape(-1, n)
        return window_WT[number_W] if len(first_of_run) > 1 else window_WT[number_W[0] : number_W[-1] + 1]
    window_WT = np.empty((len(number_W), n), np.float32)
    for run_WT, first in zip(np.split(window_WT, first_of_run[1:]), first_of_run, strict=True):
        resample_into(run_WT.reshape(-1), n * number_W[first], signal, fs_in=found.fs, fs_out=fs)
    return window_WT


def drop_reasons(flags_W):
    """Count the windows that a shard does not take, by their first reason."""
    counts: Counter = Counter()
    left_W = flags_W[(flags_W & DROPPED) > 0]
    for flag, name in FLAG_NAMES.items():
        first_W = (left_W & flag & DROPPED) > 0
        if first_W.any():
            counts[f"windows dropped: {name}"] = int(first_W.sum())
            left_W = left_W[~first_W]
    return counts
