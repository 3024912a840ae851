"""``anyecg inspect``: what a recording is, told and drawn, as text or as a PNG on ECG paper."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from anyecg.loaders.errors import AnyECGError, RecordError
from anyecg.loaders.lead_names import chosen_leads
from anyecg.loaders.records import open_recording

# Pictures of a whole day would be gigabytes.
_MOST_SECONDS = 60.0
_MM_PER_S, _MM_PER_MV, _MM_PER_LEAD = 25, 10, 25
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_COLUMNS, _ROWS = 96, 4


def inspect_file(path, *, as_json=False, png=None, start=0.0, seconds=10.0, chosen=None, with_patient=False, **options):
    """Return what a file is, as text.

    Parameters
    ----------
    path, options
        As for ``anyecg.loaders.records.open_record``.
    as_json : bool
        JSON instead, without a picture.
    png : path, optional
        Picture to write instead of the one of braille dots.
    start, seconds : float
        What the picture shows, in s.
    chosen : list of str, optional
        Leads that are told and drawn; all by default.
    with_patient : bool
        Tell the patient fields that the file holds, too.

    Raises
    ------
    RecordError
        Unreadable; no such lead; nothing at that time.
    """
    records, opened = open_recording(path, **options)
    try:
        by_name = {opened.leads[place]: records[place] for place in chosen_leads(chosen, opened.leads)}
    except RecordError as cause:
        raise RecordError(f"{path}: {cause}") from None
    if not 0 < seconds <= _MOST_SECONDS:
        raise AnyECGError(f"--seconds {seconds:g}; wanted more than 0, at most {_MOST_SECONDS:g}")
    if not math.isfinite(start):
        raise AnyECGError(f"--start {start:g}; wanted a time in the recording, in s")
    found = _found(path, by_name, opened, with_patient)
    if png is not None:
        draw_png(png, _cut(path, by_name, start, seconds), start, title=_title(path, found))
    if as_json:
        return json.dumps(found, indent=1, ensure_ascii=False)
    lines = [_title(path, found)]
    lines += [f"  {key}: {value}" for key, value in found["about"].items()]
    lines += [f"  patient: {key}: {value}" for key, value in found.get("patient", {}).items()]
    lines += [f"  note: {note}" for note in found["notes"]]
    lines += [_lead_line(lead) for lead in found["leads"]]
    if png is None:
        for name, (_, mv_T) in _cut(path, by_name, start, seconds).items():
            lines += ["", f"{name} ({_span(mv_T)})", *braille(mv_T, n_columns=_COLUMNS, n_rows=_ROWS)]
    else:
        lines.append(f"  picture: {png}")
    return "\n".join(lines)


def _found(path, by_name, opened, with_patient):
    leads = [
        {"name": name, "fs": record.fs, "samples": record.n_samples, "seconds": record.n_samples / record.fs,
         **_readable(record)}
        for name, record in by_name.items()
    ]  # fmt: skip
    found = {
        "file": Path(path).name, "format": opened.form, "start": opened.start and opened.start.isoformat(),
        "leads": leads, "about": opened.about, "notes": opened.notes,
    }  # fmt: skip
    return found | ({"patient": opened.patient} if with_patient else {})


def _readable(record):
    """Return the unit of a lead's samples, mV, or why there are none."""
    try:
        record.read(0, min(1, record.n_samples))
    except RecordError as cause:
        return {"unit": None, "problem": str(cause)}
    return {"unit": "mV"}


def _title(path, found):
    leads = found["leads"]
    rates = "/".join(dict.fromkeys(f"{lead['fs']:g}" for lead in leads))
    longest = max(lead["seconds"] for lead in leads)
    since = f", from {found['start']}" if found["start"] else ""
    return f"{Path(path).name}: {found['format']}, {len(leads)} leads, {rates} Hz, {longest:g} s{since}"


def _lead_line(lead):
    problem = f"; not shown: {lead['problem']}" if "problem" in lead else ""
    return f"  {lead['name']}: {lead['samples']} samples at {lead['fs']:g} Hz, {lead['seconds']:g} s{problem}"


def _cut(path, by_name, start, seconds):
    """Return (fs, float32 mV) of each lead in the span that is shown; leads that are no voltage are left out."""
    shown = {}
    for name, record in by_name.items():
        first, last = (min(round(at * record.fs), record.n_samples) for at in (start, start + seconds))
        if first < 0 or first >= last:
            raise RecordError(f"{path}: nothing from {start:g} s on; it holds {record.n_samples / record.fs:g} s")
        try:
            shown[name] = record.fs, record.read(first, last)
        except RecordError as cause:
            if "wanted a voltage" not in str(cause):
                raise
    return shown


def _span(mv_T):
    finite_T = mv_T[np.isfinite(mv_T)]
    return f"{finite_T.min():.3g} to {finite_T.max():.3g} mV" if len(finite_T) else "no valid sample"


def braille(mv_T, *, n_columns, n_rows):
    """Draw a lead with braille dots, 2 x 4 a character; a column of dots spans all of its samples, spikes too.

    Returns
    -------
    list of str
        ``n_rows`` lines of ``n_columns`` characters; a column without a valid sample is empty.
    """
    finite_T = mv_T[np.isfinite(mv_T)]
    cells = np.zeros((n_rows, n_columns), np.int64)
    if len(finite_T):
        low, high = float(finite_T.min()), float(finite_T.max())
        span = (high - low) or 1.0
        edges = np.linspace(0, len(mv_T), 2 * n_columns + 1).astype(int)
        for column, (first, last) in enumerate(pairwise(edges)):
            # One sample of the next column joins the two.
            part = mv_T[first : max(last + 1, first + 1)]
            part = part[np.isfinite(part)]
            if not len(part):
                continue
            top, bottom = ((high - float(value)) / span * (4 * n_rows - 1) for value in (part.max(), part.min()))
            for dot in range(round(top), round(bottom) + 1):
                cells[dot // 4, column // 2] |= _DOTS[dot % 4][column % 2]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def draw_png(path, leads, start, *, title):
    """Draw leads below one another on ECG paper, 25 mm/s and 10 mm/mV, at 150 dots an inch.

    Parameters
    ----------
    leads : dict of str to (fs, float32 mV)
    start : float
        Time of the first sample in s.
    """
    from matplotlib.figure import Figure

    from anyecg.loaders.files import replacing

    if not leads:
        raise RecordError("no lead is a voltage; nothing to draw")
    seconds = max(len(mv_T) / fs for fs, mv_T in leads.values())
    width, height = seconds * _MM_PER_S + 10, len(leads) * _MM_PER_LEAD + 20
    figure = Figure(figsize=(width / 25.4, height / 25.4), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    for step, colour, thick in ((1, "#f7d9d9", 0.3), (5, "#eba9a9", 0.5)):
        axes.vlines(np.arange(0, width, step), 0, height, colour, linewidth=thick)
        axes.hlines(np.arange(0, height, step), 0, width, colour, linewidth=thick)
    for row, (name, (fs, mv_T)) in enumerate(leads.items()):
        middle = height - 15 - (row + 0.5) * _MM_PER_LEAD
        axes.plot(5 + np.arange(len(mv_T)) / fs * _MM_PER_S, middle + mv_T * _MM_PER_MV, "k", linewidth=0.6)
        axes.text(2, middle + 8, name, fontsize=8, weight="bold")
    axes.text(2, height - 6, f"{title}   {start:g} s on   25 mm/s  10 mm/mV", fontsize=7, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
