"""What the report shows of ``results.json``: a part for each question, made of tables."""

import math

from markupsafe import Markup

from anyecg.app.report_cells import (
    Axis,
    Column,
    Group,
    Part,
    Row,
    Table,
    count_of,
    key,
    mark,
    p_value,
    signed,
    with_interval,
)
from anyecg.app.report_figures import draw_calibration
from anyecg.app.report_text import MANY_ROWS, OTHER_TABLES, main_group, number

UNITS = {"window": "windows", "draw": "draws", "draw-head": "draws", "visit": "visits"}
# Values of the column band, and what page.css calls them.
BANDS = {">= 0.65": ("high", "≥ 0.65"), "0.55-0.65": ("middle", "0.55–0.65"), "< 0.55": ("low", "< 0.55")}
AT_THRESHOLD = {
    "sensitivity": "Sensitivity", "specificity": "Specificity", "f1": "F1", "balanced_accuracy": "Balanced accuracy",
}  # fmt: skip
ERRORS = {"auroc_se": "Bootstrap", "auroc_se_delong": "DeLong", "auroc_se_clustered": "Clustered DeLong"}
CALIBRATION = {"calibration_slope": "Slope", "ece": "Calibration error", "brier": "Brier score"}
MEANS = {"auroc": "AUROC", "auprc": "AUPRC", **AT_THRESHOLD, **CALIBRATION}
MODELS = {
    "age-sex": "Age, sex", "heart": "Heart rate", "age-sex-heart": "Both", "ecg": "ECG",
    "ecg+age-sex-heart": "ECG + both",
}  # fmt: skip
ATTRIBUTES = {"sex": "Sex", "age": "Age", "race": "Race"}
OTHER_TITLES = {"decisions": "Decisions", "regression": "Estimated values"}
OTHER_NOTES = {
    "decisions": "Each unit goes to the class of its highest score. Row all: pooled over the classes, where F1 and "
    "sensitivity are the accuracy; row mean: over the classes of evaluate.f1_classes, or all.",
    "regression": "Absolute error in the unit of the component, R² about the mean of the test split, Spearman's "
    "correlation.",
}
MAX_CURVES = 12


def _where(row):
    return row["horizon_min"], row["level"]


def _by(rows, *names):
    """Return the rows in groups with the same values of some columns, in their order."""
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _title(horizon_min, level):
    return f"{level} level, {horizon_min} min"


def _has(rows, column):
    """Say whether a column has a number in any of the rows."""
    return any(row.get(column, math.nan) == row.get(column, math.nan) for row in rows)


def _best_first(rows):
    if len(rows) <= MANY_ROWS:
        return rows
    return sorted(rows, key=lambda row: -1 if math.isnan(row["auroc"]) else row["auroc"], reverse=True)


def _targets_in_order(of_rows, rows):
    """Return (target, its rows), as the main table has the targets."""
    where = main_group(rows)
    order = [row["target"] for row in _best_first([row for row in rows if _where(row) == where])]
    by_target = {target: of_target for (target,), of_target in _by(of_rows, "target").items()}
    return sorted(by_target.items(), key=lambda item: order.index(item[0]))


def _marked(row):
    """Return a target's name and the attributes by which its row is found."""
    few = row.get("few_positive", 0) == 1
    badge = Markup(' <span class="few">few positive</span>') if few else ""
    band = BANDS.get(row.get("band", ""), ("none", ""))[0]
    return Markup("{}{}").format(row["target"], badge), Markup(' data-band="{}"{}').format(
        band, Markup(" data-few") if few else ""
    )


def _band(row):
    name, text = BANDS.get(row.get("band", ""), ("none", "–"))
    return Markup('<span class="band {}">{}</span>').format(name, text)


def _reason(row):
    return row.get("reason") or "no interval"


def truth_of(row, truth):
    """Return the best AUROC that any model can reach on simulated data, NaN for real ones."""
    # A joining head reads the same windows as the mean logit: the best possible is one figure.
    level = "draw" if row["level"] == "draw-head" else row["level"]
    return truth.get((row["target"], row["horizon_min"], level), math.nan)


def _main_table(rows, axis, truth):
    units = UNITS[rows[0]["level"]]
    has_paper, has_internal = _has(rows, "paper_auroc"), _has(rows, "internal_auroc")
    has_band = any(row.get("band") for row in rows)
    columns = [Column("Target", "text"), Column("AUROC"), Column("", "plot")]
    columns += [Column("Best possible")] * bool(truth) + [Column("Paper")] * has_paper
    columns += [Column("Internal")] * has_internal + [Column("Band", "text")] * has_band
    columns += [Column("AUPRC"), Column("Positive patients"), Column(f"Positive {units}")]
    lines = []
    for row in rows:
        name, attributes = _marked(row)
        paper, internal = row.get("paper_auroc", math.nan), row.get("internal_auroc", math.nan)
        marks = (("truth", truth_of(row, truth)), ("internal", internal), ("paper", paper))
        cells = [name, with_interval(row, "auroc", _reason(row)), axis.lane(row, "auroc", marks=marks)]
        cells += [number(truth_of(row, truth))] * bool(truth) + [number(paper)] * has_paper
        if has_internal:
            ends = {f"internal_auroc{end}": row.get(f"internal{end}", math.nan) for end in ("_low", "_high")}
            cells.append(with_interval({**row, **ends}, "internal_auroc"))
        cells += [_band(row)] * has_band
        cells += [with_interval(row, "auprc"), count_of(row["n_patients_positive"], row["n_patients"])]
        lines.append(Row([*cells, count_of(row["n_positive"], row["n"])], attributes))
    return Table(columns, lines, axis)


def _threshold_table(rows):
    metrics = {metric: heading for metric, heading in AT_THRESHOLD.items() if metric in rows[0]}
    errors = {name: f"SE, {heading}" for name, heading in ERRORS.items() if name in rows[0]}
    columns = [Column("Target", "text"), Column("Threshold"), *map(Column, metrics.values())]
    columns += [*map(Column, errors.values()), Column("Replicates"), Column("Without score")]
    lines = []
    for row in rows:
        name, attributes = _marked(row)
        cells = [name, number(row["threshold"]), *(with_interval(row, metric) for metric in metrics)]
        cells += [number(row[error], 4) for error in errors]
        lines.append(Row([*cells, f"{row['n_replicates']:,}", f"{row.get('n_unscored', 0):,}"], attributes))
    return Table(columns, lines, stacked=True)


def _tally(rows):
    """Return how many targets lie in each band, as a sentence."""
    counts = {text: sum(row.get("band") == band for row in rows) for band, (_, text) in BANDS.items()}
    few = sum(row.get("few_positive", 0) == 1 for row in rows)
    said = f"{len(rows)} targets"
    if any(counts.values()):
        said += "; AUROC " + ", ".join(f"{text}: {n}" for text, n in counts.items())
    without = sum(math.isnan(row["auroc_low"]) for row in rows)
    said += f"; without interval: {without}"
    return said + (f"; with fewer than 10 positive patients: {few}." if "few_positive" in rows[0] else ".")


def results_part(rows, truth, confidence, notes):
    """Return the main table of each horizon and level, and what there is at the threshold.

    Parameters
    ----------
    rows : list of dict
        Of ``results.json``.
    truth : dict
        {(target, horizon_min, level): AUROC}
    confidence : float
        Of the intervals.
    notes : list of str
    """
    beside = [{**row, "truth": truth_of(row, truth)} for row in rows]
    axis = Axis.over(beside, ("auroc",), middle=0.5, marks=("truth", "paper_auroc", "internal_auroc"))
    groups = []
    for where, of_group in _by(rows, "horizon_min", "level").items():
        ordered = _best_first(of_group)
        tables = [("", _main_table(ordered, axis, truth)), ("At the threshold", _threshold_table(ordered))]
        groups.append(Group(_title(*where), tables, _tally(of_group), *where))
    keys = [
        (True, key(0), f"AUROC with {confidence:.0%} CI"),
        (_has(rows, "paper_auroc"), mark("paper"), "the paper's, at 1 h and window level, on MC-MED split by visit"),
        (_has(rows, "internal_auroc"), mark("internal"), "internal: the same model on the cohort it comes from"),
        (bool(truth), mark("truth"), "best possible: AUROC of the probability of the label given the true ECG "
         "parameters of a window (or of all windows of a draw), by Monte Carlo from the law of the simulation"),
    ]  # fmt: skip
    legend = Markup("").join(Markup("<span>{}{}</span>").format(drawn, what) for there, drawn, what in keys if there)
    return Part("results", "Results on the test split", groups, intro=[legend], notes=notes)


def other_part(name, rows):
    """Return the decisions of exclusive labels, or the errors of estimated values."""
    metrics = OTHER_TABLES[name]
    groups = []
    for where, of_group in _by(rows, "horizon_min", "level").items():
        by_class = "n_positive" in of_group[0]
        columns = [Column("Target", "text"), *map(Column, metrics.values())]
        columns += [Column(f"Positive {UNITS[where[1]]}")] if by_class else [Column("n"), Column("Patients")]
        lines = []
        for row in of_group:
            counts = (
                [count_of(row["n_positive"], row["n"])] if by_class else [f"{row['n']:,}", f"{row['n_patients']:,}"]
            )
            lines.append(Row([row["target"], *(with_interval(row, metric) for metric in metrics), *counts]))
        groups.append(Group(_title(*where), [("", Table(columns, lines))], "", *where))
    return Part(name, OTHER_TITLES[name], groups, intro=[OTHER_NOTES[name]])


def macro_part(macro):
    """Return the means over the targets, a row for each horizon and level."""
    groups = _by(macro, "horizon_min", "level")
    metrics = [metric for metric in MEANS if metric != "auroc" and any(row["metric"] == metric for row in macro)]
    of_auroc = [row for row in macro if row["metric"] == "auroc"]
    axis = Axis.over(of_auroc, ("value",), middle=0.5)
    columns = [Column("Horizon, level", "text"), Column("AUROC"), Column("", "plot")]
    columns += [Column(MEANS[metric]) for metric in metrics] + [Column("Targets")]
    lines = []
    for (horizon_min, level), of_group in groups.items():
        found = {row["metric"]: row for row in of_group}
        cells = [f"{horizon_min} min, {level}", with_interval(found["auroc"], "value")]
        cells.append(axis.lane(found["auroc"], "value"))
        cells += [with_interval(found[metric], "value") if metric in found else "–" for metric in metrics]
        n = [row["n_targets"] for row in of_group]
        lines.append(Row([*cells, f"{min(n)}" if min(n) == max(n) else f"{min(n)}–{max(n)}"]))
    table = Table(columns, lines, axis, targets=False, stacked=True)
    return Part(
        "means", "Means over the targets", [Group("", [("", table)])],
        notes=["Each metric over the targets that have a value; the plot shows the AUROC."],
    )  # fmt: skip


def horizons_part(rows):
    """Return the AUROCs of all horizons side by side, a group for each level."""
    horizons = list(dict.fromkeys(row["horizon_min"] for row in rows))
    axis = Axis.over(rows, ("auroc",), middle=0.5)
    groups = []
    for (level,), of_level in _by(rows, "level").items():
        columns = [Column("Target", "text"), Column("", "plot")]
        columns += [Column(Markup("{}{} min").format(key(k), horizon)) for k, horizon in enumerate(horizons)]
        first = {row["target"]: row for row in of_level if row["horizon_min"] == horizons[0]}
        by_target = {target: of_target for (target,), of_target in _by(of_level, "target").items()}
        lines = []
        for target in [row["target"] for row in _best_first(list(first.values()))]:
            found = {row["horizon_min"]: row for row in by_target[target]}
            lanes = [axis.lane(found[horizon], "auroc", k) for k, horizon in enumerate(horizons)]
            name, attributes = _marked(first[target])
            cells = [with_interval(found[horizon], "auroc") for horizon in horizons]
            lines.append(Row([name, Markup("").join(lanes), *cells], attributes))
        groups.append(Group(f"{level} level", [("", Table(columns, lines, axis))], "", None, level))
    return Part("horizons", "Horizons side by side", groups, intro=["AUROC within each horizon of the draw."])


def calibration_part(rows, bins):
    """Return curves of some targets, and slope and error of all."""
    curves = _by([row for row in bins if row["n"]], "target", "horizon_min", "level")
    main = main_group(rows)
    axis = Axis.over(rows, ("calibration_slope",), middle=1.0, within=(-1.0, 3.0))
    groups = []
    for where, of_group in _by(rows, "horizon_min", "level").items():
        columns = [Column("Target", "text"), Column("Curve", "curve"), Column("", "plot")]
        columns += [*map(Column, CALIBRATION.values())]
        lines = []
        for row in _best_first(of_group):
            name, attributes = _marked(row)
            curve = curves.get((row["target"], *where))
            small = draw_calibration(curve, small=True) if curve else "–"
            cells = [with_interval(row, metric) for metric in CALIBRATION]
            lines.append(Row([name, small, axis.lane(row, "calibration_slope"), *cells], attributes))
        groups.append(Group(_title(*where), [("", Table(columns, lines, axis))], "", *where))
    shown = [row for row in rows if _where(row) == main and (row["target"], *main) in curves]
    figures = [_captioned(row, curves[row["target"], *main]) for row in _frequent_and_best(shown)]
    intro = [
        "Ten bins with equal numbers of units: their mean predicted probability (across) and the observed share of "
        f"positive ones (up); calibrated figures lie on the diagonal. Here the {len(figures)} targets with the most "
        f"positive patients or the highest AUROC, {_title(*main)}; axes end at the largest figure.",
    ]
    notes = ["Slope: of the logistic regression of the label on the logit, 1 when calibrated (the plot). Calibration "
             "error: mean distance of the bins from the diagonal."]  # fmt: skip
    return Part("calibration", "Calibration", groups, intro, figures, notes)


def _frequent_and_best(rows):
    """Return the targets with the most positive patients and those with the highest AUROC, half of each."""
    rows = [row for row in rows if row["auroc"] == row["auroc"]]
    frequent = sorted(rows, key=lambda row: -row["n_patients_positive"])[: MAX_CURVES // 2]
    best = [row for row in rows if row not in frequent and not row.get("few_positive", 0)]
    best = sorted(best, key=lambda row: -row["auroc"])[: MAX_CURVES - len(frequent)]
    return sorted(frequent + best, key=lambda row: -row["auroc"])


def _captioned(row, bins):
    said = f"slope {number(row['calibration_slope'], 2)}, error {number(row['ece'])}"
    return Markup("<figcaption>{}<small>{}</small></figcaption>{}").format(row["target"], said, draw_calibration(bins))


def subgroups_part(rows, subgroups):
    """Return a table for each attribute, its groups side by side."""
    overall = {(row["target"], *_where(row)): row["auroc"] for row in rows}
    axis = Axis.over(subgroups, ("auroc",), middle=0.5)
    groups = []
    for (attribute,), of_attribute in _by(subgroups, "attribute").items():
        names = list(dict.fromkeys(row["group"] for row in of_attribute))
        columns = [Column("Target", "text"), Column("", "plot"), Column("All")]
        columns += [Column(Markup("{}{}").format(key(k), name)) for k, name in enumerate(names)]
        lines = []
        for target, of_target in _targets_in_order(of_attribute, rows):
            found = {row["group"]: row for row in of_target}
            whole = overall.get((target, *_where(of_target[0])), math.nan)
            marks = (("truth", whole),)
            lanes = [axis.lane(found[name], "auroc", k, marks) for k, name in enumerate(names) if name in found]
            cells = [_of_subgroup(found[name]) if name in found else "–" for name in names]
            lines.append(Row([target, Markup("").join(lanes), number(whole), *cells]))
        groups.append(Group(ATTRIBUTES[attribute], [("", Table(columns, lines, axis, stacked=True))]))
    intro = [
        f"AUROC in groups of patients, {_title(*_where(subgroups[0]))}; a bar marks that of all. Below each figure: "
        "positive patients of all patients. Groups with fewer than 10 patients of a class are too small to show."
    ]
    return Part("subgroups", "Subgroups", groups, intro)


def _of_subgroup(row):
    if math.isnan(row["auroc"]):
        said = row["reason"] or "no value"
        return Markup('<span class="no">– {}</span>').format(said.split(":")[0])
    counts = Markup(" <small>{:,} of {:,}</small>").format(row["n_patients_positive"], row["n_patients"])
    return Markup("{}{}").format(with_interval(row, "auroc"), counts)


def baselines_part(rows, baselines):
    """Return what age, sex and heart rate reach alone, and what the ECG adds, a group for each level."""
    horizon_min = baselines[0]["horizon_min"]
    axis = Axis.over(baselines, ("difference",), middle=0.0, within=(-0.3, 0.3))
    added, alone = "ecg+age-sex-heart", "ecg"
    groups = []
    for (level,), of_level in _by(baselines, "level").items():
        columns = [Column("Target", "text"), *map(Column, MODELS.values()), Column("", "plot")]
        columns += [Column(Markup("{}Added by the ECG").format(key(0))), Column("p, Holm")]
        columns += [Column(Markup("{}ECG alone").format(key(1))), Column("p, Holm")]
        lines = []
        n_better = 0
        for target, of_target in _targets_in_order(of_level, rows):
            found = {row["model"]: row for row in of_target}
            cells = [with_interval(found[model], "auroc", _reason(found[model])) for model in MODELS]
            compared = [found[model] for model in (added, alone)]
            cells.append(Markup("").join(axis.lane(row, "difference", k) for k, row in enumerate(compared)))
            for row in compared:
                cells += [signed(row, "difference"), p_value(row["p_holm"])]
            # With few patients z is too sure, the interval by Student's t is not.
            n_better += compared[0]["p_holm"] < 0.05 and compared[0]["difference_low"] > 0
            lines.append(Row([target, *cells]))
        which = "interval above 0, p by Holm below 0.05"
        note = f"The ECG adds to the baseline in {n_better} of {len(lines)} targets ({which})."
        title = _title(horizon_min, level)
        groups.append(Group(title, [("", Table(columns, lines, axis, stacked=True))], note, horizon_min, level))
    intro = [
        "AUROC of simple models on the same units: age and sex; heart rate and its variability, from the same windows; "
        "both. Added by the ECG: ECG and both together, less both. ECG alone: the ECG, less both. The plot shows the "
        "two differences."
    ]
    return Part("baselines", "What the ECG adds", groups, intro)
