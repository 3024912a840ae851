"""The report: one self-contained HTML file with tables, plots and example ECGs."""

import csv
import io
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anyecg.app.config import Config, render_config
from anyecg.app.stages import model_folder
from anyecg.kernels.segment import FLAG_NAMES
from anyecg.loaders.cohort import open_cohort, read_reference
from anyecg.loaders.files import code_version, write_text
from anyecg.loaders.index import open_index
from anyecg.loaders.reader import WindowReader
from anyecg.train.model import read_card
from anyecg.train.predict import read_scores
from anyecg.train.results import read_results
from anyecg.train.units import one_target, units_of

MAIN_METRICS = ("auroc", "auprc", "sensitivity", "specificity", "f1")
METRIC_NAMES = ("AUROC", "AUPRC", "Sensitivity", "Specificity", "F1")
OTHER_TABLES = {
    "decisions": {"f1": "F1", "sensitivity": "Sensitivity"},
    "regression": {"mae": "Absolute error", "r2": "R²", "spearman": "Spearman"},
}
PACKAGES = (
    "numpy", "scipy", "numba", "h5py", "torch", "deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "mpi4py",
    "mpich", "wfdb", "polars",
)  # fmt: skip
COLOURS = ("#0b5c8a", "#c8553d", "#4f8a3c", "#7a4fa3", "#b8860b", "#2a9d8f", "#8c564b", "#555555")
# What a training of each head lowers, and what its validation is judged by.
CURVES = {
    "multilabel": ("Masked BCE", "Mean AUROC"),
    "exclusive": ("Cross-entropy", "Mean AUROC"),
    "regression": ("Huber loss", "Mean R2"),
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "svg.fonttype": "none", "svg.hashsalt": "anyecg", "axes.edgecolor": "#5b6675", "axes.labelcolor": "#1c2430",
}  # fmt: skip
# Beside our AUROC in the plot: the paper's figure, and the best that any model can reach on simulated data.
REFERENCE_MARKS = {"paper": "D", "truth": "|"}
OTHER_TITLES = {
    "decisions": "Decisions: each unit goes to the class of its highest score. Row all: pooled over the classes, where "
    "F1 and sensitivity are the accuracy; row mean: over the classes of evaluate.f1_classes, or all",
    "regression": "Estimated values: absolute error in the unit of the component, R² about the mean of the test split, "
    "Spearman's correlation",
}
MAX_ROC_TARGETS = 8
MAX_EXAMPLE_TARGETS = 6
# Beyond this many rows the tables are folded and the plot shows one horizon and level.
MANY_ROWS = 24


def svg(figure, **options):
    """Return a figure as an SVG to stand in a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, **options)
    return Markup(text.getvalue()[text.getvalue().index("<svg") :])


def _interval(row, metric):
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return "no interval" if np.isnan(low) else f"{low:.3f}–{high:.3f}"


def _value(value):
    return "–" if np.isnan(value) else f"{value:.3f}"


def aligned(lines):
    """Return rows of cells, the first of them the head, as a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def page(template, **values):
    """Render one of the templates beside this file."""
    environment = Environment(loader=PackageLoader("anyecg.app", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**values)


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
        metrics = [cell for metric in names for cell in (_value(row[metric]), _interval(row, metric))]
        lines.append((*(str(row[name]) for name in ("target", "level", "horizon_min", "n")), *metrics))
    more = [f"the first {MANY_ROWS} of {len(rows)} rows; the report holds all"] if len(rows) > MANY_ROWS else []
    return "\n".join([aligned(lines), *more])


def text_table(rows):
    """Return the results as lines for a terminal, AUROC and AUPRC with their CIs."""
    n_all = len(rows)
    if n_all > MANY_ROWS:
        main = _main_group(rows)
        rows = [row for row in rows if (row["horizon_min"], row["level"]) == main and not np.isnan(row["auroc"])]
        rows = sorted(rows, key=lambda row: -row["auroc"])[:MANY_ROWS]
    lines = [("target", "level", "min", "n", "positive", "AUROC", "its CI", "AUPRC", "sens", "spec", "F1")]
    for row in rows:
        lines.append(
            (
                *(str(row[name]) for name in ("target", "level", "horizon_min", "n", "n_positive")),
                _value(row["auroc"]),
                _interval(row, "auroc"), *(_value(row[name]) for name in ("auprc", "sensitivity", "specificity", "f1")),
            )
        )  # fmt: skip
    more = [f"the best {len(rows)} of {n_all} rows; results.csv and the report hold all"] if len(rows) < n_all else []
    return "\n".join([aligned(lines), *more])


def _roc(index, scores, rows, horizon_min, level):
    """Draw the ROC curves of the targets with the highest AUROC, at one horizon and level."""
    figure = Figure(figsize=(5.2, 4.8))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#b9c0c9", lw=1, ls="--")
    units = units_of(index, scores, "test", horizon_min, level)
    shown = [row for row in rows if (row["horizon_min"], row["level"]) == (horizon_min, level)]
    shown = sorted((row for row in shown if not np.isnan(row["auroc"])), key=lambda row: -row["auroc"])
    for row, colour in zip(shown[:MAX_ROC_TARGETS], COLOURS, strict=False):
        target = index.targets.index(row["target"])
        one = one_target(units, target, level)
        order = np.argsort(-one.logit, kind="stable")
        score, positive = one.logit[order], one.label[order] == 1
        ends = np.append(score[1:] != score[:-1], True)
        true_rate = np.concatenate([[0], (np.cumsum(positive) / positive.sum())[ends]])
        false_rate = np.concatenate([[0], (np.cumsum(~positive) / (~positive).sum())[ends]])
        axes.plot(false_rate, true_rate, color=colour, lw=1.8, label=f"{row['target']} ({row['auroc']:.3f})")
    axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(f"ROC, {level} level", loc="left", fontsize=11)
    if shown:
        axes.legend(frameon=False, loc="lower right", title="AUROC", fontsize=9)
    return svg(figure, bbox_inches="tight")


def _forest(rows, confidence, reference, paper):
    """Draw the AUROC of every row with its CI, and what others found."""
    rows = [row for row in rows if not np.isnan(row["auroc"])]
    many = len(rows) > MANY_ROWS
    if many:
        rows = sorted(rows, key=lambda row: -row["auroc"])
    figure = Figure(figsize=(5.6, 1.2 + (0.19 if many else 0.34) * max(len(rows), 4)))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = dict(zip(("window", "draw", "visit", "draw-head"), COLOURS, strict=False))[row["level"]]
        if not np.isnan(row["auroc_low"]):
            axes.plot([row["auroc_low"], row["auroc_high"]], [place, place], color=colour, lw=2)
        axes.plot(row["auroc"], place, "s", color=colour, ms=4 if many else 6)
        others = {"truth": reference.get(("truth", *_key(row)), np.nan), "paper": paper.get(row["target"], np.nan)}
        for source, mark in REFERENCE_MARKS.items():
            axes.plot(others[source], place, mark, color="#1c2430", ms=5, mfc="none", mew=0.8)
    axes.axvline(0.5, color="#b9c0c9", lw=1, ls="--")
    several = len({row["horizon_min"] for row in rows}) > 1
    names = [f"{row['target']}, {row['level']}" + f", {row['horizon_min']} min" * several for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7 if many else 10)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("AUROC")
    axes.set_title(f"AUROC with {confidence:.0%} CI", loc="left", fontsize=11)
    axes.grid(axis="x", color="#e6eaee")
    return svg(figure, bbox_inches="tight")


def _key(row):
    # A joining head reads the same windows as the mean logit: the best possible is one figure.
    return row["target"], row["horizon_min"], "draw" if row["level"] == "draw-head" else row["level"]


def _references(folder):
    """Return {(source, target, horizon_min, level): AUROC}; the paper's only figure stands beside every row."""
    found = {
        (r["source"], r["target"], r["horizon_min"], r["level"]): r["auroc"] for r in read_reference(folder).to_dicts()
    }
    paper = {target: value for (source, target, _, _), value in found.items() if source == "paper"}
    return found, paper


def _groups(rows, reference, paper):
    """Return the rows as one table for each horizon and level, the table's best targets first where it is long."""
    groups: dict[str, list] = {}
    for row in rows:
        metrics = [(_value(row[metric]), _interval(row, metric)) for metric in MAIN_METRICS]
        others = [_value(paper.get(row["target"], np.nan)), _value(reference.get(("truth", *_key(row)), np.nan))]
        groups.setdefault(f"{row['level']} level, {row['horizon_min']} min", []).append(
            {**row, "metrics": metrics, "others": others}
        )
    if len(rows) > MANY_ROWS:
        for of_group in groups.values():
            of_group.sort(key=lambda row: -np.nan_to_num(row["auroc"], nan=-1))
    return groups


def _other_groups(rows, names):
    """Return the rows of decisions or of a regression as one table for each horizon and level."""
    groups: dict[str, list] = {}
    for row in rows:
        metrics = [(_value(row[metric]), _interval(row, metric)) for metric in names]
        groups.setdefault(f"{row['level']} level, {row['horizon_min']} min", []).append({**row, "metrics": metrics})
    return groups


def _main_group(rows):
    """Return the horizon and level that the plots show: the first horizon, draws where there are any."""
    levels = [row["level"] for row in rows]
    return rows[0]["horizon_min"], "draw" if "draw" in levels else levels[0]


def _curve(path, head):
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure = Figure(figsize=(9.6, 3.2))
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["train_loss"] for row in rows], "o-", ms=3, color=COLOURS[0], label="train")
    left.plot(epochs, [row["val_loss"] for row in rows], "o-", ms=3, color=COLOURS[1], label="validation")
    left.set(xlabel="epoch", ylim=(0, None))
    loss, score = CURVES[head]
    left.set_title(loss, loc="left", fontsize=11)
    left.legend(frameon=False)
    right.plot(epochs, [row["val_score"] for row in rows], "o-", ms=3, color=COLOURS[1])
    right.set(xlabel="epoch")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_title(f"{score} on the validation split", loc="left", fontsize=11)
    return svg(figure, bbox_inches="tight"), rows


def draw_ecg(mv_T, fs):
    """Draw one lead on ECG paper, 25 mm/s and 10 mm/mV.

    Parameters
    ----------
    mv_T : float array, shape (samples,)
    fs : float

    Returns
    -------
    markupsafe.Markup, an SVG 250 mm wide for 10 s
    """
    seconds = len(mv_T) / fs
    # Far beyond, the trace leaves the paper, as it does on real paper.
    low = np.clip(np.floor(mv_T.min() * 2) / 2, -2.0, -1.0)
    high = np.clip(np.ceil(mv_T.max() * 2) / 2, 1.5, 2.5)
    figure = Figure(figsize=(seconds * 25 / 25.4, (high - low) * 10 / 25.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, seconds), ylim=(low, high), xticks=[], yticks=[])
    for spacing, width, colour in ((1, 0.3, "#f6d5d2"), (5, 0.7, "#eba9a3")):
        axes.vlines(np.arange(0, seconds + 1e-9, spacing / 25), low, high, color=colour, lw=width)
        axes.hlines(np.arange(low, high + 1e-9, spacing / 10), 0, seconds, color=colour, lw=width)
    axes.plot(np.arange(len(mv_T)) / fs, mv_T, color="#1c2430", lw=0.9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return svg(figure)


def _examples(index, scores, horizon_min):
    """Show for each target the highest- and the lowest-scored positive and the highest-scored negative window."""
    units = units_of(index, scores, "test", horizon_min, "window")
    reader = WindowReader(index, run_chunks=1, n_slots=4)
    examples: list[dict] = []
    shown: set[int] = set()
    for number, target in enumerate(index.targets[:MAX_EXAMPLE_TARGETS]):
        one = one_target(units, number, "window")
        one = one.only(~np.isin(units.window, list(shown)))
        rows, logit, label = one.rows, one.logit, one.label
        for wanted, pick, what in (
            (1, np.argmax, "present, highest score"), (1, np.argmin, "present, lowest score"),
            (0, np.argmax, "absent, highest score"),
        ):  # fmt: skip
            if not (label == wanted).any():
                continue
            row = rows[label == wanted][pick(logit[label == wanted])]
            window = int(units.window[row])
            shown.add(window)
            mv_T = reader.read([window])[0, 0] * index.tables["window_scale"][window]
            flags = [name for flag, name in FLAG_NAMES.items() if index.tables["window_flags"][window] & flag]
            said = [
                f"{name} {1 / (1 + np.exp(-value)):.2f}"
                for name, value in zip(index.targets, (of[row] for of in units.output_CU), strict=True)
            ]
            caption = f"{target} {what}. Scores: {', '.join(said[:8])}"
            caption += f". Flags: {', '.join(flags)}." if flags else "."
            examples.append({"caption": caption, "picture": draw_ecg(mv_T, index.head["fs"])})
    reader.close()
    return examples


def _counts(cohort, index):
    reasons = cohort.quarantine["reason"].str.split(":").list.first().to_list()
    lines = [(what, n) for what, n in cohort.flow if not what.startswith("- ")]
    lines += [(f"left out: {reason}", reasons.count(reason)) for reason in dict.fromkeys(reasons)]
    splits = []
    for split in ("train", "val", "test"):
        windows = index.windows_of(split)
        patients = index.tables["visit_patient"][index.tables["window_visit"][windows]]
        splits.append((f"{split}: windows", len(windows)))
        splits.append((f"{split}: patients", len(np.unique(patients))))
    splits.append(("patients in two splits", index.head["patients_in_two_splits"]))
    return [
        ("Cohort", lines), ("Shards", list(index.head["counts"].items())), ("Splits", splits),
    ]  # fmt: skip


def _versions():
    installed = [f"anyecg-lab {code_version()}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(installed)


def _training_note(card, epochs):
    rate, waiting = (np.median([epoch[key] for epoch in epochs]) for key in ("windows_per_s", "waiting_share"))
    best_by = {"loss": "lowest validation loss", "auroc": "highest mean validation AUROC"}
    instead = f" {card['n_substituted']} samples stood in for damaged ones." if card.get("n_substituted") else ""
    return (
        f"{card['model']}, {card['n_parameters']:,} parameters; epoch {card['epoch']} of {len(epochs)} has the "
        f"{best_by[card['finetune'].get('best_by', 'loss')]} and is the one used. Median {rate:.0f} windows/s, "
        f"{waiting:.1%} of the time waiting for data.{instead}"
    )


def write_report(config: Config):
    """Write ``report.html`` into the run folder from the files of the stages, and return its path.

    Raises
    ------
    AnyECGError
        A stage before has not finished.
    """
    folder = Path(config.folder)
    cohort, index = open_cohort(folder / "cohort"), open_index(folder / "shards")
    model = model_folder(config)
    card, scores = read_card(model), read_scores(folder / "scores.h5", index)
    rows = read_results(folder / "results.json")
    others = {table: read_results(folder / "results.json", table) for table in OTHER_TABLES}
    horizon_min, level = _main_group(rows or others["regression"])
    reference, paper = _references(folder / "cohort")
    if config.shard.before_only:
        # The truth of simulated data is that of windows on both sides of the draw.
        reference = {key: value for key, value in reference.items() if key[0] != "truth"}
    shown = (
        rows if len(rows) <= MANY_ROWS else [r for r in rows if (r["horizon_min"], r["level"]) == (horizon_min, level)]
    )
    with matplotlib.rc_context(STYLE):
        curve, epochs = _curve(model / "curve.csv", card["head"])
        figures: dict[str, Any] = {"curve": curve, "ranking": [], "examples": []}
        # Of a regression there is nothing that is present or absent.
        if rows:
            figures["ranking"] = [
                _roc(index, scores, rows, horizon_min, level),
                _forest(shown, config.evaluate.confidence, reference, paper),
            ]
            figures["examples"] = _examples(index, scores, horizon_min)
    n_test = len(np.unique(index.tables["visit_patient"][np.flatnonzero(index.tables["visit_split"][:] == 2)]))
    html = page(
        "report.html.j2",
        title="AnyECG-Lab report",
        subtitle=f"{len(index.targets)} targets, {index.head['counts']['windows']} windows of 10 s, "
        f"{len(np.unique(index.tables['visit_patient']))} patients, {n_test} of them in the test split",
        metric_names=METRIC_NAMES,
        groups=_groups(rows, reference, paper),
        others=[
            (OTHER_TITLES[table], list(OTHER_TABLES[table].values()), _other_groups(others[table], OTHER_TABLES[table]))
            for table in OTHER_TABLES
            if others[table]
        ],
        folded=len(rows) > MANY_ROWS,
        has_paper=bool(paper),
        has_truth=any(source == "truth" for source, *_ in reference),
        interval_note=f"{config.evaluate.confidence:.0%} confidence intervals, {config.evaluate.interval}, "
        f"{config.evaluate.n_replicates} bootstrap replicates that resample the {config.evaluate.unit}. Sensitivity, "
        "specificity and F1 at the threshold that is best on the validation split (Youden). A value of 0 or 1, or "
        "fewer than two patients of a class, has no interval. Level draw: mean logit of the windows of one draw; "
        "draw-head: the head that reads them together.",
        training_note=_training_note(card, epochs),
        counts=_counts(cohort, index),
        versions=_versions(),
        config=render_config(config),
        **figures,
    )
    write_text(folder / "report.html", html)
    return folder / "report.html"
