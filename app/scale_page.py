"""A scaling experiment as a person reads it: tables for a terminal, and a page in one file."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from anyecg.app.page import COLOURS, STYLE, page, svg
from anyecg.app.report_text import aligned
from anyecg.loaders.files import write_text
from anyecg.slurm.scale_numbers import KINDS, PARTS, Law

COLOUR_OF = dict(zip((*PARTS, "all"), (*COLOURS[:4], COLOURS[7]), strict=True))
MARKERS = dict(zip((*PARTS, "all"), "os^Dv", strict=True))
SAID = {
    "strong": "The same work on every size: the same shards, the config's global batch, the config's replicates.",
    "weak": "Work that grows with the size: shards a rank, the config's batch a rank, the config's replicates a rank. "
    "The learning rate grows with the square root of the batch, and the warm-up takes the same share of the training.",
}  # fmt: skip
HEAD = (
    "part", "n", "windows/s", "95 % CI", "speed-up", "efficiency", "waiting", "for data", "for ranks",
    "node-s / M", "core-h / M", "GPU-h / M", "stopped by", "note",
)  # fmt: skip
TRAINING_HEAD = ("n", "GPUs", "global batch", "learning rate", "warm-up steps")
FORECAST_HEAD = ("part", "case", "n", "hours", "95 % CI", "core-hours", "GPU-hours", "basis")
STORAGE_HEAD = ("case", "windows stored", "pairs a window", "GB", "95 % CI")
LAW_HEAD = ("part", "scaling", "points", "a", "b", "c", "interval")


def _number(value):
    """Return a number with three digits, without an exponent; nothing for a missing one."""
    if value is None or np.isnan(value):
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def _range(low, high):
    """Return an interval as text."""
    return "–" if low is None or np.isnan(low) or not np.isfinite(high) else f"{_number(low)} to {_number(high)}"


def _cells(row):
    note = "; ".join(
        filter(None, (row["note"], f"{row['replicates']:,} replicates" if row["replicates"] is not None else ""))
    )
    return (
        row["part"], str(row["n"]), _number(row["windows_per_s"]),
        _range(row["windows_per_s_low"], row["windows_per_s_high"]), f"{row['speed_up']:.2f}",
        f"{row['efficiency']:.2f}", *(f"{row[key]:.1%}" for key in _WAITING),
        *(_number(row[f"{key}_per_million"]) for key in ("node_seconds", "core_hours", "gpu_hours")),
        f"{row['stopped']}, {row['blocks']} blocks", note,
    )  # fmt: skip


_ENDS = ("", "_low", "_high")
_WAITING = ("waiting_share", "waiting_for_data", "waiting_for_others")


def _forecast_cells(row):
    basis = "measured" if row["measured"] else "extrapolated"
    return (
        row["part"], row["case"], str(row["n"]), _number(row["hours"]), _range(row["hours_low"], row["hours_high"]),
        _number(row["core_hours"]), _number(row["gpu_hours"]), basis + " (!)" * bool(row["warning"]),
    )  # fmt: skip


def _storage_cells(row):
    return (
        row["case"], f"{row['windows'] / 1e6:.1f} million", f"{row['pairs_a_window']:.2f}", _number(row["gb"]),
        _range(row["gb_low"], row["gb_high"]),
    )  # fmt: skip


def _law_cells(row):
    return (
        row["part"], row["kind"], str(row["points"]), *(_number(1e6 * row[key]) for key in "abc"),
        f"none: {row['reason']}" if row["reason"] else "95 %",
    )  # fmt: skip


def _training_cells(rows):
    return [
        (
            str(row["n"]),
            str(row["gpus"]),
            f"{row['batch']:,}",
            f"{row['learning_rate']:.3g}",
            f"{row['warmup_steps']:,}",
        )
        for row in rows
        if row["part"] == "finetune"
    ]


def text_scale(table):
    """Return the tables as lines for a terminal.

    Parameters
    ----------
    table : dict
        points, rows, laws, storage of ``anyecg.slurm.scale_numbers``; setting, machine, versions, data, seconds.
    """
    parts = []
    for kind in KINDS:
        rows = [row for row in table["points"] if row["kind"] == kind]
        if rows:
            parts.append(f"{kind} scaling over {rows[0]['unit']}\n{aligned([HEAD, *map(_cells, rows)])}")
            if training := _training_cells(rows):
                parts.append(aligned([TRAINING_HEAD, *training]))
    shown = [row for row in table["rows"] if row["kind"] == "strong"]
    parts.append(f"full MC-MED, strong scaling\n{aligned([FORECAST_HEAD, *map(_forecast_cells, shown)])}")
    parts += _warnings(shown)
    parts.append(aligned([STORAGE_HEAD, *map(_storage_cells, table["storage"])]))
    reasons = dict.fromkeys(row["reason"] for row in table["laws"] if row["reason"])
    parts += [f"no interval of the forecast: {reason}" for reason in reasons]
    return "\n\n".join(parts)


def _warnings(rows):
    """Return a line for each warning of a forecast, with the sizes that it is about."""
    sizes: dict[str, list] = {}
    for row in rows:
        for warning in filter(None, row["warning"].split("; ")):
            sizes.setdefault(warning, []).append(row["n"])
    return [
        f"(!) {', '.join(str(n) for n in dict.fromkeys(found))} {rows[0]['unit']}: {warning}"
        for warning, found in sizes.items()
    ]


def _sizes(rows):
    return sorted({row["n"] for row in rows})


def _axes(width=5.4, height=3.6):
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.grid(color="#e6eaee")
    axes.set_axisbelow(True)
    return figure, axes


def _on_sizes(axes, sizes, unit):
    """Let the axis of sizes be logarithmic, with a tick at every size."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_xlabel(unit)
    axes.set_xlim(min(sizes) / 1.15, max(sizes) * 1.15)


def _by_part(rows):
    return {part: found for part in (*PARTS, "all") if (found := [row for row in rows if row["part"] == part])}


def draw_rates(rows, laws):
    """Draw the rates with their intervals, the fitted laws, and dashed what the smallest job alone would promise."""
    figure, axes = _axes()
    sizes = _sizes(rows)
    grid = np.geomspace(min(sizes), max(sizes), 50)
    for part, of_part in _by_part(rows).items():
        n, rate, low, high = (
            np.array([row[key] for row in of_part], float) for key in ("n", *(f"windows_per_s{e}" for e in _ENDS))
        )
        law = next(Law(row["a"], row["b"], row["c"]) for row in laws if row["part"] == part)
        axes.plot(grid, rate[0] / n[0] * grid, color=COLOUR_OF[part], lw=1, ls=":")
        axes.plot(grid, [law.rate(one) for one in grid], color=COLOUR_OF[part], lw=1.4)
        # An interval that reaches zero has no end on this axis.
        known = np.isfinite(high) & (low > 0)
        axes.errorbar(
            n, rate, yerr=np.where(known, [rate - low, high - rate], 0.0), fmt=MARKERS[part], ms=6, lw=1.4,
            color=COLOUR_OF[part],
        )  # fmt: skip
    _on_sizes(axes, sizes, rows[0]["unit"])
    axes.set_yscale("log")
    return svg(figure, bbox_inches="tight")


def draw_lines(rows, key, *, scale=1.0, log=False, top=None):
    """Draw one figure of every part over the sizes; an axis that is not logarithmic begins at 0."""
    figure, axes = _axes()
    sizes = _sizes(rows)
    for part, of_part in _by_part(rows).items():
        axes.plot(
            [row["n"] for row in of_part], [row[key] * scale for row in of_part], marker=MARKERS[part], ms=6, lw=1.4,
            color=COLOUR_OF[part],
        )  # fmt: skip
    _on_sizes(axes, sizes, rows[0]["unit"])
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, top or 1.08 * max(1.0, *(row[key] * scale for row in rows)))
    return svg(figure, bbox_inches="tight")


def draw_forecast(rows, unit):
    """Draw the hours of each part of full MC-MED over the sizes, with intervals; hollow where extrapolated."""
    figure, axes = _axes(11.4, 4.2)
    case = next((row["case"] for row in rows if row["case"]), "")
    shown = _by_part([row for row in rows if row["case"] in ("", case)])
    sizes = _sizes(rows)
    for part, of_part in shown.items():
        n, hours, low, high = (
            np.array([row[key] for row in of_part], float) for key in ("n", "hours", "hours_low", "hours_high")
        )
        measured = np.array([row["measured"] for row in of_part])
        axes.plot(n, hours, color=COLOUR_OF[part], lw=1.4)
        axes.fill_between(n, low, high, where=np.isfinite(low), color=COLOUR_OF[part], alpha=0.18, lw=0)
        axes.plot(n[measured], hours[measured], MARKERS[part], ms=6, color=COLOUR_OF[part])
        axes.plot(n[~measured], hours[~measured], MARKERS[part], ms=6, color=COLOUR_OF[part], mfc="none")
    _on_sizes(axes, sizes, unit)
    axes.set_yscale("log")
    axes.set_ylabel("hours")
    return svg(figure, bbox_inches="tight")


def _legend(rows):
    """Return (part, CSS variable of its colour, points of its mark) of each part, for the page."""
    return [
        (part, f"--c{COLOURS.index(COLOUR_OF[part])}", _MARKS[MARKERS[part]])
        for part in COLOUR_OF
        if any(row["part"] == part for row in rows)
    ]


# As polygons in a square of 12; a circle is one of many sides.
_CIRCLE = " ".join(f"{6 + 4 * np.cos(angle):.1f},{6 + 4 * np.sin(angle):.1f}" for angle in np.linspace(0, 6.283, 24))
_MARKS = {
    "o": _CIRCLE,
    "s": "2,2 10,2 10,10 2,10",
    "^": "6,2 10,10 2,10",
    "D": "6,1 11,6 6,11 1,6",
    "v": "2,2 10,2 6,10",
}


def _figures(rows, laws):
    drawn = [
        ("Windows/s: marks measured, lines fitted, dotted ideal", draw_rates(rows, laws)),
        ("Efficiency: windows/s for each of n, against the smallest", draw_lines(rows, "efficiency")),
        ("Share of waiting, %", draw_lines(rows, "waiting_share", scale=100.0, top=105)),
        ("Core-hours a million windows", draw_lines(rows, "core_hours_per_million", log=True)),
    ]
    if any(row["gpus"] for row in rows):
        drawn.append(("GPU-hours a million windows", draw_lines(rows, "gpu_hours_per_million", log=True)))
    return [{"caption": caption, "picture": picture} for caption, picture in drawn]


def _machine(kinds):
    return "; ".join(
        f"{kind['ranks']} rank{'s' * (kind['ranks'] > 1)} on {kind['cpu']}, {kind['cores_of_rank']} "
        f"core{'s' * (kind['cores_of_rank'] > 1)} each, {kind['memory_gb']} GB"
        + (f", {kind['gpu']}" if kind["gpu"] else ", no GPU")
        for kind in kinds
    )


def _forecast_said(table):
    reasons = list(dict.fromkeys(row["reason"] for row in table["laws"] if row["reason"]))
    return (
        "15.6 million training pairs, 20 epochs (stream: the data path of them alone); 3.9, 3.0 and 2.0 million test "
        "pairs at 60, 30 and 15 min, 108 targets, 1,000 replicates. Marks are hollow where the size was not measured, "
        "and those of sharding are of the first case of the cap. Prediction and validation were not measured. Bands "
        "are 95 % intervals" + (f"; there is none where: {'; '.join(reasons)}" if reasons else "") + "."
    )  # fmt: skip


def write_page(folder, table):
    """Write ``scale.html``; return its path (``table`` as in ``text_scale``)."""
    folder, points = Path(folder), table["points"]
    unit = points[0]["unit"]
    kinds = []
    with matplotlib.rc_context(STYLE):
        for kind in KINDS:
            rows = [row for row in points if row["kind"] == kind]
            laws = [row for row in table["laws"] if row["kind"] == kind]
            kinds.append(
                {
                    "title": f"{kind.capitalize()} scaling", "said": SAID[kind], "figures": _figures(rows, laws),
                    "legend": _legend(rows), "rows": list(map(_cells, rows)), "training": _training_cells(rows),
                }
            )  # fmt: skip
        strong = [row for row in table["rows"] if row["kind"] == "strong"]
        picture = draw_forecast(strong, unit)
    html = page(
        "scale.html.j2", unit=unit.capitalize(), numbers=", ".join(str(n) for n in _sizes(points)),
        machine=_machine(table["machine"]), kinds=kinds, head=HEAD, training_head=TRAINING_HEAD,
        forecast_said=_forecast_said(table), forecast_picture=picture, forecast_legend=_legend(strong),
        forecast_head=FORECAST_HEAD,
        forecast_rows=list(map(_forecast_cells, strong)), warnings=_warnings(strong), storage_head=STORAGE_HEAD,
        storage=list(map(_storage_cells, table["storage"])),
        storage_said=f"{table['data']['bytes_a_window']:,.0f} bytes a stored window and its share of the tables, in "
        "shards whose chunks are full; "
        f"pairs a window from {table['data']['overlap_from']}. The cap is that of 200 windows a draw.",
        law_head=LAW_HEAD, laws=list(map(_law_cells, table["laws"])),
        settings={**table["setting"], "seconds a part, at most": table["seconds"], **table["versions"]},
    )  # fmt: skip
    write_text(folder / "scale.html", html)
    return folder / "scale.html"
