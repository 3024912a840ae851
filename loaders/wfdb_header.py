"""Parse one WFDB header, once and under limits; find the files it names below a root. Applications Guide, header(5)."""

import os
import re
import stat
from datetime import UTC, datetime
from typing import NamedTuple

from anyecg.loaders.errors import RecordError

MAX_HEADER_BYTES = 1_000_000
MAX_LEADS = 64
MAX_SAMPLES = 1_000_000_000
MAX_SEGMENTS = 100_000
MAX_FRAME = 1_000_000
NULL_SEGMENT = "~"
_FORMAT = re.compile(r"(\d{1,9})(?:x(\d{1,9}))?(?::(\d{1,9}))?(?:\+(\d{1,12}))?", re.ASCII)
_GAIN = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)(?:\(([-+]?\d+)\))?(?:/(\S+))?", re.ASCII)

_TIME = re.compile(r"(?:(?:(\d{1,2}):)?(\d{1,2}):)?(\d{1,2})(?:\.(\d{1,9}))?", re.ASCII)
_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{1,4})", re.ASCII)


class Signal(NamedTuple):
    """One lead as its header line describes it; ``checksum`` is None where none is given."""

    lead: str
    file: str
    form: str
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float
    baseline: int
    unit: str
    initial: int
    checksum: int | None


class Header(NamedTuple):
    """One header: of signals, or of segments (name and frames of each; the first of a variable layout has none)."""

    name: str
    folder: str
    fs: float
    n_frames: int | None
    start: datetime | None
    n_leads: int
    signals: tuple[Signal, ...]
    segments: tuple[tuple[str, int], ...]
    lines: list[str]


def inside(root, folder, name, record):
    """Find a file that a header names; it is not opened.

    Returns
    -------
    (str, int)
        Its path, no link, and its size in bytes, -1 where there is none.

    Raises
    ------
    RecordError
        The name is absolute or a URL, leaves ``root``, through links too, or is no regular file.
    """
    if name.startswith("/") or ":" in name or "\0" in name:
        raise RecordError(f"{record}: names {name[:80]!r}; wanted a file below its root, no URL and no absolute path")
    path = f"{folder}/{name}"
    status = _status(path)
    # A plain name that is no link lies in its folder, which lies below the root.
    if "/" in name or name in ("", ".", "..") or (status and stat.S_ISLNK(status.st_mode)):
        path = os.path.realpath(path)
        if not is_below(path, os.path.realpath(root)):
            raise RecordError(f"{record}: names {name[:80]!r}, a file outside its root; keep a record's files below it")
        status = _status(path)
    if status and not stat.S_ISREG(status.st_mode):
        raise RecordError(f"{record}: {name[:80]!r} is no regular file")
    return path, status.st_size if status else -1


def is_below(path, root):
    """Say whether a real path is a real folder or lies below it."""
    return f"{path}/".startswith(root.rstrip("/") + "/")


def _status(path):
    try:
        return os.lstat(path)
    except OSError:
        return None


def open_found(path, record):
    """Return a descriptor of what ``inside`` found; a link or pipe put there since is not followed or waited for."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as cause:
        raise RecordError(f"{record}: {path.rpartition('/')[2]}: {cause.strerror}") from None


def read_header(root, folder, file, record):
    """Parse the header ``file`` of a folder, once.

    Raises
    ------
    RecordError
        Not a header, or one beyond the limits: 1 MB, 64 leads, 100,000 segments, 1e9 samples a lead.
    """
    path, n_bytes = inside(root, folder, file, record)
    lines = _lines(path, n_bytes, record)
    # The files of a record lie beside its header, also where the header is a link.
    if "/" in file:
        folder = os.path.realpath(f"{folder}/{file.rpartition('/')[0]}")
        if not is_below(folder, os.path.realpath(root)):
            raise RecordError(f"{record}: lies in a folder outside its root; keep a record's files below it")
    fields = lines[0].split()
    _, _, n_segments = fields[0].partition("/")
    n_leads = _whole(fields[1], "number of leads", record) if len(fields) > 1 else 0
    if not 1 <= n_leads <= MAX_LEADS:
        raise RecordError(f"{record}: {n_leads} leads announced; wanted 1 to {MAX_LEADS}")
    fs = _number(fields[2].split("/")[0].split("(")[0], "sampling rate", record) if len(fields) > 2 else 250.0
    if not 0 < fs < 1e6:
        raise RecordError(f"{record}: sampling rate {fs} Hz; wanted more than 0")
    n_frames = _whole(fields[3], "number of samples", record) if len(fields) > 3 else 0
    if not 0 <= n_frames <= MAX_SAMPLES:
        raise RecordError(f"{record}: {n_frames} samples announced; wanted 1 to {MAX_SAMPLES}")
    signals: tuple[Signal, ...] = ()
    segments: tuple[tuple[str, int], ...] = ()
    if "/" in fields[0]:
        segments = _segments(lines, _whole(n_segments, "number of segments", record), n_frames, record)
        n_frames = sum(length for _, length in segments)
    elif len(lines) < 1 + n_leads:
        raise RecordError(f"{record}: {n_leads} leads announced, {len(lines) - 1} described")
    else:
        signals = tuple(_signal(line, record) for line in lines[1 : 1 + n_leads])
    return Header(record, folder, fs, n_frames or None, _start(fields, record), n_leads, signals, segments, lines)


def _lines(path, n_bytes, record):
    descriptor = open_found(path, record)
    try:
        data = os.pread(descriptor, min(max(n_bytes, 0), MAX_HEADER_BYTES) + 1, 0)
    except OSError as cause:
        raise RecordError(f"{record}: {path.rpartition('/')[2]}: {cause.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > MAX_HEADER_BYTES:
        raise RecordError(f"{record}: header over {MAX_HEADER_BYTES} bytes; wanted a WFDB header")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not lines:
        raise RecordError(f"{record}: the header is empty; wanted a WFDB header")
    return lines


def _number(text, what, record, kind=float):
    try:
        value = kind(text)
    except ValueError:
        raise RecordError(f"{record}: {what} is {text[:40]!r}; wanted a number") from None
    if not abs(value) < 1e12:
        raise RecordError(f"{record}: {what} is {text[:40]!r}; wanted a finite number")
    return value


def _whole(text, what, record):
    return _number(text, what, record, int)


def _start(fields, record):
    """Return the start as datetime, or None without base date and time; a time may be SS, MM:SS or HH:MM:SS."""
    if len(fields) < 6:
        return None
    time, date = _TIME.fullmatch(fields[4]), _DATE.fullmatch(fields[5])
    try:
        if time is None or date is None:
            raise ValueError
        hour, minute, second, fraction = time.groups("0")
        day, month, year = map(int, date.groups())
        microsecond = int(fraction[:6].ljust(6, "0"))
        return datetime(year, month, day, int(hour), int(minute), int(second), microsecond, UTC)
    except ValueError:
        wanted = "wanted HH:MM:SS DD/MM/YYYY"
        raise RecordError(f"{record}: base time {fields[4][:40]!r} {fields[5][:40]!r}; {wanted}") from None


def _signal(line, record):
    fields = line.split(maxsplit=8)
    form = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if form is None:
        raise RecordError(f"{record}: signal line {line[:80]!r}; wanted 'file format gain ...'")
    gain, baseline, unit = 200.0, None, "mV"
    if len(fields) > 2:
        match = _GAIN.fullmatch(fields[2])
        if match is None:
            raise RecordError(f"{record}: gain {fields[2][:40]!r}; wanted 'gain(baseline)/unit'")
        gain = _number(match[1], "gain", record) or 200.0
        baseline = None if match[2] is None else _whole(match[2], "baseline", record)
        unit = match[3] or "mV"
    zero = _whole(fields[4], "ADC zero", record) if len(fields) > 4 else 0
    return Signal(
        lead=fields[8].strip() if len(fields) > 8 else "",
        file=fields[0],
        form=form[1],
        samples_per_frame=int(form[2] or 1) or 1,
        skew=int(form[3] or 0),
        byte_offset=int(form[4] or 0),
        gain=gain,
        baseline=zero if baseline is None else baseline,
        unit=unit,
        initial=_whole(fields[5], "initial value", record) if len(fields) > 5 else zero,
        checksum=_whole(fields[6], "checksum", record) if len(fields) > 6 else None,
    )


def _segments(lines, n_segments, n_frames, record):
    """Return (name, frames) of each segment; refuse a record that names itself."""
    if not 1 <= n_segments <= MAX_SEGMENTS or len(lines) < 1 + n_segments:
        raise RecordError(
            f"{record}: {n_segments} segments announced, {len(lines) - 1} described; wanted 1 to {MAX_SEGMENTS}"
        )
    found = []
    for line in lines[1 : 1 + n_segments]:
        fields = line.split()
        length = _whole(fields[1], "length of a segment", record) if len(fields) > 1 else -1
        if length < 0:
            raise RecordError(f"{record}: segment line {line[:80]!r}; wanted 'name samples'")
        if fields[0] == record:
            raise RecordError(f"{record}: names itself as a segment")
        found.append((fields[0], length))
    total = sum(length for _, length in found)
    if not 0 < total <= MAX_SAMPLES:
        raise RecordError(f"{record}: {total} samples in its segments; wanted 1 to {MAX_SAMPLES}")
    if n_frames and total != n_frames:
        raise RecordError(f"{record}: {n_frames} samples announced, {total} in its segments")
    return tuple(found)
