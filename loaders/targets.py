"""Laboratory targets: component + direction + limit, and the label that a result gives."""

import csv
import io
import math
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import polars as pl

from anyecg.loaders.errors import CohortError

COLUMNS = ("component", "direction", "limit", "unit")
# Results as text: an optional comparison sign, then a number; everything else ("Negative") is no number.
RESULT = r"^\s*(<=|>=|<|>|≤|≥)?\s*([-+]?(?:\d+(?:,\d{3})*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*$"


@dataclass(frozen=True)
class Target:
    """One target: a result of ``component`` beyond ``limit`` in ``direction`` is abnormal.

    Attributes
    ----------
    component, unit : str
        As the source writes them.
    direction : "low" or "high"
    limit : float
    paper_auroc : float
        The paper's figure for the 1-h horizon; NaN for a table of one's own.
    paper_windows, paper_positives : int
        The paper's number of measured and of abnormal windows; 0 for a table of one's own.
    """

    component: str
    direction: str
    limit: float
    unit: str
    paper_auroc: float = float("nan")
    paper_windows: int = 0
    paper_positives: int = 0

    @property
    def name(self):
        """Name of the target in every table."""
        return f"{self.component} {self.direction}"


def read_targets(path=""):
    """Read a target table.

    Parameters
    ----------
    path : path
        CSV with component, direction (low or high), limit, unit; empty for the paper's 108.

    Returns
    -------
    list of Target, in the order of the table

    Raises
    ------
    CohortError
        No such file, a missing column, a direction or limit that is none, a target that stands twice.
    """
    try:
        text = (Path(path) if path else files("anyecg.loaders") / "targets108.csv").read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except OSError as cause:
        raise CohortError(f"{path}: {cause.strerror}; give the target table as 'targets' in [cohort]") from None
    except (csv.Error, UnicodeDecodeError) as cause:
        raise CohortError(f"{path}: not a CSV ({cause})") from None
    targets = []
    for number, row in enumerate(rows, 2):
        missing = [name for name in COLUMNS if row.get(name) is None]
        if missing:
            raise CohortError(f"{path} line {number}: {missing[0]} is missing; wanted {', '.join(COLUMNS)}")
        try:
            limit, paper_auroc = float(row["limit"]), float(row.get("paper_auroc") or "nan")
        except ValueError:
            raise CohortError(f"{path} line {number}: limit {row['limit']!r}; wanted a number") from None
        if row["direction"] not in ("low", "high") or not math.isfinite(limit) or not row["component"].strip():
            raise CohortError(
                f"{path} line {number}: {row['direction']!r} {row['limit']!r}; wanted low or high, a number"
            )
        counts = (int(row.get(name) or 0) for name in ("paper_windows", "paper_positives"))
        targets.append(Target(row["component"], row["direction"], limit, row["unit"], paper_auroc, *counts))
    names = [target.name for target in targets]
    units = {(target.component, target.unit) for target in targets}
    if len(units) > len({target.component for target in targets}):
        raise CohortError(f"{path}: two units of one component; give all its targets in one unit")
    if not targets or len(set(names)) < len(names):
        raise CohortError(f"{path or 'target table'}: no target, or one that stands twice")
    return targets


def parse_results(text):
    """Split results given as text into sign and number.

    Parameters
    ----------
    text : polars expression of strings
        "4.1", ">10.0", "<0.01", "1,200", "Negative".

    Returns
    -------
    (expression, expression)
        Sign: "=", "<", "<=", ">", ">="; null without a number. Number: float64.
    """
    sign = text.str.extract(RESULT, 1).replace({"≤": "<=", "≥": ">="}).fill_null("=")
    number = text.str.extract(RESULT, 2).str.replace_all(",", "").cast(pl.Float64, strict=False)
    number = pl.when(number.is_finite()).then(number)
    return pl.when(number.is_not_null()).then(sign), number


def label_of(sign, number, direction, limit):
    """Return the label of a result: 1 beyond the limit, 0 not, -1 when the result cannot tell.

    Parameters
    ----------
    sign, number : polars expressions from ``parse_results``
    direction : "low" or "high"
    limit : number or polars expression
        ">10.0" decides a limit of 10 or less, "<3" one of 3 or more; between, the label is missing.

    Returns
    -------
    polars expression, int8
    """
    if direction == "low":
        mirrored = sign.replace({"<": ">", "<=": ">=", ">": "<", ">=": "<="})
        return label_of(mirrored, -number, "high", -limit)
    abnormal = ((sign == "=") | (sign == ">=")) & (number > limit) | (sign == ">") & (number >= limit)
    normal = ((sign == "=") | (sign == "<=") | (sign == "<")) & (number <= limit)
    decided = pl.when(abnormal).then(1).when(normal).then(0).otherwise(-1)
    return pl.when(number.is_null() | sign.is_null()).then(-1).otherwise(decided).cast(pl.Int8)
