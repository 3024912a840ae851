"""HL7 aECG, Philips Sierra XML, GE MUSE XML and SCP-ECG, parsed by ecgdatakit and mapped to the plain form."""

import warnings
from pathlib import Path

from anyecg.loaders.errors import RecordError
from anyecg.loaders.formats import Recording, as_utc, found_lead, texts

_PARSERS = {
    "aecg": ("hl7_aecg", "HL7aECGParser", "HL7 aECG"),
    "sierra": ("sierra_xml", "SierraXMLParser", "Philips Sierra XML"),
    "muse": ("ge_muse_xml", "GEMuseXMLParser", "GE MUSE XML"),
    "scp": ("scp_ecg", "SCPECGParser", "SCP-ECG"),
}
_MOST_BYTES = 64 << 20


def load(kind):
    """Import what parses a kind; return its class."""
    import importlib

    module, name, _ = _PARSERS[kind]
    return getattr(importlib.import_module(f"ecgdatakit.parsing.parsers.{module}"), name)


def read(file, kind, options):
    """Parse an open file; its leads have the units, rates and names that it gives.

    Raises
    ------
    RecordError
        Not well formed, entities declared, no samples, a wrong checksum, another version than the library reads.
    """
    from ecgdatakit.exceptions import ChecksumWarning, ECGDataKitError

    if file.seek(0, 2) > _MOST_BYTES:
        raise RecordError(f"{file.tell()} bytes; wanted at most {_MOST_BYTES} of this format")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = load(kind)().parse(Path(f"/proc/self/fd/{file.fileno()}"))
        except ECGDataKitError as cause:
            said = str(cause).replace(f"/proc/self/fd/{file.fileno()}", "the file")
            raise RecordError(f"not a {_PARSERS[kind][2]} file that can be read ({said})") from None
    for warning in heard:
        if issubclass(warning.category, ChecksumWarning):
            raise RecordError(f"damaged ({warning.message}); fetch the file again")
    version = found.file_format.version
    device = found.recording.device
    about = texts(
        {
            "vendor": device.manufacturer, "device": device.model, "software": device.software_version,
            "document": found.raw_metadata.get("document_type"), "version": version,
        }
    )  # fmt: skip
    return Recording(
        form=f"{_PARSERS[kind][2]} {version}".strip(),
        leads=[_lead(lead, found) for lead in found.leads],
        start=as_utc(found.recording.date),
        patient=texts(found.patient.to_dict() | {"medications": ", ".join(found.patient.medications)}),
        about=about,
        notes=[" ".join(str(warning.message).split())[:200] for warning in heard][:20],
    )


def _lead(lead, found):
    """Return one lead; the exact rate of an aECG stands apart from the rounded one."""
    exact = found.raw_metadata.get("rhythm_time", {}).get("sampling_rate_exact")
    fs = exact if exact and abs(exact - lead.sampling_rate) < 1 else lead.sampling_rate
    if abs(fs - round(fs)) < 1e-6 * fs:
        fs = round(fs)
    if lead.is_raw:
        unit, factor, offset = lead.resolution_unit, lead.resolution, lead.offset
    else:
        unit, factor, offset = lead.units, 1.0, 0.0
    return found_lead(lead.label, fs, unit or "none given", lead.samples, factor=factor, offset=offset)
