"""Files of other formats than WFDB: found by content, EDF read in place, the others parsed in a child process."""

import atexit
import json
import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anyecg.loaders.apart import Children, Died
from anyecg.loaders.errors import RecordError, Unsaid
from anyecg.loaders.format_edf import Edf
from anyecg.loaders.formats import HEAD_BYTES, head_text, refuse_unknown, says_rate, sniff
from anyecg.loaders.wfdb_header import MAX_LEADS, MAX_SAMPLES, inside, open_found

_children = Children("anyecg.loaders.format_child")
atexit.register(_children.end)


class Opened(NamedTuple):
    """What a file says of itself; ``open_lead(position)`` returns (fs, n_samples, function that reads a range)."""

    form: str
    leads: list[str]
    start: datetime | None
    patient: dict[str, str]
    about: dict[str, str]
    notes: list[str]
    digest: str
    open_lead: object


def read_head(path, name):
    """Return the beginning of a file, as long as ``sniff`` wants it."""
    descriptor = open_found(path, name)
    try:
        return os.pread(descriptor, HEAD_BYTES, 0)
    except OSError as cause:
        raise RecordError(f"{name}: {cause.strerror}") from None
    finally:
        os.close(descriptor)


def kind_of(path, name):
    """Return the kind of a file by its content; refuse one that is none."""
    head = read_head(path, name)
    kind = sniff(head)
    if kind is None:
        refuse_unknown(name, head)
    return kind


def other_names(root, folder, stem=None, *, names=None, any_table=False):
    """Return the names of the files in a folder that are recordings of other formats than WFDB, in sorted order.

    With a ``stem``, of those named so but for their extension. A table of text counts where it says its sampling rate,
    as labels are tables of numbers too; with ``any_table``, where the user says the rate, it counts always.
    """
    try:
        names = [entry.name for entry in Path(folder).iterdir()] if names is None else names
    except OSError:
        return []
    if stem is not None:
        names = [name for name in names if name.startswith(f"{stem}.") and os.path.splitext(name)[0] == stem]  # noqa: PTH122
    names = [name for name in sorted(names) if not name.endswith((".hea", ".atr"))]
    return [name for name in names if _is_record(root, folder, name, any_table)]


def _is_record(root, folder, name, any_table):
    try:
        path, n_bytes = inside(root, folder, name, name)
        if n_bytes > 0 and not os.access(path, os.R_OK):
            # What it is cannot be told; one that is left out unsaid would be worse than one that is no recording.
            return True
        head = read_head(path, name) if n_bytes > 0 else b""
    except RecordError:
        return False
    kind = sniff(head)
    return kind is not None and (kind != "text" or any_table or says_rate(head_text(head)))


def open_other(kind, path, n_bytes, name, lead, options, *, whole=False):
    """Open a file of a kind that ``kind_of`` found.

    Parameters
    ----------
    lead : str, int or None
        The lead that will be read, None for the first.
    whole : bool
        All leads will be.

    Returns
    -------
    Opened

    Raises
    ------
    RecordError
        Not a file that can be read; Unsaid: what it does not say and ``options`` do not either.
    """
    if kind == "edf":
        edf = Edf(path, n_bytes, name)

        def open_edf_lead(position):
            return edf.fs(position), edf.n_samples(position), lambda start, stop: edf.read(position, start, stop)

        leads = [one.name for one in edf.leads]
        return Opened(edf.form, leads, edf.start, edf.patient, edf.about, edf.notes, edf.digest, open_edf_lead)
    asked = None if whole else 0 if lead is None else lead
    request = [kind, os.path.abspath(path), asked, options._asdict()]  # noqa: PTH100
    try:
        answer, arrays = _children.ask(request, _receive)
    except Died as how:
        raise RecordError(f"{name}: damaged, or too large: its parser did not end ({how}); refuse it") from None
    if "error" in answer:
        error = Unsaid if answer.get("unsaid") else RecordError
        raise error(f"{name}: {_short(answer['error'], path)}")
    start = answer["start"] and datetime.fromisoformat(answer["start"])

    def open_child_lead(position):
        _, fs, n_samples, unit = answer["leads"][position]
        return fs, n_samples, _reader(name, answer["leads"][position][0], unit, arrays.get(position))

    leads = [lead for lead, *_ in answer["leads"]]
    patient, about, notes = answer["patient"], answer["about"], answer["notes"]
    return Opened(answer["form"], leads, start, patient, about, notes, answer["digest"], open_child_lead)


def _reader(name, lead, unit, value_T):
    def read(start, stop):
        if unit != "mV":
            raise RecordError(f"{name}: lead {lead!r} is in {unit!r}; wanted a voltage (mV, uV, nV or V)")
        return value_T[start:stop].copy()

    return read


def _receive(stream):
    """Read a child's answer and its samples; None where it was cut short."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    answer = json.loads(line)
    arrays: dict[int, np.ndarray] = {}
    if "error" in answer:
        return answer, arrays
    if not 1 <= len(answer["leads"]) <= MAX_LEADS or max(lead[2] for lead in answer["leads"]) > MAX_SAMPLES:
        return None
    for position in answer["sent"]:
        arrays[position] = np.empty(answer["leads"][position][2], np.float32)
        rest = arrays[position].data.cast("B")
        while rest.nbytes:
            n_read = stream.readinto(rest)
            if not n_read:
                return None
            rest = rest[n_read:]
    return answer, arrays


def _short(said, path):
    """Return what a library said on one line, without the path of the child."""
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120
    words = " ".join(said.replace(f"{folder}/", "").split())[:300]
    return "".join(mark if mark.isprintable() else "?" for mark in words)
