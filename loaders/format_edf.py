"""EDF and EDF+, continuous and with gaps: the header is parsed here, samples are read by offset.

Kemp et al. 1992 (EDF) and Kemp, Olivan 2003 (EDF+). A Holter of days is opened by its header alone.
"""

import hashlib
import os
import re
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from anyecg.loaders.errors import RecordError
from anyecg.loaders.formats import texts, unique, unit_factor
from anyecg.loaders.lead_names import lead_name
from anyecg.loaders.wfdb_header import MAX_HEADER_BYTES, MAX_LEADS, MAX_SAMPLES, open_found

ANNOTATIONS = "EDF Annotations"
_WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
_ONSET = re.compile(rb"([+-]\d{1,12}(?:\.\d{1,12})?)(?:\x15[^\x14]*)?\x14\x14")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_BLOCK_BYTES = 4 << 20
_MOST_BLOCKS = 10_000_000


class EdfLead(NamedTuple):
    """One signal as the header describes it; mV = (count - digital_min) x gain + physical_min, x mV per unit."""

    name: str
    unit: str
    gain: float
    offset: float
    width: int
    place: int


class Edf:
    """An EDF file: its header, and the samples of a lead in a range.

    Attributes
    ----------
    form, about, patient, notes, start, digest
        As in ``anyecg.loaders.formats.Recording``.
    leads : list of EdfLead
        All signals but the annotations.
    n_blocks, seconds : int, float
        Data records of the file, and how long each is.
    """

    def __init__(self, path, n_bytes, name):
        self._path, self._n_bytes, self._name = path, n_bytes, name
        head = self._pread(0, 256)
        n_head, n_signals = self._whole(head[184:192], "header's length"), self._whole(head[252:256], "signals")
        if not 1 <= n_signals <= 4 * MAX_LEADS or n_head != 256 * (n_signals + 1) or n_head > MAX_HEADER_BYTES:
            raise RecordError(f"{name}: {n_signals} signals in a header of {n_head} bytes; wanted EDF of 1 to "
                              f"{MAX_LEADS} leads")  # fmt: skip
        rest = self._pread(256, n_head - 256)
        self.digest = hashlib.blake2b(head + rest + str(n_bytes).encode(), digest_size=8).hexdigest()
        self._first, kind = n_head, _text(head[192:236])
        self.seconds = self._number(head[244:252], "duration of a data record")
        self._signals(rest, n_signals)
        self._count(self._whole(head[236:244], "number of data records"))
        self.form = "EDF+" if kind.startswith("EDF+") else "EDF"
        self._starts = self._gaps() if kind.startswith("EDF+D") else None
        self.patient = texts(self._patient(_text(head[8:88]), self.form))
        self.about = texts({"recording": None if self.form == "EDF+" else _text(head[88:168]),
                            "device": _device(_text(head[88:168]), self.form)})  # fmt: skip
        self.start = self._start(_text(head[88:168]), _text(head[168:176]), _text(head[176:184]))

    def _pread(self, offset, n_bytes):
        descriptor = open_found(self._path, self._name)
        try:
            data = os.pread(descriptor, n_bytes, offset)
        except OSError as cause:
            raise RecordError(f"{self._name}: {cause.strerror}") from None
        finally:
            os.close(descriptor)
        if len(data) < n_bytes:
            raise RecordError(f"{self._name}: cut short: {len(data)} of {n_bytes} bytes at {offset}; fetch it again")
        return data

    def _number(self, field, what, kind=float):
        text = _text(field)
        try:
            value = kind(text)
        except ValueError:
            raise RecordError(f"{self._name}: {what} is {text!r}; wanted a number") from None
        if not abs(value) < 1e12:
            raise RecordError(f"{self._name}: {what} is {text!r}; wanted a finite number")
        return value

    def _whole(self, field, what):
        return self._number(field, what, int)

    def _signals(self, rest, n_signals):
        """Read the lines of the signals, each field of all signals after the other."""
        columns, place = [], 0
        for width in _WIDTHS:
            columns.append([rest[place + width * n : place + width * (n + 1)] for n in range(n_signals)])
            place += width * n_signals
        self.leads, self._marks, self._width, self.notes = [], [], 0, []
        for label, _, unit, low, high, least, most, _, width, _ in zip(*columns, strict=True):
            name, n_each = _text(label), self._whole(width, "samples a data record")
            if n_each < 1:
                raise RecordError(f"{self._name}: {name!r} has {n_each} samples a data record; wanted 1 or more")
            if name == ANNOTATIONS:
                self._marks.append((self._width, n_each))
            else:
                physical = [self._number(field, f"range of {name!r}") for field in (low, high)]
                digital = [self._number(field, f"range of {name!r}") for field in (least, most)]
                # Without two ends there is no gain: such a lead is listed, and refused when it is read.
                has_ends = digital[0] != digital[1] and physical[0] != physical[1]
                gain = (physical[1] - physical[0]) / (digital[1] - digital[0]) if has_ends else 0.0
                offset = physical[0] - digital[0] * gain
                # A symmetric range has none; what is left is rounding.
                offset = offset if abs(offset) > 1e-9 * abs(gain) else 0.0
                self.leads.append(EdfLead(lead_name(name), _text(unit), gain, offset, n_each, self._width))
            self._width += n_each
        if not 1 <= len(self.leads) <= MAX_LEADS:
            raise RecordError(f"{self._name}: {len(self.leads)} leads; wanted 1 to {MAX_LEADS}")
        names = unique([lead.name for lead in self.leads])
        self.leads = [lead._replace(name=name) for lead, name in zip(self.leads, names, strict=True)]

    def _count(self, announced):
        """Take the number of data records; -1 means that the recording was not ended, and the file's size decides."""
        there = (self._n_bytes - self._first) // (2 * self._width)
        self.n_blocks = there if announced == -1 else announced
        if not self.seconds > 0:
            raise RecordError(f"{self._name}: data records of {self.seconds:g} s; wanted more than 0")
        longest = max(lead.width for lead in self.leads)
        if not 1 <= self.n_blocks <= _MOST_BLOCKS or self.n_blocks * longest > MAX_SAMPLES:
            raise RecordError(f"{self._name}: {self.n_blocks} data records; wanted 1 or more, at most 1e9 samples")
        if there < self.n_blocks:
            raise RecordError(
                f"{self._name}: cut short: {there} of {self.n_blocks} data records are there; fetch it again"
            )
        if there > self.n_blocks:
            self.notes.append(f"{there - self.n_blocks} data records more than announced, not read")

    def _onsets(self, blocks):
        """Return where data records begin, in s, by their first annotation."""
        if not self._marks:
            raise RecordError(f"{self._name}: EDF+ without annotations; wanted them to say where data records begin")
        place, n_each = self._marks[0]
        out = []
        for block in blocks:
            mark = _ONSET.match(self._pread(self._first + 2 * (block * self._width + place), 2 * n_each))
            if mark is None:
                raise RecordError(f"{self._name}: data record {block} does not say when it begins; wanted +SECONDS")
            out.append(float(mark[1]))
        return out

    def _gaps(self):
        """Return the first sample of each data record, in units of its own length, where the file has gaps."""
        if self.n_blocks > 100_000:
            raise RecordError(f"{self._name}: {self.n_blocks} data records with gaps; wanted at most 100000")
        starts = np.array(self._onsets(range(self.n_blocks))) / self.seconds
        starts -= starts[0]
        if (np.diff(starts) < 1 - 1e-6).any():
            raise RecordError(f"{self._name}: a data record begins before the one before it ends")
        if (starts[-1] + 1) * max(lead.width for lead in self.leads) > MAX_SAMPLES:
            raise RecordError(f"{self._name}: gaps of {starts[-1] * self.seconds:g} s; wanted at most 1e9 samples")
        if (np.diff(starts) > 1 + 1e-6).any():
            self.notes.append("has gaps: NaN between its parts")
        return starts

    def _start(self, recording, day, clock):
        """Return the start: the date of EDF+ has four digits for the year; then the fraction of the first onset."""
        found = re.fullmatch(r"(\d\d)[.:/-](\d\d)[.:/-](\d\d)", day)
        time = re.fullmatch(r"(\d\d)[.:](\d\d)[.:](\d\d)", clock)
        if found is None or time is None:
            return None
        days, months, years = map(int, found.groups())
        years += 1900 if years >= 85 else 2000
        if self.form == "EDF+" and re.match(r"[Ss]tartdate X( |$)", recording):
            return None
        full = re.match(r"Startdate (\d\d)-([A-Z]{3})-(\d{4})", recording.replace("startdate", "Startdate"))
        if full and self.form == "EDF+" and full[2] in _MONTHS:
            days, months, years = int(full[1]), _MONTHS.index(full[2]) + 1, int(full[3])
        try:
            hour, minute, second = map(int, time.groups())
            moment = datetime(years, months, days, hour, minute, second, tzinfo=UTC)
            return moment + timedelta(seconds=self._onsets([0])[0] if self._marks else 0.0)
        except (ValueError, OverflowError, RecordError):
            return None

    @staticmethod
    def _patient(text, form):
        fields = text.split()
        if form == "EDF" or len(fields) < 4:
            return {"patient": text.strip("X ")}
        code, sex, birth, name, *more = (field if field != "X" else "" for field in fields)
        return {"patient_id": code, "sex": sex, "birth_date": birth, "name": name.replace("_", " "),
                "more": " ".join(more)}  # fmt: skip

    def n_samples(self, position):
        """Return the length of a lead, gaps included."""
        width = self.leads[position].width
        return width * self.n_blocks if self._starts is None else round((self._starts[-1] + 1) * width)

    def fs(self, position):
        """Return the sampling rate of a lead in Hz."""
        fs = self.leads[position].width / self.seconds
        return round(fs) if abs(fs - round(fs)) < 1e-9 * fs else fs

    def read(self, position, start, stop):
        """Return float32 mV of a lead, shape (stop - start,), NaN in gaps."""
        lead = self.leads[position]
        factor = unit_factor(lead.unit)
        if factor is None:
            raise RecordError(f"{self._name}: lead {lead.name!r} is in {lead.unit!r}; wanted a voltage (mV, uV, nV, V)")
        if not lead.gain:
            raise RecordError(f"{self._name}: lead {lead.name!r} has a range without two ends; wanted two")
        out = np.full(stop - start, np.nan, np.float32)
        if start == stop:
            return out
        block, last = self._block_at(start, lead), self._block_at(stop - 1, lead) + 1
        n_at_once = max(1, _BLOCK_BYTES // (2 * self._width))
        for first in range(block, last, n_at_once):
            n_blocks = min(n_at_once, last - first)
            data = self._pread(self._first + 2 * first * self._width, 2 * n_blocks * self._width)
            count_BT = np.frombuffer(data, "<i2").reshape(n_blocks, self._width)[:, lead.place :][:, : lead.width]
            mv_BT = ((count_BT * lead.gain + lead.offset) * factor).astype(np.float32)
            for number, begin in self._places(first, n_blocks, lead):
                mv_T = mv_BT.reshape(-1) if self._starts is None else mv_BT[number]
                here = slice(max(start, begin), min(stop, begin + len(mv_T)))
                if here.start < here.stop:
                    out[here.start - start : here.stop - start] = mv_T[here.start - begin : here.stop - begin]
        return out

    def _block_at(self, sample, lead):
        if self._starts is None:
            return sample // lead.width
        return max(0, bisect_right(self._starts, (sample + 0.5) / lead.width) - 1)

    def _places(self, first, n_blocks, lead):
        """Return (number, first sample) of the runs of data records that lie together."""
        if self._starts is None:
            return [(0, first * lead.width)]
        return [(n, round(self._starts[first + n] * lead.width)) for n in range(n_blocks)]


def _text(field):
    """Return a field as text: ASCII by the standard, but units are found in UTF-8 and in Latin-1."""
    try:
        text = field.decode()
    except UnicodeDecodeError:
        text = field.decode("latin-1")
    return text.strip().strip("\0").strip()


def _device(text, form):
    """Return the equipment of an EDF+ recording: its fifth field."""
    fields = text.split()
    return fields[4].replace("_", " ").strip("X") if form == "EDF+" and len(fields) > 4 else None
