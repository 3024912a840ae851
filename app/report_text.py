"""The results as tables for a terminal."""

import numpy as np

from anyecg.train.results import read_results

OTHER_TABLES = {
    "decisions": {"f1": "F1", "sensitivity": "Sensitivity"},
    "regression": {"mae": "Absolute error", "r2": "R²", "spearman": "Spearman"},
}
# Beyond this many rows a terminal shows some of them, and a table of the report starts with its best targets.
MANY_ROWS = 24


def number(value, digits=3):
    """Return a number as text, a missing one as a dash."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def interval(row, metric):
    """Return the CI of a metric as text."""
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return "no interval" if np.isnan(low) else f"{low:.3f}{' to ' if low < 0 else '–'}{high:.3f}"


def main_group(rows):
    """Return the horizon and level that stand for the others: the first horizon, draws where there are any."""
    levels = [row["level"] for row in rows]
    return rows[0]["horizon_min"], "draw" if "draw" in levels else levels[0]


def aligned(lines):
    """Return rows of cells, the first of them the head, as a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def text_results(path):
    """Return the tables of ``results.json`` that have rows as lines for a terminal."""
    texts = [text_table(rows)] if (rows := read_results(path)) else []
    for table, names in OTHER_TABLES.items():
        texts += [_text_metrics(rows, names)] if (rows := read_results(path, table)) else []
    return "\n\n".join(texts)


def _text_metrics(rows, names):
    """Return rows as lines for a terminal, each metric with its CI; ``names`` maps columns to headings."""
    lines = [("target", "level", "min", "n", *(cell for name in names.values() for cell in (name, "its CI")))]
    for row in rows[:MANY_ROWS]:
        metrics = [cell for metric in names for cell in (number(row[metric]), interval(row, metric))]
        lines.append((*(str(row[name]) for name in ("target", "level", "horizon_min", "n")), *metrics))
    more = [f"the first {MANY_ROWS} of {len(rows)} rows; the report holds all"] if len(rows) > MANY_ROWS else []
    return "\n".join([aligned(lines), *more])


def text_table(rows):
    """Return the results as lines for a terminal, AUROC and AUPRC with their CIs."""
    n_all = len(rows)
    if n_all > MANY_ROWS:
        main = main_group(rows)
        rows = [row for row in rows if (row["horizon_min"], row["level"]) == main and not np.isnan(row["auroc"])]
        rows = sorted(rows, key=lambda row: -row["auroc"])[:MANY_ROWS]
    lines = [("target", "level", "min", "n", "positive", "AUROC", "its CI", "AUPRC", "sens", "spec", "F1")]
    for row in rows:
        lines.append(
            (
                *(str(row[name]) for name in ("target", "level", "horizon_min", "n", "n_positive")),
                number(row["auroc"]),
                interval(row, "auroc"), *(number(row[name]) for name in ("auprc", "sensitivity", "specificity", "f1")),
            )
        )  # fmt: skip
    more = [f"the best {len(rows)} of {n_all} rows; results.csv and the report hold all"] if len(rows) < n_all else []
    return "\n".join([aligned(lines), *more])
