"""The pieces of the report's tables: cells, and intervals drawn to a common axis."""

import math
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from anyecg.app.report_text import interval, number

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_EMPTY = Markup("")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    kind : {"number", "text", "plot"}
        A plot cannot be sorted by.
    """

    heading: str
    kind: str = "number"


@dataclass(frozen=True)
class Row:
    """A row of a table; the first cell is its name, ``attributes`` are for the script's filters."""

    cells: list
    attributes: Markup = _EMPTY


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes
    ----------
    targets : bool
        Each row is a target, searched by name.
    stacked : bool
        Intervals stand below their values, where there are many columns.
    """

    columns: list
    rows: list
    axis: "Axis | None" = None
    targets: bool = True
    stacked: bool = False


@dataclass(frozen=True)
class Group:
    """Tables of one horizon and level.

    Attributes
    ----------
    tables : list of (str, Table)
        A table with a caption is folded.
    horizon_min, level : int, str, or None
        None: for all of them; the script shows the group that fits best what is chosen.
    """

    title: str
    tables: list
    note: str = ""
    horizon_min: int | None = None
    level: str | None = None


@dataclass(frozen=True)
class Part:
    """A section of the report."""

    name: str
    title: str
    groups: list
    intro: list = field(default_factory=list)
    figures: list = field(default_factory=list)
    notes: list = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """Where values lie in a cell, as a share of its width.

    Attributes
    ----------
    low, high, step : float
        Ends, and the distance of the grid's lines.
    middle : float
        The value without effect, drawn as a line.
    """

    low: float
    high: float
    step: float
    middle: float

    @classmethod
    def over(cls, rows, metrics, *, middle, marks=(), within=(-math.inf, math.inf)):
        """Return the axis that holds the metrics of all rows and nearly all their intervals; longer ones are cut.

        Parameters
        ----------
        rows : list of dict
        metrics : tuple of str
            Each a column with ``_low`` and ``_high`` beside it.
        marks : tuple of str
            Columns without interval.
        within : (float, float)
            Beyond which the axis never reaches.
        """
        values = [row.get(name, math.nan) for row in rows for name in (*metrics, *marks)]
        values = [middle, *(value for value in values if not math.isnan(value))]
        ends = [row.get(f"{name}{end}", math.nan) for row in rows for name in metrics for end in ("_low", "_high")]
        ends = [end for end in ends if not math.isnan(end)] or [middle]
        low = max(min(np.quantile(ends, 0.02), *values), within[0])
        high = min(max(np.quantile(ends, 0.98), *values), within[1])
        step = next((step for step in _STEPS if (high - low) / step <= 7), _STEPS[-1])
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, max(last, first + 1) * step, step, middle)

    def at(self, value):
        """Return the place of a value, in per cent with two digits."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{round(100 * share, 2):g}%"

    @property
    def style(self):
        """Return the variables by which page.css draws the grid."""
        return f"--step:{100 * self.step / (self.high - self.low):.4f}%;--middle:{self.at(self.middle)}"

    @property
    def scale(self):
        """Return the ticks as an SVG to stand in the heading."""
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        n_steps = round((self.high - self.low) / self.step)
        every = 2 if n_steps > 5 else 1
        first = round((self.middle - self.low) / self.step) % every
        ticks = [self.low + k * self.step for k in range(first, n_steps + 1, every)]
        texts = [Markup('<text x="{}" y="11">{}</text>').format(self.at(t), _minus(f"{t:z.{digits}f}")) for t in ticks]
        return Markup('<svg class="scale" aria-hidden="true">{}</svg>').format(_EMPTY.join(texts))

    def lane(self, row, metric, colour=0, marks=()):
        """Return an SVG with a value and its interval.

        Parameters
        ----------
        row : dict
        metric : str
        colour : int
            Of page.css.
        marks : tuple of (str, float)
            Further values without interval: the class of the mark, its value.
        """
        value, low, high = (row.get(f"{metric}{end}", math.nan) for end in ("", "_low", "_high"))
        drawn = []
        if not math.isnan(low):
            left, right = float(self.at(low)[:-1]), float(self.at(high)[:-1])
            drawn.append(Markup('<rect class="c{}" x="{:g}%" width="{:.4g}%"/>').format(colour, left, right - left))
        drawn += [
            Markup('<rect class="{}" x="{}"/>').format(name, self.at(mark)) for name, mark in marks if mark == mark
        ]
        if min(value, low) < self.low - 1e-9:
            drawn.append(Markup('<text class="c{}" x="-1" y="50%">‹</text>').format(colour))
        if max(value, high) > self.high + 1e-9:
            drawn.append(Markup('<text class="c{} end" x="100%" y="50%">›</text>').format(colour))
        if self.low - 1e-9 <= value <= self.high + 1e-9:
            drawn.append(Markup('<circle class="c{}" cx="{}"/>').format(colour, self.at(value)))
        return Markup("<svg>{}</svg>").format(_EMPTY.join(drawn))


def with_interval(row, metric, reason="no interval"):
    """Return a value with its CI, or with the reason why it has none."""
    low = row.get(f"{metric}_low", math.nan)
    if math.isnan(row[metric]):
        return Markup('– <small class="no">{}</small>').format(reason) if reason != "no interval" else "–"
    if math.isnan(low):
        return Markup('{} <small class="no">{}</small>').format(_minus(number(row[metric])), reason)
    return Markup("{} <small>{}</small>").format(_minus(number(row[metric])), _minus(interval(row, metric)))


def signed(row, metric):
    """Return a difference with its CI."""
    if math.isnan(row[metric]):
        return "–"
    low, high = (row.get(f"{metric}{end}", math.nan) for end in ("_low", "_high"))
    between = "no interval" if math.isnan(low) else f"{_sign(low)} to {_sign(high)}"
    return Markup("{} <small>{}</small>").format(_sign(row[metric]), between)


def _sign(value):
    return _minus(f"{value:+.3f}")


def _minus(text):
    return text.replace("-", "−")


def p_value(p):
    """Return a p-value as text."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def count_of(part, whole):
    """Return a count beside what it is part of."""
    return Markup("{:,} <small>of {:,}</small>").format(part, whole)


def key(colour):
    """Return the mark that stands for a colour in a heading."""
    return Markup('<svg class="key" aria-hidden="true"><circle class="c{}"/></svg>').format(colour)


def mark(name):
    """Return a mark without interval, to stand in a legend."""
    return Markup('<svg class="key" aria-hidden="true"><rect class="{}" x="50%"/></svg>').format(name)
