"""DICOM waveforms: 12-lead and general ECG, 8 to 32 bits, several multiplex groups; the elements are parsed by pydicom.

DICOM PS3.3, C.10.9 and C.10.10.
"""

import warnings
from datetime import datetime, timedelta, timezone

import numpy as np

from anyecg.loaders.errors import RecordError
from anyecg.loaders.formats import Recording, as_utc, found_lead, texts
from anyecg.loaders.wfdb_header import MAX_LEADS, MAX_SAMPLES

_TYPES = {(8, "SB"): "i1", (8, "UB"): "u1", (16, "SS"): "<i2", (16, "US"): "<u2", (32, "SL"): "<i4", (32, "UL"): "<u4"}
_BIG = {"1.2.840.10008.1.2.2"}
# Codes of ISO 11073-10101 (2:1 is lead I) and of SCP-ECG (5.6.3-9-1) end in the same numbers.
_CODES = {
    "1": "I", "2": "II", "3": "V1", "4": "V2", "5": "V3", "6": "V4", "7": "V5", "8": "V6", "61": "III", "62": "aVR",
    "63": "aVL", "64": "aVF",
}  # fmt: skip
_NO_RHYTHM = ("MEDIAN", "TEMPLATE", "AVERAGE", "REPRESENTATIVE")


def load(kind):
    """Import what parses a DICOM file."""
    import pydicom

    return pydicom


def read(file, kind, options):
    """Parse an open file; groups of average beats are left out, a group that begins later is NaN before.

    Raises
    ------
    RecordError
        No waveform in it, fewer bytes than it says, samples of an unknown kind.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(file, stop_before_pixels=True)
        groups = list(data.get("WaveformSequence") or [])
        if not groups:
            raise RecordError(f"holds no waveform ({data.get('SOPClassUID', 'no class')}); wanted a DICOM ECG")
        syntax = str(data.file_meta.get("TransferSyntaxUID", ""))
        rhythm = [group for group in groups if not _is_average(group)]
        notes = [f"{len(groups) - len(rhythm)} groups of average beats left out"] if len(rhythm) < len(groups) else []
        offsets = [_number(group.get("MultiplexGroupTimeOffset"), 0.0) for group in rhythm]
        first = min(offsets, default=0.0)
        leads: list = []
        order = ">" if syntax in _BIG else "<"
        for group in groups:
            _samples(group, order)
        for group, offset in zip(rhythm, offsets, strict=True):
            leads += _leads(group, (offset - first) / 1e3, order)
            if len(leads) > MAX_LEADS:
                break
        return Recording(
            form=f"DICOM ({pydicom.uid.UID(str(data.get('SOPClassUID', ''))).name})",
            leads=leads,
            start=_start(data, first / 1e3),
            patient=_patient(data),
            about=texts({"vendor": data.get("Manufacturer"), "device": data.get("ManufacturerModelName")}),
            notes=notes,
        )


def _is_average(group):
    label = str(group.get("MultiplexGroupLabel") or "").upper()
    return any(word in label for word in _NO_RHYTHM)


def _number(value, default=None):
    try:
        number = float(value if value is not None else default)
    except (TypeError, ValueError):
        raise RecordError(f"a number is {str(value)[:40]!r}") from None
    if not np.isfinite(number):
        raise RecordError(f"a number is {str(value)[:40]!r}; wanted a finite one")
    return number


def _samples(group, order):
    """Return the counts of a multiplex group, (samples, leads), and its rate."""
    n_leads, n_samples = (int(_number(group.get(f"NumberOfWaveform{what}"))) for what in ("Channels", "Samples"))
    kind = int(_number(group.get("WaveformBitsAllocated"))), str(group.get("WaveformSampleInterpretation"))
    if kind not in _TYPES:
        raise RecordError(f"samples of {kind[0]} bits, {kind[1]!r}; wanted one of {', '.join(k for _, k in _TYPES)}")
    fs = _number(group.get("SamplingFrequency"))
    if not (1 <= n_leads <= MAX_LEADS and 1 <= n_samples <= MAX_SAMPLES and 0 < fs < 1e6):
        raise RecordError(f"{n_leads} leads of {n_samples} samples at {fs:g} Hz; wanted 1 to {MAX_LEADS} leads")
    dtype = np.dtype(_TYPES[kind]).newbyteorder(order)
    data = group.get("WaveformData") or b""
    if len(data) < n_leads * n_samples * dtype.itemsize:
        raise RecordError(f"cut short: {len(data)} of {n_leads * n_samples * dtype.itemsize} bytes of samples")
    return np.frombuffer(data, dtype, n_leads * n_samples).reshape(n_samples, n_leads), fs


def _leads(group, seconds_late, order):
    """Return the leads of a multiplex group."""
    count_TL, fs = _samples(group, order)
    n_samples, n_leads = count_TL.shape
    channels = list(group.get("ChannelDefinitionSequence") or [])
    if len(channels) != n_leads:
        raise RecordError(f"{len(channels)} leads described; wanted {n_leads}")
    padding = _padding(group.get("WaveformPaddingValue"), count_TL)
    late = round(seconds_late * fs)
    if late + n_samples > MAX_SAMPLES:
        raise RecordError(f"a group begins {seconds_late:g} s late; wanted at most {MAX_SAMPLES} samples")
    return [_lead(channel, count_TL[:, place], fs, late, padding) for place, channel in
            enumerate(channels)]  # fmt: skip


def _padding(value, count_TL):
    """Return the count that stands for no sample, None without one.

    One amid the counts of the signal, as 0 often is, cannot: those are samples.
    """
    if isinstance(value, bytes) and len(value) >= count_TL.dtype.itemsize:
        value = np.frombuffer(value, count_TL.dtype, 1)[0]
    if not isinstance(value, (int, np.integer)):
        return None
    others = count_TL[count_TL != value]
    return None if others.size and others.min() < value < others.max() else int(value)


def _lead(channel, count_T, fs, late, padding):
    units = channel.get("ChannelSensitivityUnitsSequence")
    unit = str(units[0].get("CodeValue")) if units else "none given"
    factor = _number(channel.get("ChannelSensitivity"), 1.0)
    factor *= _number(channel.get("ChannelSensitivityCorrectionFactor"), 1.0)
    # The baseline is given in the unit of the sensitivity.
    offset = _number(channel.get("ChannelBaseline"), 0.0)
    value_T = np.full(late + len(count_T), np.nan)
    value_T[late:] = count_T
    if padding is not None:
        value_T[late:][count_T == padding] = np.nan
    return found_lead(_name(channel), fs, unit, value_T, factor=factor, offset=offset)


def _name(channel):
    """Return a lead's name by its code, or by its text: Lead I (Einthoven) is I."""
    source = (channel.get("ChannelSourceSequence") or [None])[0]
    if source is not None:
        code, scheme = str(source.get("CodeValue") or ""), str(source.get("CodingSchemeDesignator") or "")
        number = code.rpartition("-" if scheme == "SCPECG" else ":")[2]
        if scheme in ("MDC", "SCPECG") and number in _CODES:
            return _CODES[number]
        return str(source.get("CodeMeaning") or code).split("(")[0]
    return str(channel.get("ChannelLabel") or f"channel {channel.get('WaveformChannelNumber', '')}")


def _start(data, seconds):
    """Return when the first group begins, None where the file does not say."""
    text = str(data.get("AcquisitionDateTime") or "")
    if not text and data.get("AcquisitionDate") and data.get("AcquisitionTime"):
        text = f"{data.get('AcquisitionDate')}{data.get('AcquisitionTime')}"
    digits, sign, zone = text, "", ""
    for sign in "+-":
        digits, found, zone = text.partition(sign)
        if found:
            break
    whole, _, fraction = digits.partition(".")
    # Minutes and seconds may be missing; strptime would take them from the digits before.
    if not whole.isdigit() or len(whole) not in (10, 12, 14):
        return None
    try:
        moment = datetime.strptime(whole.ljust(14, "0"), "%Y%m%d%H%M%S")
        moment += timedelta(microseconds=int((fraction or "0")[:6].ljust(6, "0")), seconds=seconds)
        zone = zone or str(data.get("TimezoneOffsetFromUTC") or "")[1:]
        if not zone:
            return as_utc(moment)
        ahead = timedelta(hours=int(zone[:2]), minutes=int(zone[2:4]))
        sign = sign if sign in text else str(data.get("TimezoneOffsetFromUTC"))[0]
        return as_utc(moment.replace(tzinfo=timezone(-ahead if sign == "-" else ahead)))
    except (ValueError, OverflowError):
        return None


def _patient(data):
    names = {"name": "PatientName", "patient_id": "PatientID", "birth_date": "PatientBirthDate", "sex": "PatientSex",
             "age": "PatientAge", "height_m": "PatientSize", "weight_kg": "PatientWeight"}  # fmt: skip
    return texts({name: data.get(element) for name, element in names.items()})
