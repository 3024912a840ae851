"""Open one recording of any format as one lead in float32 mV, bounded, with typed errors."""

import bisect
import hashlib
import itertools
import os
from collections import Counter
from typing import NamedTuple

import numpy as np

from anyecg.loaders.errors import RecordError
from anyecg.loaders.formats import Options
from anyecg.loaders.lead_names import find_lead, lead_name, position_of
from anyecg.loaders.other_formats import Opened, kind_of, open_other, other_names
from anyecg.loaders.wfdb_header import NULL_SEGMENT, inside, is_below, read_header
from anyecg.loaders.wfdb_samples import Lead, mv_per_unit


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
        Hash of the header and of the signal file's size (of several segments: of the headers that give lengths and
        leads); another recording under the same name has another.
    """

    def __init__(self, name, fs, n_samples, leads, start, read_raw, digest=""):
        self.name, self.fs, self.n_samples, self.leads, self.start = name, fs, n_samples, leads, start
        self.digest = digest
        self._read_raw = read_raw

    def read(self, start=0, stop=None):
        """Return float32 mV, shape (stop - start,), NaN where the recording holds no valid sample.

        Raises
        ------
        RecordError
            The range lies outside the record, the signal file is shorter than the header says, or a lead read whole
            has another checksum than its header gives.
        """
        stop = self.n_samples if stop is None else stop
        if not 0 <= start <= stop <= self.n_samples:
            raise RecordError(f"{self.name}: samples {start} to {stop} asked for; it holds {self.n_samples}")
        return self._read_raw(start, stop)


class _Segments:
    """One lead of a record of several segments; their headers are read when their samples are asked for."""

    def __init__(self, header, reference, position, root):
        self._header, self._root, self._position = header, root, position
        self._signal = reference.signals[position]
        self._starts = [0, *itertools.accumulate(length for _, length in header.segments)]
        self._width = self._signal.samples_per_frame
        self.fs = header.fs * self._width
        self.n_samples = self._starts[-1] * self._width

    def read(self, start, stop):
        """Return float32 mV, NaN in the gaps and in segments without this lead."""
        mv_per_unit(self._signal.unit, self._signal.lead, self._header.name)
        out = np.full(stop - start, np.nan, np.float32)
        number = bisect.bisect_right(self._starts, start // self._width) - 1
        while number < len(self._header.segments) and self._starts[number] * self._width < stop:
            name, _ = self._header.segments[number]
            begin, end = self._starts[number] * self._width, self._starts[number + 1] * self._width
            first, last = max(start, begin), min(stop, end)
            lead = self._lead(name, end - begin) if first < last and name != NULL_SEGMENT else None
            if lead is not None:
                out[first - start : last - start] = lead.read(first - begin, last - begin)
            number += 1
        return out

    def _lead(self, name, n_samples):
        """Return this lead in a segment, None where the segment lacks it."""
        record = f"{self._header.name}, segment {name[:80]}"
        header = _segment_header(self._header, name, self._root)
        leads = [signal.lead for signal in header.signals]
        if _is_variable(self._header):
            if self._signal.lead not in leads:
                return None
            position = leads.index(self._signal.lead)
        else:
            position = self._position
        if position >= len(leads):
            raise RecordError(f"{record}: {len(leads)} leads; wanted {self._header.n_leads}")
        lead = Lead(header, position, self._root)
        if abs(lead.fs - self.fs) > 1e-6 * self.fs or lead.n_samples < n_samples:
            raise RecordError(
                f"{record}: {lead.n_samples} samples at {lead.fs:g} Hz; wanted {n_samples} at {self.fs:g} Hz"
            )
        return lead


def _is_variable(header):
    """Say whether the first segment is a layout: a header that lists all leads and holds no samples."""
    return header.segments[0][1] == 0


def _segment_header(header, name, root):
    record = f"{header.name}, segment {name[:80]}"
    found = read_header(root, header.folder, name + ".hea", record)
    if found.segments:
        raise RecordError(f"{record}: is itself made of segments; wanted signals")
    return found


def open_record(path, *, lead=None, root=None, **options):
    """Open one lead of a recording, whatever its format.

    Parameters
    ----------
    path : path
        The record: the header's name with or without ``.hea``, or a file of another format, of which the content
        decides; its name may lack its extension where no other file has the same name.
    lead : str or int, optional
        Name or position of the lead; None is the first.
    root : path, optional
        Folder that no file of the record may leave, through links either; by default the record's own folder.
    **options
        What a file of plain numbers does not say: ``fs``, ``unit``, ``delimiter``, ``decimal``, ``header``, ``leads``;
        see ``anyecg.loaders.formats.Options``.

    Returns
    -------
    Record

    Raises
    ------
    RecordError
        No such record, no known format, a file beyond the limits (64 leads, 1e9 samples, 100,000 segments, 1 MB of
        header) or outside the root, a segment made of segments, a lead that is missing, a number that the file does not
        say and no option gives.

    Notes
    -----
    WFDB Applications Guide, header(5) and signal(5). Formats 16 and 212 are decoded here, by offset; the others by
    wfdb. docs/records.md says what is read how, docs/formats.md does so for all other formats.
    """
    found = _find(path, root, options)
    if found.kind == "wfdb":
        return _open_wfdb(found, lead)
    return _record(found, open_other(found.kind, found.path, found.n_bytes, found.name, lead, Options(**options)), lead)


def open_recording(path, *, root=None, **options):
    """Open all leads of a recording, whatever its format.

    Returns
    -------
    (list of Record, Opened)
        One record a lead, and what else the file says; its patient fields stand in the latter alone.

    Raises
    ------
    RecordError
        As ``open_record``.
    """
    opened, open_lead = _open_all(_find(path, root, options), options)
    return [open_lead(position) for position in range(len(opened.leads))], opened


def _open_all(found, options):
    """Return what a recording says of itself, and a function that opens the lead of a position; it is parsed once."""
    if found.kind == "wfdb":
        first = _open_wfdb(found, None)
        opened = Opened("WFDB", list(first.leads), first.start, {}, {}, [], first.digest, None)
        return opened, lambda position: _open_wfdb(found, position)
    opened = open_other(found.kind, found.path, found.n_bytes, found.name, None, Options(**options), whole=True)
    return opened, lambda position: _record(found, opened, position)


def open_leads(path, names, *, zeros=False, root=None, **options):
    """Open several leads of a recording, whatever its format; it is parsed once.

    Parameters
    ----------
    path, root, **options
        As for ``open_record``.
    names : sequence of str
        Of the leads; none is the first lead.
    zeros : bool
        Let some leads be missing, but not all: zeros are to stand for them.

    Returns
    -------
    tuple of Record or None
        One a lead, in their order; None for one that is missing.

    Raises
    ------
    RecordError
        As ``open_record``; leads that are missing, all of them named.
    """
    if len(names) < 2:
        return (open_record(path, lead=names[0] if names else None, root=root, **options),)
    found = _find(path, root, options)
    opened, open_lead = _open_all(found, options)
    lost = [name for name in names if not find_lead(name, opened.leads)]
    if lost and (not zeros or len(lost) == len(names)):
        said = f"lead {lost[0]!r} is" if len(lost) == 1 else f"leads {', '.join(map(repr, lost))} are"
        raise RecordError(f"{found.name}: {said} missing; found {', '.join(opened.leads)}")
    return tuple(None if name in lost else open_lead(_position(name, opened.leads, found.name)) for name in names)


def _record(found, opened, lead):
    position = _position(lead, opened.leads, found.name)
    fs, n_samples, read = opened.open_lead(position)
    return Record(found.name, fs, n_samples, tuple(opened.leads), opened.start, read, opened.digest)


class _Found(NamedTuple):
    """Where a record lies: its header's folder and name, or its one file."""

    kind: str
    name: str
    root: str
    folder: str
    path: str
    n_bytes: int


def _find(path, root, options):
    """Find the file of a record: the one named, else a header of that name, else the one file named so but for its
    extension."""
    path = os.fspath(path)
    if "\0" in path:
        raise RecordError(f"{path[:80]!r}: no such file")
    folder, _, name = path.rpartition("/")
    folder = folder or ("/" if path.startswith("/") else ".")
    if root is None:
        root = folder
    else:
        root, folder = os.path.realpath(root), os.path.realpath(folder)
        if not is_below(folder, root):
            raise RecordError(f"{name.removesuffix('.hea')}: lies outside its root; keep records below it")
    if name.endswith(".hea") or os.path.lexists(f"{folder}/{name}.hea"):
        return _Found("wfdb", name.removesuffix(".hea"), root, folder, "", 0)
    if not os.path.lexists(f"{folder}/{name}"):
        there = other_names(root, folder, name, any_table=bool(options.get("fs")))
        if len(there) > 1:
            raise RecordError(f"{name}: which of {', '.join(there[:5])}? give its extension")
        if not there:
            raise RecordError(f"{name}: no such file or record")
        name = there[0]
    where, n_bytes = inside(root, folder, name, name)
    return _Found(kind_of(where, name), name, root, folder, where, n_bytes)


def _open_wfdb(found, lead):
    record, root, folder = found.name, found.root, found.folder
    header = read_header(root, folder, record + ".hea", record)
    reference = _reference(header, root) if header.segments else header
    leads = _names(signal.lead for signal in reference.signals)
    position = _position(lead, leads, record)
    samples: _Segments | Lead
    if header.segments:
        samples = _Segments(header, reference, position, root)
        lines = [*header.lines, *reference.lines]
    else:
        samples = Lead(header, position, root)
        lines = [*header.lines, str(samples.size)]
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
    return Record(record, samples.fs, samples.n_samples, leads, header.start, samples.read, digest)


def _names(found):
    """Return the names of leads, standard where that keeps them apart."""
    found = tuple(found)
    standard = tuple(map(lead_name, found))
    return standard if len(set(standard)) == len(found) else found


def _reference(header, root):
    """Return the header that names the leads of all segments: the layout, or the first segment with samples."""
    name = next((name for name, _ in header.segments if name != NULL_SEGMENT), None)
    if name is None:
        raise RecordError(f"{header.name}: all its segments are null; wanted one that names the leads")
    reference = _segment_header(header, name, root)
    if reference.n_leads != header.n_leads:
        raise RecordError(f"{header.name}: {header.n_leads} leads announced; {name[:80]} has {reference.n_leads}")
    return reference


def _position(lead, leads, record):
    if isinstance(lead, str):
        try:
            return position_of(lead, leads)
        except RecordError as cause:
            raise RecordError(f"{record}: {cause}") from None
    position = 0 if lead is None else lead
    if not 0 <= position < len(leads):
        raise RecordError(f"{record}: lead number {position} asked for; found {len(leads)} leads")
    return position


def find_files(folder, *, any_table=False):
    """Find all records below a folder, of any format, told by content.

    Parameters
    ----------
    folder : path
    any_table : bool
        Take tables of text that do not say their sampling rate too.

    Returns
    -------
    dict of str to str
        Path below the folder without extension, where no other record has the same, otherwise with it -> what
        ``open_record`` takes, below the folder; in sorted order.
    """
    headers, others = [], []
    for where, folders, names in os.walk(folder):
        below = os.path.relpath(where, folder)
        prefix = "" if below == "." else f"{below}/"
        headers += [prefix + name[:-4] for name in names if name.endswith(".hea")]
        others += [prefix + name for name in other_names(folder, where, names=names, any_table=any_table)]
        # What a closed folder holds cannot be told: it counts as a record, which says so when it is opened.
        others += [prefix + name for name in folders if not os.access(f"{where}/{name}", os.R_OK | os.X_OK)]
    stems = Counter([*headers, *map(_stem, others)])
    found = {name if stems[name] == 1 else f"{name}.hea": name for name in headers}
    found |= {_stem(name) if stems[_stem(name)] == 1 else name: name for name in others}
    return dict(sorted(found.items()))


def _stem(name):
    return os.path.splitext(name)[0]  # noqa: PTH122


def find_records(folder):
    """Return the paths of all records below a folder, relative to it and without suffix, in sorted order."""
    return list(find_files(folder))
