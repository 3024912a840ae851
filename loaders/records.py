"""Open one recording: WFDB headers parsed under limits, physical float32 in mV, typed errors."""

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from anyecg.loaders.errors import RecordError

MAX_HEADER_BYTES = 1_000_000
MAX_LEADS = 64
MAX_SAMPLES = 1_000_000_000
_MV_PER_UNIT = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "v": 1e3}
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\(([-+]?\d+)\))?(?:/(\S+))?")
_INVALID = {"16": -32768, "212": -2048}


@dataclass(frozen=True)
class _Signal:
    """One lead as its header line describes it."""

    lead: str
    path: Path
    form: str
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float
    baseline: int
    unit: str


def _inside(root, path, record):
    """Return ``path`` resolved; refuse one that leaves ``root``, through links too."""
    try:
        resolved = path.resolve()
    except (ValueError, OSError, RuntimeError) as cause:
        raise RecordError(f"{record}: names a file that cannot be ({cause}); wanted a file below its root") from None
    if not resolved.is_relative_to(root):
        raise RecordError(f"{record}: names a file outside {root.name}/; keep the files of a record below its root")
    return resolved


def _start(fields, record):
    """Return the start as datetime, or None without base date and time."""
    if len(fields) < 6:
        return None
    for form in ("%d/%m/%Y %H:%M:%S.%f", "%d/%m/%Y %H:%M:%S"):
        try:
            return datetime.strptime(f"{fields[5]} {fields[4]}", form).replace(tzinfo=UTC)
        except ValueError:
            continue
    raise RecordError(f"{record}: base time {fields[4]!r} {fields[5]!r}; wanted HH:MM:SS DD/MM/YYYY")


def _number(text, kind, what, record):
    try:
        value = kind(text)
    except ValueError:
        raise RecordError(f"{record}: {what} is {text!r}; wanted a number") from None
    if not abs(value) < 1e12:
        raise RecordError(f"{record}: {what} is {text!r}; wanted a finite number")
    return value


def _signal(line, header, root, record):
    fields = line.split(maxsplit=8)
    form = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if form is None:
        raise RecordError(f"{record}: signal line {line[:80]!r}; wanted 'file format gain ...'")
    gain, baseline, unit = 200.0, None, "mV"
    if len(fields) > 2:
        match = _GAIN.fullmatch(fields[2])
        if match is None:
            raise RecordError(f"{record}: gain {fields[2][:40]!r}; wanted 'gain(baseline)/unit'")
        gain = _number(match[1], float, "gain", record) or 200.0
        baseline = None if match[2] is None else _number(match[2], int, "baseline", record)
        unit = match[3] or "mV"
    zero = _number(fields[4], int, "ADC zero", record) if len(fields) > 4 else 0
    return _Signal(
        lead=fields[8].strip() if len(fields) > 8 else "",
        path=_inside(root, header.parent / fields[0], record),
        form=form[1],
        samples_per_frame=int(form[2] or 1),
        skew=int(form[3] or 0),
        byte_offset=int(form[4] or 0),
        gain=gain,
        baseline=zero if baseline is None else baseline,
        unit=unit,
    )


class Record:
    """One lead of one recording; nothing is read before ``read``.

    Attributes
    ----------
    fs : float
        Sampling rate of this lead in Hz.
    n_samples : int
        Length of this lead.
    leads : tuple of str
        Names of all leads of the recording.
    start : datetime or None
        Base date and time of the header, None without one.
    digest : str
        Hash of the header and of the signal file's size; another recording under the same name has another.
    """

    def __init__(self, name, fs, n_samples, leads, start, read_raw, digest=""):
        self.name, self.fs, self.n_samples, self.leads, self.start = name, fs, n_samples, leads, start
        self.digest = digest
        self._read_raw = read_raw

    def read(self, start=0, stop=None):
        """Return float32 mV, shape (stop - start,), NaN where the recording marks a sample invalid.

        Raises
        ------
        RecordError
            The range lies outside the record, or the signal file is shorter than the header says.
        """
        stop = self.n_samples if stop is None else stop
        if not 0 <= start <= stop <= self.n_samples:
            raise RecordError(f"{self.name}: samples {start} to {stop} asked for; it holds {self.n_samples}")
        return self._read_raw(start, stop)


def _to_mv(counts, signal, invalid, record):
    factor = _MV_PER_UNIT.get(signal.unit.lower())
    if factor is None:
        raise RecordError(f"{record}: lead {signal.lead!r} is in {signal.unit!r}; wanted a voltage (mV, uV or V)")
    mv = ((counts - np.float64(signal.baseline)) * (factor / signal.gain)).astype(np.float32)
    mv[counts == invalid] = np.nan
    return mv


def _read_bytes(path, offset, n_bytes, record):
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(n_bytes)
    except OSError as cause:
        raise RecordError(f"{record}: {path.name}: {cause.strerror}") from None
    if len(data) < n_bytes:
        raise RecordError(f"{record}: {path.name} is cut short; found {len(data)} of {n_bytes} bytes from {offset}")
    return data


def _reader_16(signal, position, n_interleaved, record):
    """Read 16-bit little-endian counts, the signals of one file interleaved sample by sample."""

    def read(start, stop):
        offset = signal.byte_offset + 2 * n_interleaved * start
        data = _read_bytes(signal.path, offset, 2 * n_interleaved * (stop - start), record)
        counts = np.frombuffer(data, "<i2").reshape(-1, n_interleaved)[:, position]
        return _to_mv(counts, signal, _INVALID["16"], record)

    return read


def _reader_212(signal, position, n_interleaved, record):
    """Read pairs of 12-bit counts packed into three bytes."""

    def read(start, stop):
        first, last = start * n_interleaved, stop * n_interleaved
        pair, end = first // 2, (last + 1) // 2
        # An odd total leaves out the last byte of the last pair.
        n_bytes = 3 * (end - pair) - (last % 2)
        data = _read_bytes(signal.path, signal.byte_offset + 3 * pair, n_bytes, record) + b"\0" * (last % 2)
        packed = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int16)
        counts = np.empty(2 * len(packed), np.int16)
        counts[0::2] = packed[:, 0] | (packed[:, 1] & 0x0F) << 8
        counts[1::2] = packed[:, 2] | (packed[:, 1] & 0xF0) << 4
        counts -= (counts & 0x800) << 1
        counts = counts[first - 2 * pair :][: last - first].reshape(-1, n_interleaved)[:, position]
        return _to_mv(counts, signal, _INVALID["212"], record)

    return read


def _reader_wfdb(header, position, signal, n_samples, record):
    """Read every other format and layout through wfdb."""

    def read(start, stop):
        import wfdb

        try:
            found = wfdb.rdrecord(str(header.with_suffix("")), channels=[position], smooth_frames=False)
            mv = found.e_p_signal[0][start:stop]
        except Exception as cause:  # wfdb raises untyped errors of many kinds on damaged files
            raise RecordError(f"{record}: wfdb cannot read it ({type(cause).__name__}: {cause})") from None
        factor = _MV_PER_UNIT.get(signal.unit.lower())
        if factor is None:
            raise RecordError(f"{record}: lead {signal.lead!r} is in {signal.unit!r}; wanted a voltage (mV, uV or V)")
        return (mv * factor).astype(np.float32)

    return read


def _header_lines(header, record):
    try:
        with header.open("rb") as file:
            data = file.read(MAX_HEADER_BYTES + 1)
    except OSError as cause:
        raise RecordError(f"{record}: {header.name}: {cause.strerror}") from None
    if len(data) > MAX_HEADER_BYTES:
        raise RecordError(f"{record}: header over {MAX_HEADER_BYTES} bytes; wanted a WFDB header")
    lines = data.decode("utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def open_record(path, *, lead=None, root=None):
    """Open one lead of a WFDB recording.

    Parameters
    ----------
    path : path
        The record, with or without ``.hea``.
    lead : str or int, optional
        Name or position of the lead; None is the first.
    root : path, optional
        Folder that no file of the record may leave, through links either; by default the record's own folder.

    Returns
    -------
    Record

    Raises
    ------
    RecordError
        No such record, a header beyond the limits (64 leads, 1e9 samples, 1 MB), a file outside the root, or a lead
        that is missing.

    Notes
    -----
    Single-segment records of formats 16 (also 16+offset) and 212 are read by offset; other formats through wfdb.
    WFDB Applications Guide, header(5) and signal(5).
    """
    header = Path(path)
    header = header if header.suffix == ".hea" else header.with_name(header.name + ".hea")
    root = Path(root if root is not None else header.parent).resolve()
    record = header.name.removesuffix(".hea")
    header = _inside(root, header, record)
    lines = _header_lines(header, record)
    if not lines:
        raise RecordError(f"{record}: the header is empty; wanted a WFDB header")
    fields = lines[0].split()
    if len(fields) < 2 or "/" in fields[0]:
        raise RecordError(f"{record}: record line {lines[0][:80]!r}; single-segment records only for now")
    n_leads = _number(fields[1], int, "number of leads", record)
    if not 1 <= n_leads <= MAX_LEADS or len(lines) < 1 + n_leads:
        raise RecordError(f"{record}: {n_leads} leads announced, {len(lines) - 1} described; wanted 1 to {MAX_LEADS}")
    fs = _number(fields[2].split("/")[0].split("(")[0], float, "sampling rate", record) if len(fields) > 2 else 250.0
    if not 0 < fs < 1e6:
        raise RecordError(f"{record}: sampling rate {fs} Hz; wanted more than 0")
    signals = [_signal(line, header, root, record) for line in lines[1 : 1 + n_leads]]
    leads = tuple(signal.lead for signal in signals)
    position = 0 if lead is None else lead
    if isinstance(position, str):
        if position not in leads:
            raise RecordError(f"{record}: lead {position!r} is missing; found {', '.join(leads)}")
        position = leads.index(position)
    if not 0 <= position < n_leads:
        raise RecordError(f"{record}: lead number {position} asked for; found {n_leads} leads")
    signal = signals[position]
    together = [other for other in signals if other.path == signal.path]
    n_frames = _number(fields[3], int, "number of samples", record) if len(fields) > 3 else 0
    if not n_frames:
        raise RecordError(f"{record}: the header gives no length; add the number of samples to its first line")
    if not 0 < n_frames * signal.samples_per_frame <= MAX_SAMPLES:
        raise RecordError(f"{record}: {n_frames} samples announced; wanted 1 to {MAX_SAMPLES}")
    plain = all(s.samples_per_frame == 1 and s.skew == 0 and s.form == signal.form for s in together)
    place = [i for i, other in enumerate(signals) if other.path == signal.path].index(position)
    if plain and signal.form == "16":
        reader = _reader_16(signal, place, len(together), record)
    elif plain and signal.form == "212":
        reader = _reader_212(signal, place, len(together), record)
    else:
        reader = _reader_wfdb(header, position, signal, n_frames, record)
    return Record(
        record, fs * signal.samples_per_frame, n_frames * signal.samples_per_frame, leads, _start(fields, record),
        reader, _digest(lines, signal.path),
    )  # fmt: skip


def _digest(lines, path):
    try:
        size = path.stat().st_size
    except OSError:
        size = -1
    return hashlib.blake2b("\n".join([*lines, str(size)]).encode(), digest_size=8).hexdigest()


def find_records(folder):
    """Return the paths of all records below a folder, relative to it and without suffix, in sorted order."""
    found = []
    for where, _, names in os.walk(folder):
        found += [str((Path(where) / name).relative_to(folder))[:-4] for name in names if name.endswith(".hea")]
    return sorted(found)
