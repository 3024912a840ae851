"""Which format a file has, told by its first kilobytes, and the plain form that every reader gives."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from anyecg.loaders.errors import RecordError
from anyecg.loaders.lead_names import lead_name
from anyecg.loaders.wfdb_header import MAX_LEADS, MAX_SAMPLES

HEAD_BYTES = 4096
# Samples converted at a time: float64 of a whole Holter would take twice its own memory.
_BLOCK = 1 << 18
_MV_PER_UNIT = {
    prefix + name: factor
    for factor, prefixes in ((1e-6, "n nano"), (1e-3, "u µ μ micro"), (1.0, "m milli"), (1e3, " "))
    for prefix in (prefixes.split() or [""])
    for name in ("v", "volt")
}  # fmt: skip
_XML_ROOT = re.compile(r"<(?:[A-Za-z_][\w.-]*:)?(AnnotatedECG|restingecgdata|RestingECG|MuseInfo)[\s/>]")
_XML = {"AnnotatedECG": "aecg", "restingecgdata": "sierra", "RestingECG": "muse", "MuseInfo": "muse"}
_WANTED = "WFDB, EDF, DICOM, HL7 aECG, Philips Sierra, GE MUSE, SCP-ECG, MATLAB, HDF5, NumPy, Parquet or CSV"


class Options(NamedTuple):
    """What a file of plain numbers may leave unsaid; None: the file says it, or its content shows it.

    Attributes
    ----------
    fs : float
        Sampling rate in Hz.
    unit : str
        nV, uV, mV or V.
    delimiter : str
        Between columns of text; one character.
    decimal : str
        "." or ",".
    header : bool
        Whether the first line of text names the columns.
    leads : tuple of str
        Names of the leads, in order.
    file_first : bool
        What the file says itself goes before the options, which the files of a folder share; otherwise the options do.
        It says the names of its leads where one of them is a standard one.
    """

    fs: float | None = None
    unit: str | None = None
    delimiter: str | None = None
    decimal: str | None = None
    header: bool | None = None
    leads: tuple[str, ...] | None = None
    file_first: bool = False


class FoundLead(NamedTuple):
    """One lead: float32 mV with NaN where invalid; of another unit than a voltage, its values in that unit."""

    name: str
    fs: float
    unit: str
    value_T: np.ndarray


class Recording(NamedTuple):
    """What a reader finds in a file.

    Attributes
    ----------
    form : str
        The format, with its version.
    leads : list of FoundLead
    start : datetime or None
        In UTC where the file gives an offset; otherwise the local time, said to be UTC, as in WFDB.
    patient : dict
        Text by name: never logged, never stored with a signal unless asked for.
    about : dict
        Text by name: vendor, device, original unit and the like.
    notes : list of str
        What a reader of the signal should know.
    """

    form: str
    leads: list[FoundLead]
    start: datetime | None
    patient: dict[str, str]
    about: dict[str, str]
    notes: list[str]


def sniff(head):
    """Return the kind of a file by its first ``HEAD_BYTES``, None where it is none that can be read.

    Kinds: edf, dicom, aecg, sierra, muse, scp, matlab, hdf5, npy, npz, parquet, text.
    """
    if head[:8] == b"0       " and len(head) >= 256 and head[192:236].isascii() and head[252:256].strip().isdigit():
        return "edf"
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x89HDF\r\n\x1a\n") or (head.startswith(b"MATLAB 7.3 MAT-file") and len(head) > 512):
        return "hdf5"
    if head.startswith(b"MATLAB 5.0 MAT-file"):
        return "matlab"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    # The first member's name ends in .npy.
    if head.startswith(b"PK\x03\x04") and head[30:].split(b"\0")[0][: _name_length(head)].endswith(b".npy"):
        return "npz"
    if head.startswith(b"PAR1"):
        return "parquet"
    if _is_scp(head):
        return "scp"
    text = head_text(head)
    if text is None:
        return None
    root = _XML_ROOT.search(text)
    if root:
        return _XML[root[1]]
    return "text" if _is_table(text) else None


def _name_length(head):
    return int.from_bytes(head[26:28], "little")


def _is_scp(head):
    """Section 0 lies at byte 7 and its first pointer is to itself. EN 1064, 5.3."""
    return (
        len(head) >= 32
        and head[8:10] == b"\0\0"
        and int.from_bytes(head[10:14], "little") >= 26
        and head[22:24] == b"\0\0"
        and int.from_bytes(head[28:32], "little") == 7
    )


def head_text(head):
    """Return the beginning of a file as text, None where it is not text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head[: len(head) // 2 * 2].decode("utf-16", errors="ignore")
    if b"\0" in head:
        return None
    return head.decode("utf-8", errors="replace").removeprefix("\ufeff")


def is_number(field, decimal="."):
    """Say whether a field of a table is a number, or says that there is none."""
    field = field.strip().strip("'\"").lower()
    if field in ("", "nan", "na", "null", "-"):
        return True
    try:
        float(field.replace(",", ".") if decimal == "," else field)
    except ValueError:
        return False
    return True


def _is_table(text):
    """Say whether text is lines of numbers, below at most two lines of names and units."""
    whole = text[: text.rfind("\n") + 1].splitlines()
    lines = [line for line in whole if line.strip() and not line.lstrip().startswith(("#", "%"))]
    body = [line for line in lines[2:12] if re.search(r"\d", line)]
    return len(body) >= 2 and len(body) == len(lines[2:12]) and all(_all_numbers(line) for line in body)


def _all_numbers(line):
    return all(is_number(field) or is_number(field, ",") for field in re.split(r"[;,\t ]+", line.strip()))


def says_rate(text):
    """Say whether a table of text says its sampling rate: by a comment, or by a column of time."""
    head = text[: text.rfind("\n")].lower()
    return bool(re.search(r"^[#%]\s*(fs|sampling[ _]rate)\s*[=:]", head, re.MULTILINE)) or any(
        re.match(r"['\"]?(elapsed )?(time|t|seconds|sec|ms)\b", line.strip()) for line in head.splitlines()[:20]
    )


def unit_factor(unit):
    """Return how many mV one of a unit is, None where it is no voltage."""
    return _MV_PER_UNIT.get(unit.strip().lower().removesuffix("s"))


def found_lead(name, fs, unit, value_T, *, factor=1.0, offset=0.0):
    """Return a lead of counts: (count x factor + offset) in ``unit``, rounded once to float32 mV."""
    per_unit = unit_factor(unit)
    value_T, scale = np.asarray(value_T), 1.0 if per_unit is None else per_unit
    if value_T.dtype == np.float32 and (factor, offset, scale) == (1.0, 0.0, 1.0):
        out_T = value_T
    else:
        out_T = np.empty(len(value_T), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(value_T), _BLOCK):
                here = slice(first, first + _BLOCK)
                out_T[here] = (value_T[here].astype(np.float64) * factor + offset) * scale
    return FoundLead(lead_name(name), float(fs), unit if per_unit is None else "mV", out_T)


def unique(names):
    """Return names of which a repeated one has its number behind it: II, II:2."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}:{seen[name]}")
    return out


def check_recording(found):
    """Return a recording whose leads are numbered apart; refuse one beyond the limits."""
    if not 1 <= len(found.leads) <= MAX_LEADS:
        raise RecordError(f"{len(found.leads)} leads; wanted 1 to {MAX_LEADS}")
    for lead in found.leads:
        if not 0 < lead.fs < 1e6:
            raise RecordError(f"lead {lead.name!r}: sampling rate {lead.fs:g} Hz; wanted more than 0")
        if not 0 < len(lead.value_T) <= MAX_SAMPLES:
            raise RecordError(f"lead {lead.name!r}: {len(lead.value_T)} samples; wanted 1 to {MAX_SAMPLES}")
    names = unique([lead.name for lead in found.leads])
    return found._replace(leads=[lead._replace(name=name) for lead, name in zip(found.leads, names, strict=True)])


def as_utc(moment):
    """Return a time in UTC; one without an offset is taken as it stands."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def texts(fields):
    """Return the fields that say something, as short texts on one line."""
    short = {str(name)[:60]: " ".join(str(value).split())[:200] for name, value in fields.items() if value is not None}
    return {name: value for name, value in short.items() if value not in ("", "[]", "{}")}


def refuse_unknown(name, head):
    """Raise what is said of a file of no known format."""
    found = "it is empty" if not head else f"it begins with {head[:12]!r}"
    raise RecordError(f"{name}: no recording of a known format ({found}); wanted {_WANTED}")
