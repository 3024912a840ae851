"""The recordings that the page shows: their leads, down-sampled blocks, beats and quality; addressed by random ids."""

import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anyecg.kernels.beats import MIN_FS, heart_features, median_beat, r_peaks
from anyecg.kernels.extremes import extremes, halved
from anyecg.kernels.segment import FLAG_NAMES, GAP_FILLED, NO_BEAT, PADDED, fill_gaps, grid, quality_at
from anyecg.loaders.errors import AnyECGError, RecordError, Unsaid
from anyecg.loaders.lead_names import plain_options
from anyecg.loaders.other_formats import kind_of
from anyecg.loaders.records import find_files, open_record
from anyecg.loaders.shard_config import SECONDS

# Columns of a tile; the level (a power of two) from which extremes are kept; samples read at a time.
TILE, KEPT, _BLOCK = 4096, 6, 1 << 20
_MOST_LEADS, _MOST_KEPT_BYTES, _MOST_BEAT_SECONDS = 64, 400 << 20, 3600
_WINDOWS = 180
_MOST_REFUSED = 20
# What a flag means to who looks at an ECG.
_SAID_OF_FLAGS = FLAG_NAMES | {NO_BEAT: "no beat stands out", PADDED: "shorter than 10 s"}


class NotThere(AnyECGError):
    """No record, lead or part of that number."""


def _pyramid(record):
    """Return the extremes of 64, 128, 256 ... samples of a lead, read in one pass and never held whole."""
    step = 1 << KEPT
    parts = [
        extremes(record.read(start, min(start + _BLOCK, record.n_samples)), step)
        for start in range(0, record.n_samples, _BLOCK)
    ]
    levels = [np.concatenate(parts)]
    while len(levels[-1]) > TILE:
        levels.append(halved(levels[-1]))
    return levels


class Place(NamedTuple):
    """Where a recording lies, and what its file does not say: options of ``open_record``."""

    root: Path
    file: str
    options: dict

    def open(self, lead=None):
        """Return one lead."""
        return open_record(self.root / self.file, lead=lead, root=self.root, **self.options)


class _Entry:
    """One recording: its leads are opened when first asked for, by what is said of its folder if it must be."""

    def __init__(self, name, place, shared):
        self.name, self.place, self._shared = name, place, shared
        self._lock = threading.Lock()
        self._leads: dict = {}
        self._problems: dict = {}
        self._names: tuple = ()

    def leads(self):
        """Return the leads that can be read, by number, and what is wrong with the others."""
        with self._lock:
            if not self._names:
                first = self._first()
                for number in range(min(len(first.leads), _MOST_LEADS)):
                    try:
                        lead = self.place.open(number)
                        lead.read(0, min(1, lead.n_samples))
                        self._leads[number] = lead
                    except RecordError as cause:
                        self._problems[number] = str(cause)
                self._names = first.leads
            return self._names, self._leads, self._problems

    def _first(self):
        try:
            return self.place.open()
        except Unsaid:
            options = plain_options(**self._shared(self.place.root))
            if not options or self.place.options:
                raise
            self.place = self.place._replace(options=options)
            return self.place.open()


class Library:
    """All recordings of the page, and the down-sampled leads kept of them: at most 400 MB."""

    def __init__(self):
        self._entries: dict[str, _Entry] = {}
        self._ids: dict = {}
        self._said: dict[Path, dict] = {}
        self._kept: OrderedDict = OrderedDict()
        self._lock = threading.Lock()
        self._building: dict = {}

    def add(self, root):
        """Take in all records below a folder; return their ids, new or known.

        Tables of text that do not say their rate are taken for recordings where there are no others.
        """
        ids = []
        for name, file in (find_files(root) or find_files(root, any_table=True)).items():
            key = (str(root), name)
            if key not in self._ids:
                self._ids[key] = secrets.token_hex(8)
                self._entries[self._ids[key]] = _Entry(name, Place(Path(root), file, {}), self.shared)
            ids.append(self._ids[key])
        return ids

    def listed(self):
        """Return id and name of every record, in the order in which they came."""
        return [{"id": key, "name": entry.name} for key, entry in list(self._entries.items())]

    def place(self, key):
        """Return where a record lies, as a Place."""
        return self._entry(key).place

    def shared(self, root):
        """Return what is said of all files of a folder that do not say it: options of ``open_record``, or none."""
        return self._said.get(Path(root), {})

    def say(self, key, options, *, others=False):
        """Open a record with what its file does not say, from now on; return its description.

        With ``others`` it is said of the other files of its folder, too, those that do not say it themselves.

        Raises
        ------
        RecordError
            It cannot be opened so; nothing is changed.
        """
        entry = self._entry(key)
        fresh = _Entry(entry.name, entry.place._replace(options=options), self.shared)
        fresh.leads()
        with self._lock:
            self._entries[key] = fresh
            if others:
                self._said[entry.place.root] = options
            for number in range(_MOST_LEADS):
                self._kept.pop((key, number), None)
        return self.describe(key)

    def _entry(self, key):
        if key not in self._entries:
            raise NotThere("no such record; open it again")
        return self._entries[key]

    def lead(self, key, number):
        """Return one lead as an open Record.

        Raises
        ------
        NotThere, RecordError
        """
        _, leads, problems = self._entry(key).leads()
        if number not in leads:
            raise NotThere(problems.get(number, f"no lead number {number}"))
        return leads[number]

    def describe(self, key):
        """Return names, rates, lengths of the leads of a record, and why others cannot be shown."""
        names, leads, problems = self._entry(key).leads()
        return {
            "id": key,
            "name": self._entry(key).name,
            "said": self._entry(key).place.options,
            "start": next((lead.start.isoformat() for lead in leads.values() if lead.start), None),
            "seconds": max((lead.n_samples / lead.fs for lead in leads.values()), default=0),
            "leads": [
                {"number": number, "name": names[number], "fs": lead.fs, "n_samples": lead.n_samples}
                for number, lead in leads.items()
            ],
            "problems": [{"name": names[number], "reason": reason} for number, reason in problems.items()],
        }

    def tile(self, key, numbers, level, index):
        """Return tile ``index`` of some leads, one after the other, as the bytes of little-endian float32.

        A tile has 4096 columns of ``2 ** level`` samples: at level 0 the samples in mV, above it the smallest and the
        largest sample of each column. The last tile of a lead is shorter; where a lead has ended, it is empty.
        """
        if not 0 <= level <= 30 or not 0 <= index < 1 << 30 or len(numbers) > _MOST_LEADS:
            raise NotThere("no such part of a record")
        return b"".join(self._tile_of(key, number, level, index).astype("<f4").tobytes() for number in numbers)

    def _tile_of(self, key, number, level, index):
        record = self.lead(key, number)
        first, last = index * TILE, (index + 1) * TILE
        if level < KEPT:
            start, stop = (min(place << level, record.n_samples) for place in (first, last))
            signal = record.read(start, stop)
            return signal if level == 0 else extremes(signal, 1 << level)
        levels = self._levels(key, number, record)
        if level - KEPT < len(levels):
            return levels[level - KEPT][first:last]
        top = levels[-1]
        for _ in range(level - KEPT - len(levels) + 1):
            top = halved(top)
        return top[first:last]

    def _levels(self, key, number, record):
        with self._lock:
            if (key, number) in self._kept:
                self._kept.move_to_end((key, number))
                return self._kept[key, number]
            turn = self._building.setdefault((key, number), threading.Lock())
        with turn:
            with self._lock:
                if (key, number) in self._kept:
                    return self._kept[key, number]
            levels = _pyramid(record)
            with self._lock:
                self._kept[key, number] = levels
                self._building.pop((key, number), None)
                while len(self._kept) > 1 and sum(map(_n_bytes, self._kept.values())) > _MOST_KEPT_BYTES:
                    self._kept.popitem(last=False)
        return levels

    def windows(self, key, number):
        """Return heart rate and quality of each 10-s window of a lead.

        Returns
        -------
        dict
            ``seconds`` of a window, ``rate`` (1/min, None where there are no beats to be told apart), ``flags``
            (number) of each window, and ``names`` of the flags.
        """
        record = self.lead(key, number)
        start_W = grid(record.n_samples, fs=record.fs, seconds=SECONDS)
        n_in = int(SECONDS * record.fs)
        if not len(start_W):
            start_W, n_in = np.zeros(1, np.int64), record.n_samples
        flags, rates = [], []
        for first in range(0, len(start_W), _WINDOWS):
            start_B = start_W[first : first + _WINDOWS]
            begin = int(start_B[0])
            signal, filled = fill_gaps(record.read(begin, int(start_B[-1]) + n_in), fs=record.fs)
            start_B = start_B - begin
            flag_B = quality_at(signal, start_B, n_in, fs=record.fs)
            flag_B[np.searchsorted(filled, start_B) < np.searchsorted(filled, start_B + n_in)] |= GAP_FILLED
            flag_B |= np.uint8(PADDED if n_in < SECONDS * record.fs - 1 else 0)
            flags.append(flag_B)
            rates.append(_rates(signal, start_B, n_in, record.fs))
        rate_W = np.concatenate(rates)
        return {
            "seconds": SECONDS,
            "rate": [None if np.isnan(rate) else round(float(rate), 1) for rate in rate_W],
            "flags": np.concatenate(flags).tolist(),
            "names": {str(flag): name for flag, name in _SAID_OF_FLAGS.items()},
        }

    def beats(self, key, number, start, stop):
        """Return the samples of R peaks of a lead between two samples, at most an hour apart: a list a stretch."""
        record, signal = self._part(key, number, start, stop)
        return [(start + r_M).tolist() for r_M in _beats(signal, record.fs) if len(r_M)]

    def median(self, key, number, start, stop):
        """Return the median beat of all leads of one rate, its beats found in one lead.

        Returns
        -------
        dict
            ``fs``, ``before`` (samples before the R peak), ``n_beats``, and ``leads``: name and mV of each.
        """
        record, signal = self._part(key, number, start, stop)
        r_M = np.concatenate([*_beats(signal, record.fs), np.empty(0, np.int64)])
        names, leads, _ = self._entry(key).leads()
        found = []
        for other, lead in leads.items():
            if lead.fs == record.fs and stop <= lead.n_samples:
                beat_T, before, n_beats = median_beat(lead.read(start, stop), r_M, lead.fs)
                if n_beats:
                    found.append({"name": names[other], "number": other, "n_beats": n_beats, "mv": _plain(beat_T)})
        return {"fs": record.fs, "before": before if found else 0, "leads": found}

    def _part(self, key, number, start, stop):
        record = self.lead(key, number)
        if not 0 <= start < stop <= record.n_samples or stop - start > _MOST_BEAT_SECONDS * record.fs:
            raise NotThere(f"samples {start} to {stop} asked for; wanted at most an hour within {record.n_samples}")
        return record, record.read(start, stop)


def _n_bytes(levels):
    return sum(level.nbytes for level in levels)


def _plain(values):
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def _rates(signal, start_W, n_in, fs):
    if not MIN_FS <= fs < 100_000:
        return np.full(len(start_W), np.nan)
    return heart_features(np.stack([signal[start : start + n_in] for start in start_W]), fs)[:, 0]


def _beats(signal, fs):
    """Return the R peaks of each stretch of a signal between two long gaps, by itself."""
    if not MIN_FS <= fs < 100_000:
        raise RecordError(f"beats need at least {MIN_FS} Hz; found {fs:g} Hz")
    signal, _ = fill_gaps(signal, fs=fs)
    edges = np.flatnonzero(np.diff(np.isfinite(signal), prepend=False, append=False))
    return [first + r_peaks(signal[first:last], fs) for first, last in edges.reshape(-1, 2)]


def refused(folder):
    """Return why the files of a folder are no recordings, a line each, at most 20."""
    lines = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        try:
            kind = kind_of(path, path.name)
            lines.append(f"{path.name}: {kind}, but no recording by itself")
        except RecordError as cause:
            lines.append(str(cause).partition("; wanted")[0])
        if len(lines) == _MOST_REFUSED:
            break
    return lines
