"""The report: one self-contained HTML file with tables, plots and example ECGs."""

import platform
from importlib import metadata
from pathlib import Path

import matplotlib
import numpy as np

from anyecg.app.config import Config, render_config
from anyecg.app.page import STYLE, page
from anyecg.app.report_comparison import comparison_part
from anyecg.app.report_figures import draw_roc, draw_training, examples
from anyecg.app.report_tables import (
    baselines_part,
    calibration_part,
    horizons_part,
    macro_part,
    other_part,
    results_part,
    subgroups_part,
)
from anyecg.app.report_text import OTHER_TABLES, interval, main_group, number
from anyecg.app.stages import model_folder
from anyecg.loaders.cohort import open_cohort, read_reference
from anyecg.loaders.files import code_version, read_document, write_text
from anyecg.loaders.index import open_index
from anyecg.train.card import read_card
from anyecg.train.results import read_results
from anyecg.train.scores import read_scores

PACKAGES = (
    "numpy", "scipy", "numba", "h5py", "torch", "deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "mpi4py",
    "mpich", "wfdb", "polars",
)  # fmt: skip
TABLES = ("rows", "macro", "calibration", "subgroups", "baselines", *OTHER_TABLES)


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


def training_note(card, epochs):
    """Return what the report says of a training: the network, the epoch taken and why, rates."""
    rate, waiting = (np.median([epoch[key] for epoch in epochs]) for key in ("windows_per_s", "waiting_share"))
    score = "R2" if card["head"] == "regression" else "AUROC"
    best_by = {"loss": "lowest validation loss", "score": f"highest mean validation {score}"}
    instead = f" {card['n_substituted']} samples stood in for damaged ones." if card.get("n_substituted") else ""
    return (
        f"{card['model']}, {card['n_parameters']:,} parameters; epoch {card['epoch']:g} of {len(epochs)} has the "
        f"{best_by[card['finetune'].get('best_by', 'loss')]} and is the one used. Median {rate:.0f} windows/s, "
        f"{waiting:.1%} of the time waiting for data.{instead}"
    )


def parts_of(tables, *, truth, confidence, notes, comparison=None):
    """Return the parts of the report for which there are tables.

    Parameters
    ----------
    tables : dict of list of dict
        The TABLES of ``results.json``, each perhaps empty; missing numbers are NaN.
    truth : dict
        {(target, horizon_min, level): best possible AUROC}, of simulated data.
    confidence : float
        Of the intervals.
    notes : list of str
        To stand below the main table.
    comparison : dict, optional
        From ``compare.json``.
    """
    rows = tables["rows"]
    parts = [macro_part(tables["macro"])] if tables["macro"] else []
    parts += [results_part(rows, truth, confidence, notes)] if rows else []
    parts += [other_part(name, tables[name]) for name in OTHER_TABLES if tables[name]]
    parts += [horizons_part(rows)] if len({row["horizon_min"] for row in rows}) > 1 else []
    parts += [calibration_part(rows, tables["calibration"])] if tables["calibration"] else []
    parts += [subgroups_part(rows, tables["subgroups"])] if tables["subgroups"] else []
    parts += [baselines_part(rows, tables["baselines"])] if tables["baselines"] else []
    return parts + ([comparison_part(comparison)] if comparison else [])


def glance(tables):
    """Return (figure, what it is) for the head of the page."""
    rows, macro = tables["rows"], tables["macro"]
    if not rows:
        return []
    where = main_group(rows)
    main = [row for row in rows if (row["horizon_min"], row["level"]) == where]
    figures = []
    for row in macro:
        if (row["horizon_min"], row["level"], row["metric"]) == (*where, "auroc"):
            what = f"mean AUROC ({interval(row, 'value')}), {where[1]} level, {where[0]} min"
            figures.append((number(row["value"]), what))
    if any(row.get("band") for row in main):
        n_high = sum(row["band"] == ">= 0.65" for row in main)
        figures.append((f"{n_high} of {len(main)}", "targets with an AUROC of 0.65 or more"))
    if "few_positive" in main[0]:
        figures.append((str(sum(row["few_positive"] for row in main)), "targets with fewer than 10 positive patients"))
    return [*figures, (f"{max(row['n_patients'] for row in main):,}", "patients at most behind a figure")]


def choices(tables):
    """Return what can be chosen: horizons, levels, those to begin with, and whether targets have bands."""
    rows = tables["rows"] or tables["regression"]
    horizons, levels = (list(dict.fromkeys(row[name] for row in rows)) for name in ("horizon_min", "level"))
    return {
        "horizons": horizons,
        "levels": levels,
        "main": main_group(rows),
        "banded": any(row.get("band") for row in rows),
    }


def _notes(config, index):
    chosen = {
        "youden": "that is best on the validation split (Youden)",
        "sensitivity": f"that reaches a sensitivity of {config.evaluate.sensitivity:g} on the validation split",
        "f1": "that has the best F1 on the validation split",
    }
    where = "of the internal results" if config.evaluate.internal else chosen[config.evaluate.threshold]
    return [
        f"{config.evaluate.confidence:.0%} confidence intervals, {config.evaluate.interval}, "
        f"{config.evaluate.n_replicates} bootstrap replicates that resample the {config.evaluate.unit}. Sensitivity, "
        f"specificity, F1 and balanced accuracy at the threshold {where}. A value of 0 or 1, or fewer than two "
        "patients of a class, has no interval. Level draw: mean logit of the windows of one draw; draw-head: the head "
        "that reads them together.",
        *([f"Heart rate is that of lead {index.leads[index.rhythm_lead]}."] if len(index.leads) > 1 else []),
    ]


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
    tables = {table: read_results(folder / "results.json", table) for table in TABLES}
    rows = tables["rows"]
    # The truth of simulated data is that of windows on both sides of the draw.
    reference = [] if config.shard.before_only else read_reference(folder / "cohort").to_dicts()
    truth = {(r["target"], r["horizon_min"], r["level"]): r["auroc"] for r in reference if r["source"] == "truth"}
    compared = folder / "compare.json"
    comparison = read_document(compared, "anyecg-comparison", missing="") if compared.exists() else None
    with matplotlib.rc_context(STYLE):
        training, epochs = draw_training(model / "curve.csv", card["head"])
        # Of a regression there is nothing that is present or absent.
        where = main_group(rows) if rows else None
        roc = draw_roc(index, scores, rows, *where) if where else None
        pictures = examples(index, scores, where[0]) if where else []
    parts = parts_of(
        tables, truth=truth, confidence=config.evaluate.confidence, notes=_notes(config, index), comparison=comparison
    )  # fmt: skip
    n_test = len(np.unique(index.tables["visit_patient"][np.flatnonzero(index.tables["visit_split"][:] == 2)]))
    in_leads = f" in {len(index.leads)} leads" if len(index.leads) > 1 else ""
    html = page(
        "report.html.j2", script="report.js", title="AnyECG-Lab report",
        subtitle=f"{len(index.targets)} targets, {index.head['counts']['windows']} windows of 10 s{in_leads}, "
        f"{len(np.unique(index.tables['visit_patient']))} patients, {n_test} of them in the test split",
        glance=glance(tables), **choices(tables),
        parts=parts, roc=roc, training=training,
        training_note=training_note(card, epochs), examples=pictures, counts=_counts(cohort, index),
        versions=_versions(), config=render_config(config),
    )  # fmt: skip
    write_text(folder / "report.html", html)
    return folder / "report.html"
