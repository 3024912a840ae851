"""The profile of a data path as a person reads it: a table, a picture, a page in one file, and a trace."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from anyecg.app.page import COLOURS, STYLE, page, svg
from anyecg.app.report_text import aligned
from anyecg.loaders.files import replacing, write_document, write_text
from anyecg.slurm.profile_numbers import NAMES, trace_events

LIMIT_COLOURS = {"disk": "#7a4fa3", "memory": "#4f8a3c", "pcie": "#b8860b", "model": "#c8553d"}
LIMIT_NAMES = {"disk": "disk", "memory": "memory", "pcie": "PCIe", "model": "model"}
REACHED = "#1c2430"
HEAD = ("stage", "events", "windows", "windows/s alone", "MB/s", "% of the time", "% of the waiting")
# Two labels of lines stand on one row when they are this far apart, as a share of the picture's width.
LABEL_WIDTH = 0.2


def _cells(row):
    return (
        NAMES[row["stage"]], f"{row['events']:,}", f"{row['n_windows']:,}",
        f"{row['windows_per_s']:,.0f}" if row["n_windows"] else "–",
        f"{row['mb_per_s']:,.1f}" if row["n_bytes"] else "–",
        f"{row['share']:.1%}", f"{row['share_of_waiting']:.1%}",
    )  # fmt: skip


def _limit_cells(profile):
    rate = profile["whole"]["windows_per_s"]
    return [
        (LIMIT_NAMES[name], f"{limit:,.0f}", f"{rate / limit:.1%}" + " (nearest)" * (name == profile["nearest"]))
        for name, limit in profile["limits"].items()
    ]


def _whole(profile):
    whole = profile["whole"]
    rates = whole["windows_per_s_per_rank"]
    spread = f"{min(rates):,.0f} to {max(rates):,.0f} a rank" if len(rates) > 1 else "one rank"
    return (
        f"{whole['windows_per_s']:,.0f} windows/s on {whole['ranks']} rank{'s' * (whole['ranks'] > 1)} ({spread}); "
        f"{whole['n_windows']:,} windows in {whole['seconds']:.1f} s; "
        f"the consumer waited {whole['waiting_share']:.1%} of the time"
    )


def text_profile(profile):
    """Return the figures as lines for a terminal."""
    stages = aligned([HEAD, *map(_cells, profile["stages"])])
    limits = aligned([("physical limit", "windows/s", "reached"), *_limit_cells(profile)])
    return f"{stages}\n\n{limits}\n\n{_whole(profile)}\n{profile['verdict']}"


def _rows_of_labels(places):
    """Return for each place, a share of the width, the row on which its label overlaps no other."""
    ends: list[float] = []
    rows = {}
    for number in np.argsort(places, kind="stable"):
        row = next((row for row, end in enumerate(ends) if places[number] - end >= LABEL_WIDTH), len(ends))
        ends[row : row + 1] = [places[number]]
        rows[int(number)] = row
    return [rows[number] for number in range(len(places))]


def _lines(profile):
    """Return (windows/s, label, colour, style) of every line of the picture."""
    lines = [
        (limit, f"{LIMIT_NAMES[name]} {_short(limit)}", LIMIT_COLOURS[name], "--")
        for name, limit in profile["limits"].items()
    ]
    rate = profile["whole"]["windows_per_s"]
    return [*lines, (rate, f"reached {_short(rate)}", REACHED, "-")]


def _short(rate):
    """Return a rate with three digits and the unit that suits it."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}/s"
    return f"{rate:.3g} /s"


def draw_roofline(profile):
    """Draw what each stage could do alone, the physical limits, and what was reached, as an SVG."""
    rows = [row for row in profile["stages"] if row["n_windows"]]
    lines = _lines(profile)
    values = [line[0] for line in lines] + [row["windows_per_s"] for row in rows]
    low, high = 10 ** np.floor(np.log10(min(values) / 2)), max(values) * 4
    places = [float(np.log(line[0] / low) / np.log(high / low)) for line in lines]
    label_rows = _rows_of_labels(places)
    figure = Figure(figsize=(11.8, 1.3 + 0.42 * len(rows) + 0.26 * (max(label_rows) + 1)))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, row["windows_per_s"] - low, left=low, height=0.62, color=COLOURS[0], alpha=0.85)
        axes.annotate(
            _short(row["windows_per_s"]), (1, place), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", color=COLOURS[0], fontsize=10,
        )  # fmt: skip
    for (rate, label, colour, style), height in zip(lines, label_rows, strict=True):
        axes.axvline(rate, color=colour, ls=style, lw=2.2 if style == "-" else 1.6)
        axes.annotate(
            label, (rate, 1), xycoords=("data", "axes fraction"), xytext=(0, 6 + 15 * height),
            textcoords="offset points", ha="center", color=colour, fontsize=10,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlim=(low, high), xlabel="windows/s (10-s windows, all ranks, logarithmic)")
    axes.set_yticks(range(len(rows)), [NAMES[row["stage"]] for row in rows], fontsize=11)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.grid(axis="x", color="#e6eaee")
    axes.set_axisbelow(True)
    return svg(figure, bbox_inches="tight")


def _machine(profile):
    kinds = [
        f"{kind['ranks']} rank{'s' * (kind['ranks'] > 1)} on {kind['cpu']}, {kind['cores_of_rank']} cores, "
        f"{kind['memory_gb']} GB" + (f", {kind['gpu']}" if kind["gpu"] else ", no GPU")
        for kind in profile["machine"]
    ]
    return "; ".join(kinds)


def write_profile(folder, profile, traces):
    """Write ``profile.json``, ``trace.json`` and ``profile.html``; return the page's path.

    Parameters
    ----------
    folder : path
    profile : dict
        The figures of ``anyecg.slurm.profile.profile``.
    traces : list of (events, thread names)
        Of each rank.
    """
    folder = Path(folder)
    write_document(folder / "profile.json", "anyecg-profile", profile)
    events = [event for rank, (some, names) in enumerate(traces) for event in trace_events(rank, some, names)]
    with replacing(folder / "trace.json") as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
    with matplotlib.rc_context(STYLE):
        roofline = draw_roofline(profile)
    settings = {**profile["setting"], "disk read by": profile["disk_read_by"], **profile["versions"]}
    html = page(
        "profile.html.j2", verdict=profile["verdict"], whole=_whole(profile), roofline=roofline,
        head=HEAD, stages=list(map(_cells, profile["stages"])), limits=_limit_cells(profile),
        machine=_machine(profile), settings=settings, with_model=profile["with_model"],
    )  # fmt: skip
    write_text(folder / "profile.html", html)
    return folder / "profile.html"
