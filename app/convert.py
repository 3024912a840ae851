"""``anyecg convert``: one recording of any format as WFDB, EDF, HDF5 or CSV, whole or absent."""

import tempfile
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np

from anyecg.loaders.errors import RecordError
from anyecg.loaders.files import replacing
from anyecg.loaders.lead_names import STANDARD_LEADS, chosen_leads
from anyecg.loaders.records import open_recording

FORMATS = ("wfdb", "edf", "hdf5", "csv")
SUFFIX = {"wfdb": ".hea", "edf": ".edf", "hdf5": ".h5", "csv": ".csv"}
# WFDB headers hold no greater one; 1 pV a count.
_MOST_GAIN = 1e9
# What a table's reader takes for a column of times or of sample numbers.
_NO_LEADS = ("time", "elapsed time", "t", "seconds", "sec", "ms", "n", "index", "sample")
# The years that an EDF header can tell apart.
_EDF_YEARS = range(1985, 2085)
# Counts a mV that devices use: 1, 2, 2.5, 5, 1.25, 4.88, 3.75 uV a count and so on.
_GAINS = (1000.0, 200.0, 400.0, 500.0, 204.8, 800.0, 250.0, 100.0, 2000.0, 1e4, 1e5, 320.0, 1024.0, 4096.0, 1e6)


def convert(path, out, form, *, with_patient=False, chosen=None, **options):
    """Write a recording in another format.

    Parameters
    ----------
    path, options
        As for ``anyecg.loaders.records.open_record``.
    out : path
        File to write; for WFDB the header, whose ``.dat`` lies beside it.
    form : str
        One of ``FORMATS``.
    with_patient : bool
        Write the patient fields that the file holds; otherwise none is written.
    chosen : list of str, optional
        Leads to write; all of them by default.

    Returns
    -------
    list of str
        What a reader should know: what was rounded, what was left out.

    Raises
    ------
    RecordError
        Unreadable; leads of several rates in a format of one; gaps in EDF; no such lead.
    """
    out = Path(out)
    records, opened = open_recording(path, **options)
    try:
        places = chosen_leads(chosen, opened.leads)
    except RecordError as cause:
        raise RecordError(f"{path}: {cause}") from None
    records, names = [records[place] for place in places], [opened.leads[place] for place in places]
    if out.is_dir():
        raise RecordError(f"{out}: a folder; give the path of the file to write")
    sources, written = (Path(path), Path(f"{path}.hea")), _header_of(out) if form == "wfdb" else out
    if any(source.exists() and written.exists() and written.samefile(source) for source in sources):
        raise RecordError(f"{out}: the recording itself; write to another file")
    if form != "edf" and len({(record.fs, record.n_samples) for record in records}) > 1:
        raise RecordError(f"{path}: leads of several rates or lengths; choose some with --leads, or write EDF")
    mv = [record.read() for record in records]
    about = {"start": opened.start, "patient": opened.patient if with_patient else {}}
    return _WRITERS[form](out, names, [record.fs for record in records], mv, about)


def find_gain(value_T, most):
    """Return counts a mV that give back each float32 sample exactly, and whether there is one.

    Parameters
    ----------
    value_T : float32 array
        mV; NaN is left aside.
    most : int
        Greatest count of the format.
    """
    finite_T = value_T[np.isfinite(value_T)].astype(np.float64)
    largest = float(np.abs(finite_T).max(initial=0.0))
    for gain in _GAINS:
        count_T = np.round(finite_T * gain)
        if largest * gain <= most and np.array_equal((count_T * (1 / gain)).astype(np.float32),
                                                     finite_T.astype(np.float32)):  # fmt: skip
            return gain, True
    return min(most / largest if largest else 1000.0, _MOST_GAIN), False


def _header_of(out):
    return out.with_name(out.name.removesuffix(".hea") + ".hea")


def _write_wfdb(out, names, rates, mv, about):
    """Write header and signals, the header last; 16 bits where they hold each sample, else 32."""
    import wfdb

    name = out.name.removesuffix(".hea")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise RecordError(f"{out}: WFDB wants a name of letters, digits, - and _, with .hea or without")
    notes, signals, gains, forms = [], [], [], []
    found = [find_gain(mv_T, 2**15 - 1) for mv_T in mv]
    form = "16" if all(exact for _, exact in found) else "32"
    for lead, mv_T, (gain, exact) in zip(names, mv, found, strict=True):
        if form == "32":
            gain, exact = find_gain(mv_T, 2**31 - 2)
        if not exact:
            gain = float(f"{gain:.6g}") * 0.99
            notes.append(f"lead {lead}: rounded to {1e3 / gain:.3g} uV")
        invalid = -(2 ** (int(form) - 1))
        count_T = np.round(np.nan_to_num(mv_T.astype(np.float64)) * gain).astype(np.int64)
        signals.append(np.where(np.isfinite(mv_T), count_T, invalid))
        gains.append(gain)
        forms.append(form)
    start, comments = about["start"], [f"{key}: {value}" for key, value in about["patient"].items()]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{name}-") as folder:
        wfdb.wrsamp(
            name, fs=rates[0], units=["mV"] * len(names), sig_name=names, fmt=forms, adc_gain=gains,
            baseline=[0] * len(names), d_signal=np.stack(signals, axis=1), write_dir=folder, comments=comments,
            base_time=start and start.time(), base_date=start and start.date(),
        )  # fmt: skip
        # Without its header a record is absent.
        _header_of(out).unlink(missing_ok=True)
        for suffix in (".dat", ".hea"):
            with replacing(out.with_name(name + suffix)) as temporary:
                (Path(folder) / (name + suffix)).replace(temporary)
    return notes


def _write_edf(out, names, rates, mv, about):
    import edfio

    lengths = [len(mv_T) / fs for mv_T, fs in zip(mv, rates, strict=True)]
    if max(lengths) - min(lengths) > 1e-9:
        raise RecordError("leads of several lengths; choose some with --leads")
    seconds, n_blocks = _block(rates, [len(mv_T) for mv_T in mv])
    notes, signals = [], []
    for lead, fs, mv_T in zip(names, rates, mv, strict=True):
        n_kept = n_blocks * round(fs * seconds)
        if n_kept < len(mv_T):
            notes.append(
                f"lead {lead}: the last {len(mv_T) - n_kept} samples left out, they fill no data record of EDF"
            )
            mv_T = mv_T[:n_kept]
        if not np.isfinite(mv_T).all():
            raise RecordError(f"lead {lead} has gaps, which EDF cannot hold; write wfdb or hdf5")
        largest = float(np.abs(mv_T).max())
        gain, exact = find_gain(mv_T, 2**15 - 1)
        top, most = _range(gain, largest) if exact else (None, 0)
        if top is None:
            # A range below 1 uV has no text of eight characters.
            top, most = _above(max(largest, 1e-3)), 2**15 - 1
            notes.append(f"lead {lead}: rounded to {1e3 * top / (2**15 - 1):.3g} uV")
        signals.append(
            edfio.EdfSignal(mv_T.astype(np.float64), fs, label=_label(lead), physical_dimension="mV",
                            physical_range=(-top, top), digital_range=(-most, most))
        )  # fmt: skip
    start, patient = about["start"], about["patient"]
    if start and start.year not in _EDF_YEARS:
        notes.append(f"start {start.isoformat()} left out: EDF holds the years {_EDF_YEARS[0]} to {_EDF_YEARS[-1]}")
        start = None
    birth = _date(patient.get("birth_date"))
    person = edfio.Patient(
        code=_word(patient.get("patient_id")), sex=_sex(patient.get("sex")), name=_word(_name_of(patient)),
        birthdate=birth,
    )  # fmt: skip
    kept = {
        "patient_id",
        "name",
        "first_name",
        "last_name",
        "sex" if person.sex != "X" else "",
        "birth_date" if birth else "",
    }
    if left := sorted(set(patient) - kept):
        notes.append(f"patient fields left out, EDF has none for them: {', '.join(left)}")
    cut = [lead for lead in names if lead not in STANDARD_LEADS and _label(lead) != lead]
    notes += [f"lead {lead}: its label is {_label(lead)!r}" for lead in cut]
    with warnings.catch_warnings():
        # It says that a fraction of a second makes the file EDF+.
        warnings.simplefilter("ignore")
        file = edfio.Edf(
            signals, patient=person, recording=edfio.Recording(startdate=start.date() if start else None),
            starttime=start.time() if start else None, data_record_duration=seconds,
        )  # fmt: skip
    with replacing(out) as temporary:
        file.write(temporary)
    return notes


def _range(gain, largest):
    """Return (mV, counts) of a range of exactly so many counts a mV, in eighths of a mV: no rounding in its text."""
    for eighths in range(int((2**15 - 1) / gain * 8), 0, -1):
        if (eighths / 8 * gain).is_integer() and len(f"-{eighths / 8:g}") <= 8:
            return (eighths / 8, int(eighths / 8 * gain)) if eighths / 8 >= largest else (None, 0)
    return None, 0


def _label(lead):
    """Return the label of EDF+: type and specification of a signal."""
    return f"ECG {lead}"[:16] if lead in STANDARD_LEADS else lead.encode("ascii", "replace").decode()[:16]


def _above(largest):
    """Return a number of at most seven characters that is not below another."""
    for digits in range(5, -1, -1):
        value = float(f"{largest * 1.0001 + 1e-5:.{digits}f}")
        if len(f"{value:g}") <= 7 and value >= largest:
            return value
    raise RecordError(f"{largest:g} mV is too large for EDF; write wfdb or hdf5")


def _block(rates, lengths):
    """Return (length of data records in s, how many) that leaves out the fewest samples: EDF holds whole ones alone."""
    found = []
    for seconds in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 2.0, 4.0, 5.0, 10.0):
        widths = [fs * seconds for fs in rates]
        if all(abs(width - round(width)) < 1e-9 and round(width) > 0 for width in widths):
            blocks = min(length // round(width) for length, width in zip(lengths, widths, strict=True))
            left = max(length - blocks * round(width) for length, width in zip(lengths, widths, strict=True))
            found += [(left, seconds > 1, -seconds, blocks)] if blocks else []
    if not found:
        raise RecordError("rates that make no whole data records; write wfdb or hdf5")
    *_, seconds, blocks = min(found)
    return -seconds, blocks


def _name_of(patient):
    return patient.get("name") or " ".join(
        patient[key] for key in ("first_name", "last_name") if key in patient
    )  # fmt: skip


def _word(text):
    return "_".join((text or "X").encode("ascii", "replace").decode().split()) or "X"


def _date(text):
    """Return the day of a text, None where it is none that EDF can hold."""
    for form in ("%Y-%m-%d", "%Y%m%d", "%d-%b-%Y"):
        try:
            return datetime.strptime(text or "", form).date()
        except ValueError:
            continue
    return None


def _sex(text):
    return text if text in ("M", "F") else "X"


def _write_hdf5(out, names, rates, mv, about):
    import h5py

    with replacing(out) as temporary, h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        signal = file.create_dataset(
            "signal", data=np.stack(mv), chunks=(1, min(len(mv[0]), 1 << 18)), compression="gzip", shuffle=True,
            fletcher32=True,
        )  # fmt: skip
        signal.attrs.update(fs=float(rates[0]), unit="mV", leads=names)
        if about["start"]:
            signal.attrs["start"] = about["start"].isoformat()
        for key, value in about["patient"].items():
            file.require_group("patient").attrs[key] = value
    return []


def _write_csv(out, names, rates, mv, about):
    """Write a column of time and one a lead; the shortest decimals that give back each float32."""
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# fs = {rates[0]:.17g}\n# unit = mV\n")
        if about["start"]:
            file.write(f"# start = {about['start'].isoformat()}\n")
        for key, value in about["patient"].items():
            file.write(f"# patient {key} = {value}\n")
        file.write(",".join(["time [s]", *(f"{_cell(name, place)} [mV]" for place, name in enumerate(names))]) + "\n")
        for number, row in enumerate(zip(*mv, strict=True)):
            values = ("" if np.isnan(value) else str(value) for value in row)
            file.write(",".join([f"{number / rates[0]:.10g}", *values]) + "\n")
    return []


def _cell(name, place):
    """Return the name of a column; one that could be taken for a time or a number says that it is a lead."""
    bare = "".join(" " if mark in ',;"\t\r\n[]()' else mark for mark in name).strip() or str(place + 1)
    return f"lead {bare}" if bare.lower() in _NO_LEADS or bare.isdigit() else bare


_WRITERS = {"wfdb": _write_wfdb, "edf": _write_edf, "hdf5": _write_hdf5, "csv": _write_csv}
