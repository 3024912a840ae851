"""From a visit's recordings and draws to its windows and pairs: nothing is dropped without a reason and a count."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from anyecg.kernels.segment import DROPPED, FLAG_NAMES
from anyecg.loaders.errors import RecordError
from anyecg.loaders.index import HORIZON_BIT
from anyecg.loaders.pairs import pair_windows
from anyecg.loaders.records import open_leads
from anyecg.loaders.windows import drop_reasons, find_leads, store_leads

ALL_HORIZONS = 0b111
# Signals of a visit kept between judging and storing; what a longer visit holds is read a second time.
_KEPT_SAMPLES = 50_000_000
# One array holds a lead: 55 h at 500 Hz are 400 MB.
_MAX_SAMPLES = 100_000_000
# Another one holds a record's windows as they are stored: 12 leads of 55 h at 500 Hz are 2.4 GB.
_MAX_STORED = 1_200_000_000


class VisitRows(NamedTuple):
    """What a visit adds to a shard besides its signal; rows count within the visit."""

    scale_WL: np.ndarray
    start_W: np.ndarray
    flags_W: np.ndarray
    window: np.ndarray
    draw: np.ndarray
    horizons: np.ndarray


class _Recording(NamedTuple):
    path: str
    windows: object
    start_W: np.ndarray
    good_W: np.ndarray


class Collector:
    """Make the windows of one visit after the other, and count what becomes of every record and window.

    Attributes
    ----------
    quarantine : list of (record, reason)
        Grows with the visits.
    """

    def __init__(self, cohort, config, seed):
        self._cohort, self._config, self._seed = cohort, config, seed
        self._counts: Counter = Counter()
        self.quarantine: list[tuple[str, str]] = []

    def visit(self, visit, records, time_D, append):
        """Judge, pair and store a visit.

        Parameters
        ----------
        visit : dict
            Its row of ``cohort.visits``.
        records : DataFrame
            Its rows of ``cohort.records``.
        time_D : int64 array, shape (draws,)
            Times of its draws in microseconds.
        append : function of an int16 array (W, leads, samples)
            Takes the signal of the windows kept, in order.

        Returns
        -------
        (VisitRows, Counter)
            The counts are this visit's: records, windows cut and kept, and what was dropped by reason.
        """
        self._counts = Counter()
        split = visit["split"]
        found = self._find(records, self._reach(split, time_D))
        start_W = np.concatenate([np.empty(0, np.int64), *(r.start_W[r.good_W] for r in found)])
        window, draw, horizons = self._pair(start_W, time_D, visit["visit"], split)
        paired_W = np.bincount(window, minlength=len(start_W)) > 0
        self._counts["windows dropped: in no draw's horizon or sample"] += int((~paired_W).sum())
        none = np.empty((0, self._config.n_leads), np.float32), np.empty(0, np.uint8)
        first, kept_W, stored = 0, paired_W.copy(), [none]
        for recording in found:
            here = slice(first, first + int(recording.good_W.sum()))
            first = here.stop
            chosen_W = recording.good_W.copy()
            chosen_W[recording.good_W] = paired_W[here]
            scale_WL = self._store(recording, chosen_W, append)
            if scale_WL is None:
                kept_W[here] = False
            else:
                stored.append((scale_WL, recording.windows.flags_W[chosen_W]))
        self._counts["windows kept"] += int(kept_W.sum())
        row_of = np.cumsum(kept_W) - 1
        pairs = kept_W[window]
        scale_WL, flags_W = (np.concatenate(column) for column in zip(*stored, strict=True))
        for flag, what in FLAG_NAMES.items():
            self._counts[f"windows kept but flagged: {what}"] += int((flags_W & flag > 0).sum())
        rows = VisitRows(scale_WL, start_W[kept_W], flags_W, row_of[window[pairs]], draw[pairs], horizons[pairs])
        return rows, self._counts

    def _reach(self, split, time_D):
        """Return the spans of time in which a window can have a draw; None where every window has one."""
        if self._cohort.pairing != "horizon":
            return None
        half = 60_000_000 * (self._config.train_horizon_min if split == 0 else max(HORIZON_BIT))
        return [(time - half, time if self._config.before_only else time + half) for time in time_D.tolist()]

    def _drop(self, path, count, reason):
        self._counts[f"records dropped: {count}"] += 1
        self.quarantine.append((path, reason))

    def _find(self, records, reach):
        """Return a visit's readable recordings near a draw, each window judged."""
        found, n_kept = [], 0
        for path, fs, start, n_samples in records.select("path", "fs", "start", "n_samples").iter_rows():
            self._counts["records"] += 1
            if reach is not None and not any(
                start < last and start + n_samples / fs * 1e6 > first for first, last in reach
            ):
                self._counts["records dropped: near no draw"] += 1
                continue
            try:
                leads = self._open(path)
                n_kept += sum(record.n_samples for record in leads if record)
                windows = find_leads(leads, pad_short=self._config.pad_short, keep=n_kept <= _KEPT_SAMPLES)
            except RecordError as cause:
                self._drop(path, "unreadable", f"unreadable: {cause}")
                continue
            good_W = (windows.flags_W & DROPPED) == 0
            self._counts["windows cut"] += len(good_W)
            self._counts.update(drop_reasons(windows.flags_W))
            if not good_W.any():
                reason = "every window dropped" if len(good_W) else "shorter than a window"
                self._drop(path, reason, reason)
                continue
            start_W = start + np.round(windows.start_s_W * 1e6).astype(np.int64)
            found.append(_Recording(path, windows, start_W, good_W))
        return found

    def _open(self, path):
        """Open the leads that a shard takes of a recording; refuse one that would fill the memory."""
        config, cohort = self._config, self._cohort
        zeros = config.missing_leads == "zeros"
        leads = open_leads(cohort.root / path, config.leads, zeros=zeros, root=cohort.root, **cohort.options)
        there = [record for record in leads if record]
        for record in there:
            if record.n_samples > _MAX_SAMPLES:
                raise RecordError(
                    f"{path}: {record.n_samples} samples; wanted at most {_MAX_SAMPLES}: split the record"
                )
        seconds = min(record.n_samples / record.fs for record in there)
        if len(leads) * seconds * config.fs > _MAX_STORED:
            raise RecordError(
                f"{path}: {seconds:.0f} s of {len(leads)} leads at {config.fs} Hz; wanted at most {_MAX_STORED} "
                "samples in all: split the record"
            )
        return leads

    def _pair(self, start_W, time_D, key, split):
        """Return (window, draw, horizon bits) of a visit's good windows."""
        if self._cohort.pairing == "all":
            window, draw = np.nonzero(np.ones((len(start_W), len(time_D)), bool))
            return window, draw, np.full(len(window), ALL_HORIZONS, np.uint8)
        config = self._config
        horizons = (config.train_horizon_min,) if split == 0 else tuple(HORIZON_BIT)
        return pair_windows(
            start_W, time_D, key, seed=self._seed, before_only=config.before_only, cap=config.windows_per_draw,
            horizons=horizons,
        )  # fmt: skip

    def _store(self, recording, chosen_W, append):
        """Store the chosen windows of a recording; return their scales, None where it cannot be resampled or read."""
        windows, n_leads = recording.windows, self._config.n_leads
        if not chosen_W.any():
            self._counts["records dropped: no window sampled"] += 1
            return np.empty((0, n_leads), np.float32)
        try:
            signal_WLT, scale_WL = store_leads(windows, chosen_W, fs=self._config.fs, preset=self._config.preset)
        except RecordError as cause:
            self._counts["windows dropped: unreadable"] += int(chosen_W.sum())
            self._drop(recording.path, "unreadable", f"unreadable: {cause}")
            return None
        append(signal_WLT)
        self._counts["records kept"] += 1
        missing = [name for name, record in zip(self._config.leads, windows.records, strict=False) if record is None]
        self._counts["records kept but with zeros for some leads"] += bool(missing)
        for name in missing:
            self._counts[f"records kept but with zeros for lead {name}"] += 1
        return scale_WL
