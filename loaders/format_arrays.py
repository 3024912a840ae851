"""Files of plain numbers: CSV and other text, Parquet, NumPy, MATLAB, HDF5. What they do not say, options must."""

import math
import re
import zipfile
from datetime import datetime

import numpy as np

from anyecg.loaders.errors import RecordError, Unsaid
from anyecg.loaders.formats import Recording, as_utc, found_lead, is_number
from anyecg.loaders.lead_names import STANDARD_LEADS, lead_name
from anyecg.loaders.wfdb_header import MAX_HEADER_BYTES, MAX_LEADS, MAX_SAMPLES

_FORMS = {"text": "text table", "parquet": "Parquet", "npy": "NumPy", "npz": "NumPy (npz)", "matlab": "MATLAB 5",
          "hdf5": "HDF5"}  # fmt: skip
_RATE = ("fs", "sampling_rate", "sampling_frequency", "sample_rate", "samplerate", "sfreq", "frequency", "freq")
_LEADS = ("leads", "lead_names", "leadnames", "channels", "channel_names", "sig_name", "labels", "lead")
_UNIT = ("unit", "units")
_START = ("start", "start_time", "starttime", "base_datetime")
_SIGNAL = ("signal", "signals", "ecg", "p_signal", "data", "val")
_TIME = re.compile(r"(?:elapsed )?(?:time|t|seconds|sec|ms)", re.IGNORECASE)
_SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_NUMBER = re.compile(r"(?:sample|index|sample[ _]?(?:number|interval|index|#)|n|)", re.IGNORECASE)
_COLUMN = re.compile(r"(.*?)\s*[\[(]\s*([^\])]*)\s*[\])]")
_MOST_OBJECTS = 1000


def load(kind):
    """Import what parses a kind."""
    if kind in ("text", "parquet"):
        import pyarrow.csv
        import pyarrow.parquet  # noqa: F401
    elif kind == "matlab":
        import scipy.io  # noqa: F401
    elif kind == "hdf5":
        import h5py  # noqa: F401


def read(file, kind, options):
    """Read an open file.

    Raises
    ------
    RecordError
        It says no sampling rate or unit and the options do not either; no signal in it, or several; objects, links or
        storage elsewhere; a column of time that is not even.
    """
    return _READERS[kind](file, kind, options)


def _table(columns, said, units, kind, options):
    """Make a recording of columns of one length; a column of time gives the rate, one of sample numbers is left out."""
    given, notes, leads = options.fs, [], {}
    fs = _rate(said) if options.file_first else given or _rate(said)
    for name, value_T in columns.items():
        if _TIME.fullmatch(name):
            fs = fs or _rate_of_time(value_T, units.get(name) or ("ms" if name.lower() == "ms" else "s"))
        elif _NUMBER.fullmatch(name) and len(columns) > 1:
            notes.append(f"column {name!r} of sample numbers left out")
        elif len(columns) > 1 and _only_rises(value_T):
            notes.append(f"column {name[:40]!r} only rises, as time does; left out")
        else:
            leads[name] = value_T
    names = _names(options, list(leads))
    fs, start = _needed_rate(fs or given), _start(said)
    found = [
        found_lead(name, fs, _unit(options, units.get(column) or _text(said, _UNIT)), leads[column])
        for name, column in zip(names, leads, strict=True)
    ]
    return Recording(_FORMS[kind], found, start, {}, {}, notes)


def _only_rises(value_T):
    return len(value_T) >= 100 and bool((np.diff(value_T) > 0).all())


def _names(options, found):
    named = any(lead_name(name) in STANDARD_LEADS for name in found)
    if options.leads is None or (options.file_first and named):
        return found
    if len(options.leads) != len(found):
        raise RecordError(f"{len(options.leads)} names of leads given; found {len(found)} leads")
    return list(options.leads)


def _in_turn(options, given, own):
    """Return what an option gives or what the file says itself, whichever goes first and is there."""
    return own or given if options.file_first else given or own


def _needed_rate(fs):
    if not fs:
        raise Unsaid("says no sampling rate; give it in Hz, as in --fs 500, or add a column 'time' in seconds")
    if not (math.isfinite(fs) and 0 < fs < 1e6):
        raise RecordError(f"sampling rate {fs:g} Hz; wanted more than 0")
    return fs


def _unit(options, own):
    unit = _in_turn(options, options.unit, own)
    if not unit:
        raise Unsaid("says no unit; give it, as in --unit mV")
    return unit


def _rate(said):
    """Return the sampling rate that a file says, None where it says none."""
    value = next((said[name] for name in _RATE if name in said), None)
    if isinstance(value, str):
        value = re.sub(r"\s*hz$", "", value.strip(), flags=re.IGNORECASE).replace(",", ".")
    try:
        rate = None if value is None else float(np.asarray(value).reshape(-1)[0])
    except (ValueError, TypeError, IndexError):
        rate = None
    return rate


def _rate_of_time(time_T, unit):
    """Return the rate of an even column of time, in Hz."""
    if unit.strip().lower() not in _SECONDS:
        raise RecordError(f"time is in {unit[:20]!r}; wanted s, ms or us")
    time_T = np.asarray(time_T, np.float64) * _SECONDS[unit.strip().lower()]
    if len(time_T) < 2 or not np.isfinite(time_T).all() or not time_T[-1] > time_T[0]:
        raise Unsaid("its column of time does not rise; give the sampling rate, as in --fs 500")
    fs = (len(time_T) - 1) / (time_T[-1] - time_T[0])
    if np.abs(time_T - time_T[0] - np.arange(len(time_T)) / fs).max() * fs > 0.51:
        raise Unsaid("its column of time is not even; give the sampling rate, as in --fs 500")
    # Times are often rounded to ms, the first and the last too: a whole rate within that is meant.
    rounded = np.abs(1e3 * time_T - np.round(1e3 * time_T)).max() < 1e-6
    within = max(1e-3 * max(1.0, fs / 1000), fs * 1e-3 / (time_T[-1] - time_T[0]) if rounded else 0.0)
    return round(fs) if abs(fs - round(fs)) < within and round(fs) else fs


def _text(said, names):
    """Return what a file says under one of the names, as text; empty where it says nothing."""
    value = next((said[name] for name in names if name in said), "")
    if isinstance(value, np.ndarray):
        parts = [_plain(one) for one in value.reshape(-1)[:200]] if value.dtype.kind in "USO" else []
        value = parts[0] if len(set(parts)) == 1 else "".join(parts)
    return _plain(value)


def _units(said, n_leads):
    """Return the unit of each lead that a file says: one for all, or a list."""
    value = np.asarray(next((said[name] for name in _UNIT if name in said), ""))
    if n_leads > 1 and value.size == n_leads and value.dtype.kind in "USO":
        return [_plain(one).strip() for one in value.reshape(-1)]
    return [_text(said, _UNIT)] * n_leads


def _start(said):
    try:
        return as_utc(datetime.fromisoformat(_text(said, _START).strip()))
    except ValueError:
        return None


def _read_text(file, kind, options):
    data = file.read()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    comments, names, units, skipped = _head_of_text(data, options)
    delimiter, decimal = _marks(data[skipped : skipped + 10_000], names[1], options)
    if not (options.delimiter or options.decimal) and _may_be_one(data[skipped : skipped + 10_000]):
        raise Unsaid(
            "each line can be two numbers, or one with a decimal comma; say which: --delimiter ',' or --decimal ','"
        )
    body = data[skipped:]
    if delimiter == " ":
        body = re.sub(rb"[ \t]+", b" ", re.sub(rb"(?m)^[ \t]+|[ \t]+$", b"", body))
    columns = _parse_csv(body, delimiter, decimal)
    # A single column has no delimiter: a blank in its name is none.
    alone = None if len(columns) == 1 else delimiter
    labels = _split(names[0], alone) if names[0] else []
    if labels and len(labels) != len(columns):
        raise RecordError(f"{len(labels)} names above {len(columns)} columns")
    labels = labels or [f"column {place + 1}" for place in range(len(columns))]
    below = _split(units, alone) if units else []
    called = _parted(labels)
    found = dict(zip(called, columns, strict=True))
    unit_of = {
        name: unit or (below[place] if place < len(below) else "") for place, (name, unit) in enumerate(called.items())
    }
    said = dict(re.findall(r"(?m)^[#%]\s*([A-Za-z_ ]{1,40}?)\s*[=:]\s*(.{1,200}?)\s*$", comments))
    said = {name.lower().replace(" ", "_"): value for name, value in said.items()}
    return _table(found, said, unit_of, kind, options)


def _parted(labels):
    """Return {name: unit} of labels such as "II [mV]", in their order; a name that occurs again gets its number."""
    found: dict[str, str] = {}
    for label in labels:
        match = _COLUMN.fullmatch(label)
        name = first = match[1] if match else label
        number = 1
        while name in found:
            number += 1
            name = f"{first}:{number}"
        found[name] = match[2] if match else ""
    return found


def _decoded(line):
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _head_of_text(data, options):
    """Return (comments, (line of names, first line of numbers), line of units, bytes before the numbers)."""
    comments: list[str] = []
    above: list[str] = []
    place = 0
    while True:
        end = data.find(b"\n", place)
        line = _decoded(data[place : end if end >= 0 else len(data)]).strip()
        if not line or line.startswith(("#", "%")):
            comments.append(line)
        elif _is_above(line, above, options):
            above.append(line)
        else:
            break
        place = end + 1
        if end < 0 or place > MAX_HEADER_BYTES:
            raise RecordError("no line of numbers; wanted a table of text")
    return "\n".join(comments), ((above or [""])[0], line), above[1] if len(above) > 1 else "", place


def _is_above(line, above, options):
    """Say whether a line names the columns, or gives their units."""
    if options.header is not None and len(above) < 1:
        return options.header
    return options.header is not False and len(above) < 2 and not _is_numbers(line, options)


def _is_numbers(line, options):
    fields = re.split(re.escape(options.delimiter) if options.delimiter else r"[;\t]", line)
    if len(fields) == 1 and not options.delimiter:
        fields = re.split(r"[,\s]+", line)
    return all(is_number(field) or is_number(field, ",") for field in fields)


def _marks(body, line, options):
    """Return the delimiter and the decimal mark, seen in the first lines of numbers where options do not say."""
    delimiter = options.delimiter
    if delimiter is None:
        delimiter = next((mark for mark in ";\t" if mark in line), None)
        comma_only = "," in line and "." not in line and re.search(r"\d,\d", line)
        if delimiter is None and comma_only and re.search(r"\d,\d+\s+-?\d", line.strip()):
            delimiter = " "
        if delimiter is None:
            delimiter = "," if "," in line and options.decimal != "," else " "
    decimal = options.decimal
    if decimal is None:
        decimal = "," if delimiter != "," and re.search(rb"\d,\d", body) else "."
    if len(delimiter) != 1:
        raise RecordError(f"delimiter {delimiter!r}; wanted one character, as in --delimiter ';'")
    if decimal not in (".", ",") or delimiter == decimal:
        raise RecordError(f"delimiter {delimiter!r} and decimal mark {decimal!r}; wanted two marks that differ")
    return delimiter, decimal


def _may_be_one(body):
    """Say whether all lines are two whole numbers with a comma between: "0,123" can be one number, too."""
    lines = [line.strip() for line in body[: body.rfind(b"\n") + 1].splitlines()]
    return bool(lines) and all(re.fullmatch(rb"-?\d+,\d+", line) for line in lines)


def _split(line, delimiter):
    """Return the fields of a line; all of it is one without a delimiter."""
    fields = [line] if delimiter is None else line.split() if delimiter == " " else line.split(delimiter)
    return [field.strip().strip("'\"").strip()[:80] for field in fields]


def _parse_csv(body, delimiter, decimal):
    """Return the columns, float64, NaN where a field is empty."""
    import pyarrow as pa
    from pyarrow import csv

    n_columns = len(_split(body[: body.find(b"\n") if b"\n" in body else None].decode("utf-8", "replace"), delimiter))
    if not 1 <= n_columns <= MAX_LEADS + 2:
        raise RecordError(f"{n_columns} columns; wanted 1 to {MAX_LEADS}")
    names = [str(place) for place in range(n_columns)]
    null = ["", "nan", "NaN", "NAN", "NA", "null", "-", "nan(ind)"]
    try:
        table = csv.read_csv(
            pa.BufferReader(body),
            read_options=csv.ReadOptions(use_threads=False, column_names=names, block_size=4 << 20),
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.float64()), null_values=null, decimal_point=decimal
            ),
        )
    except pa.ArrowInvalid as cause:
        said = re.sub(r"^CSV (parse|conversion) error[^:]*: ?", "", str(cause).splitlines()[0])
        # What stands in the row is not repeated: it may name a patient.
        said = re.sub(r"(got \d+|invalid value):? .*", r"\1", said)
        raise RecordError(f"not a table of numbers ({said[:120]})") from None
    return [table[name].to_numpy().astype(np.float64) for name in names]


def _read_parquet(file, kind, options):
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(pa.PythonFile(file, "r"), memory_map=False)
        schema = opened.schema_arrow
        metadata = opened.metadata
        if metadata.num_rows > MAX_SAMPLES or len(schema.names) > 10 * MAX_LEADS:
            raise RecordError(f"{metadata.num_rows} rows of {len(schema.names)} columns; wanted at most {MAX_SAMPLES}")
        numeric = [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
        others = [name for name in schema.names if name not in numeric]
        # A name may occur twice: columns are taken by their place.
        table = opened.read(columns=list(dict.fromkeys(numeric)), use_threads=False)
        columns = [column.to_numpy().astype(np.float64) for column in table.columns]
    except MemoryError:
        raise
    except (pa.ArrowException, OSError) as cause:
        raise RecordError(f"damaged ({str(cause).splitlines()[0][:120]})") from None
    said = {
        key.decode("utf-8", "replace").lower(): value.decode("utf-8", "replace")[:200]
        for key, value in (schema.metadata or {}).items()
        if len(value) < 1000
    }
    units = _parted(table.column_names)
    recording = _table(dict(zip(units, columns, strict=True)), said, units, kind, options)
    recording.notes.extend(f"column {name[:40]!r} is no number, left out" for name in others[:10])
    return recording


def _read_npy(file, kind, options):
    return _named({"signal": np.load(file, allow_pickle=False)}, {}, kind, options)


def _read_npz(file, kind, options):
    try:
        with np.load(file, allow_pickle=False) as members:
            if len(members.files) > MAX_LEADS + 10:
                raise RecordError(f"{len(members.files)} arrays; wanted at most {MAX_LEADS + 10}")
            arrays = {name: members[name] for name in members.files}
    except zipfile.BadZipFile as cause:
        raise RecordError(f"damaged ({cause})") from None
    return _named(arrays, arrays, kind, options)


def _read_matlab(file, kind, options):
    from scipy import io

    held = io.whosmat(file)
    numeric = ("double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    wanted = [name for name, _, form in held if form in numeric or (form in ("char", "cell") and _is_said(name))]
    left_out = [f"{name} ({form})" for name, _, form in held if name not in wanted]
    file.seek(0)
    loaded = io.loadmat(file, variable_names=wanted, squeeze_me=True, struct_as_record=True) if wanted else {}
    arrays = {name: np.asarray(loaded[name]) for name in wanted if name in loaded}
    found = _named(arrays, arrays, kind, options, left_out)
    found.notes.extend(f"{name[:80]} left out" for name in left_out[:10])
    return found


def _is_said(name):
    return name.lower() in (*_LEADS, *_UNIT, *_START)


def _read_hdf5(file, kind, options):
    import h5py

    with h5py.File(file, "r", rdcc_nbytes=0) as opened:
        sets: dict = {}
        _find_sets(opened.id, "", sets, 0)
        said = _attributes(opened)
        for name, one in sets.items():
            if one.size <= MAX_LEADS and (_is_said(_last(name)) or _last(name).lower() in _RATE):
                said |= {_last(name).lower(): _small(one)} if one.dtype.kind != "O" or _is_text(one) else {}
        signals = {
            name: one for name, one in sets.items() if one.dtype.kind in "iuf" and one.size > 1
            and not _is_said(_last(name))
        }  # fmt: skip
        arrays, own = {}, {}
        for name in _choose(signals, _FORMS[kind]):
            one = signals[name]
            if one.ndim > 2 or one.size > MAX_SAMPLES:
                raise RecordError(f"{name[:80]}: shape {one.shape}; wanted at most two axes and {MAX_SAMPLES} samples")
            own[_last(name)] = _attributes(one)
            arrays[_last(name)] = one[...]
    found = _named(arrays, said, kind, options, own=own)
    found.notes.extend(_left_out(name for name in signals if _last(name) not in arrays))
    return found


def _last(name):
    return name.rpartition("/")[2]


def _is_text(one):
    import h5py

    # MATLAB's cells are references to other sets.
    return h5py.check_string_dtype(one.dtype) is not None


def _small(one):
    """Return the value of a small set; MATLAB keeps text as numbers."""
    value = one[()]
    if "MATLAB_class" in one.attrs and one.attrs["MATLAB_class"] == b"char":
        return "".join(map(chr, np.asarray(value).T.reshape(-1)))
    array = np.asarray(value)
    return np.array([_plain(each) for each in array.reshape(-1)]) if array.dtype.kind in "OS" else value


def _plain(value):
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _find_sets(group, prefix, found, depth):
    """Find the sets below a group by hard links alone; refuse links and storage elsewhere."""
    import h5py

    keys: list[bytes] = []
    group.links.iterate(keys.append)
    for key in keys:
        if len(found) > _MOST_OBJECTS or depth > 8:
            raise RecordError(f"more than {_MOST_OBJECTS} objects, or too deep; wanted one recording")
        name = f"{prefix}{key.decode('utf-8', 'replace')}"
        if group.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise RecordError(f"{name[:80]} is linked from elsewhere; refuse files from elsewhere")
        one = h5py.h5o.open(group, key)
        if isinstance(one, h5py.h5g.GroupID):
            if not key.startswith(b"#"):
                _find_sets(one, f"{name}/", found, depth + 1)
        elif isinstance(one, h5py.h5d.DatasetID):
            plist = one.get_create_plist()
            if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count():
                raise RecordError(f"{name[:80]} is not stored in the file itself; refuse files from elsewhere")
            found[name] = h5py.Dataset(one)


def _attributes(one):
    """Return the short attributes of an object, numbers and texts."""
    import h5py

    out = {}
    for number in range(min(h5py.h5a.get_num_attrs(one.id), 100)):
        attribute = h5py.h5a.open(one.id, index=number)
        if attribute.get_storage_size() <= 10_000 and attribute.name.decode("utf-8", "replace").lower() in (
            *_RATE, *_LEADS, *_UNIT, *_START
        ):  # fmt: skip
            value = one.attrs[attribute.name]
            if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
                value = np.array([_plain(v) for v in value.reshape(-1)[:MAX_LEADS]])
            out[attribute.name.decode("utf-8", "replace").lower()] = value
    return out


def _choose(arrays, what):
    """Return the names of the arrays that are the signal: those named as leads, or the one that is called so."""
    leads = [name for name in arrays if lead_name(_last(name)) in STANDARD_LEADS]
    if leads:
        return _once(leads)
    by_name: dict[str, list[str]] = {}
    for name in arrays:
        by_name.setdefault(_last(name).lower(), []).append(name)
    named = next((by_name[name] for name in _SIGNAL if name in by_name), None)
    if named is not None:
        return _once(named)
    if len(arrays) != 1:
        held = ", ".join(list(arrays)[:10]) or "none"
        raise RecordError(f"which array of {what} is the signal? found {held[:200]}; call it 'signal'")
    return list(arrays)


def _once(names):
    """Return the names of arrays as they are; refuse several of one name, which are several recordings."""
    if len({_last(name).lower() for name in names}) < len(names):
        raise RecordError(f"several recordings: {', '.join(names[:10])[:200]}; wanted a file of one")
    return names


def _left_out(names):
    return [f"array {name[:40]!r} left out" for name in list(names)[:10]]


def _named(arrays, said, kind, options, left_out=(), own=None):
    """Make a recording of named arrays: a table of leads, or one array a lead.

    Parameters
    ----------
    own : dict, optional
        What is said of one array alone, by its name.
    """
    said = {name.lower(): value for name, value in said.items()}
    if any(array.dtype.kind in "OV" for name, array in arrays.items() if not _is_said(name)):
        raise RecordError("holds objects; wanted numbers")
    large = {
        name: array for name, array in arrays.items() if array.dtype.kind in "iufb" and array.size > 1
        and name.lower() not in (*_RATE, *_LEADS)
    }  # fmt: skip
    if not large and left_out:
        raise RecordError(f"holds no array of numbers; found {', '.join(left_out)[:200]}")
    chosen = _choose(large, _FORMS[kind])
    said_of = [said | (own or {}).get(name, {}) for name in chosen]
    rates = [_needed_rate(_in_turn(options, options.fs, _rate(one))) for one in said_of]
    listed = _listed(said_of[0])
    names = _in_turn(options, options.leads, listed)
    if len(chosen) > 1 or large[chosen[0]].ndim == 1:
        lines = {name: large[name] for name in chosen}
        if any(value.ndim != 1 for value in lines.values()):
            raise RecordError("arrays named as leads have several axes; wanted one")
        takes_listed = len(chosen) == 1 and names is listed and names and len(names) == 1
        called = list(names) if takes_listed else _names(options, chosen)
        rows = list(lines.values())
        units = [_units(one, len(rows))[place] for place, one in enumerate(said_of)]
    else:
        rows = list(_by_lead(large[chosen[0]], names))
        if names and len(names) != len(rows):
            raise RecordError(f"{len(names)} names of leads; found {len(rows)} leads")
        called = list(names) if names else [f"column {place + 1}" for place in range(len(rows))]
        rates, units = rates * len(rows), _units(said_of[0], len(rows))
    leads = [
        found_lead(name, fs, _unit(options, unit), row)
        for name, fs, unit, row in zip(called, rates, units, rows, strict=True)
    ]
    notes = _left_out(name for name in large if name not in chosen)
    return Recording(_FORMS[kind], leads, _start(said_of[0]), {}, {}, notes)


def _listed(said):
    """Return the names of leads that a file lists, None where it lists none."""
    value = next((said[name] for name in _LEADS if name in said), None)
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "UOS":
        return None
    names = [_plain(one).strip() for one in array.reshape(-1)]
    return [name.strip() for name in names[0].split(",")] if len(names) == 1 and "," in names[0] else names


def _by_lead(array, names):
    """Return the rows of a table: the axis as long as the list of names, else the shorter one, is the leads'."""
    if array.ndim != 2:
        raise RecordError(f"shape {array.shape}; wanted (samples,) or (leads, samples)")
    fitting = [axis for axis in (0, 1) if names and array.shape[axis] == len(names)]
    axis = fitting[0] if len(fitting) == 1 else int(array.shape[1] < array.shape[0])
    if array.shape[axis] > MAX_LEADS:
        raise RecordError(f"shape {array.shape}; wanted at most {MAX_LEADS} leads")
    return array if axis == 0 else array.T


_READERS = {
    "text": _read_text, "parquet": _read_parquet, "npy": _read_npy, "npz": _read_npz, "matlab": _read_matlab,
    "hdf5": _read_hdf5,
}  # fmt: skip
