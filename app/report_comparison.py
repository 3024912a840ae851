"""Models side by side in the report, from the file that ``anyecg compare`` writes."""

import math

from markupsafe import Markup

from anyecg.app.report_cells import Axis, Column, Group, Part, Row, Table, key, p_value, signed, with_interval

METRICS = {
    "auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "mae": "Absolute error", "r2": "R²", "spearman": "Spearman",
}  # fmt: skip


def _models(models):
    columns = [Column("", "text"), Column("Run", "text"), Column("Level", "text"), Column("Network", "text")]
    columns += [Column("Parameters"), Column("Epoch")]
    lines = []
    for number, model in enumerate(models):
        counts = [f"{model[name]:,}" if model.get(name) is not None else "–" for name in ("n_parameters", "epoch")]
        lines.append(Row([chr(ord("A") + number), model["name"], model["level"], model["model"] or "–", *counts]))
    return Table(columns, lines, targets=False)


def _of_metric(rows, models):
    """Return the table of one metric: each model's value, and its difference to the first."""
    axis = Axis.over(rows, ("difference",), middle=0.0)
    letters = [chr(ord("A") + number) for number in range(len(models))]
    columns = [Column("Target", "text"), *map(Column, letters), Column("", "plot")]
    for number, letter in enumerate(letters[1:]):
        columns += [Column(Markup("{}{} − A").format(key(number), letter)), Column("p"), Column("p, Holm")]
    by_target: dict[str, list] = {}
    for row in rows:
        by_target.setdefault(row["target"], []).append(row)
    lines = []
    for target, of_target in by_target.items():
        others = of_target[1:]
        cells = [target, *(with_interval(row, "value") for row in of_target)]
        cells.append(Markup("").join(axis.lane(row, "difference", number) for number, row in enumerate(others)))
        for row in others:
            cells += [signed(row, "difference"), p_value(row["p"]), p_value(row["p_holm"])]
        lines.append(Row(cells))
    return Table(columns, lines, axis, stacked=len(models) > 2)


def comparison_part(document):
    """Return the tables of a comparison of models.

    Parameters
    ----------
    document : dict
        From ``compare.json``.
    """
    models = document["models"]
    rows: list[dict] = [
        {name: math.nan if value is None else value for name, value in row.items()} for row in document["rows"]
    ]
    groups = [Group("Runs", [("", _models(models))])]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        of_metric = [row for row in rows if row["metric"] == metric]
        groups.append(Group(METRICS[metric], [("", _of_metric(of_metric, models))]))
    left_out = document["left_out"]
    said = f" Left out, not a target of every model: {', '.join(left_out)}." if left_out else ""
    intro = [
        f"{document['horizon_min']} min; the same units and the same {document['n_replicates']} replicates for every "
        f"model, resampled by {document['unit']}; differences to run A, p by Holm over the targets.{said}"
    ]
    return Part("comparison", "Models compared", groups, intro)
