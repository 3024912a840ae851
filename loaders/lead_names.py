"""The names of leads, the same whatever the file: how one is found, and what a user says of files that name none."""

import re

from anyecg.loaders.errors import RecordError

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_PLACE = re.compile(r"^(?:ecg lead|ecg|ekg|lead|channel)[ _:-]+", re.IGNORECASE)
_NAMES = {name.lower(): name for name in STANDARD_LEADS}


def lead_name(text):
    """Return the standard name of a lead: I, II, III, aVR, aVL, aVF, V1 to V6; others as given, without 'ECG' where a
    name is left (ECG V9 is V9, ECG 1 stays)."""
    text = " ".join(str(text).split())[:80]
    bare = _PLACE.sub("", text)
    return _NAMES.get(bare.lower(), text if bare.isdigit() else bare or text)


def find_lead(lead, names):
    """Return the positions in ``names`` that a lead's name can mean: the first of just this name, else all of the same
    standard name, in capitals or not ("ii" and "ECG II" are II; MLII is a lead of its own)."""
    names = list(names)
    if lead in names:
        return [names.index(lead)]
    wanted = lead_name(lead).lower()
    return [position for position, name in enumerate(names) if lead_name(name).lower() == wanted]


def chosen_leads(names, held):
    """Return the positions of the leads that a user names, in the order in which a file holds them; all without names.

    Raises
    ------
    RecordError
        A lead that is missing, or that can be several.
    """
    if not names:
        return list(range(len(held)))
    return sorted({position_of(name, held) for name in names})


def position_of(lead, held):
    """Return where a lead stands among those that a file holds; refuse one that is missing or can be several."""
    there = find_lead(lead, held)
    if not there:
        raise RecordError(f"lead {lead!r} is missing; found {', '.join(held)}")
    if len(there) > 1:
        alike = ", ".join(held[position] for position in there)
        raise RecordError(f"lead {lead!r} can be any of {alike}; give its name as it stands there")
    return there[0]


def plain_options(**said):
    """Return what is said of all files of plain numbers of a folder, as keyword arguments of ``open_record``."""
    options = {name: value for name, value in said.items() if value is False or value}
    return {**options, "file_first": True} if options else {}
