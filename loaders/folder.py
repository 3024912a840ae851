"""A cohort from any folder of recordings and a CSV of labels; each labelled record is its own draw."""

import os
from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.cohort import RECORD_SCHEMA, Cohort, pseudonym, split_patients
from anyecg.loaders.errors import CohortError, RecordError
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import find_files, open_record

RESERVED = ("visit_row", "time")
VALUE = "value:"
LABEL = {"1": 1, "0": 0, "-1": -1, "": -1}


def read_labels(path):
    """Read the CSV of labels and values.

    Returns
    -------
    (polars.DataFrame, tuple of str, tuple of str)
        Columns ``record``, ``patient`` (text), one int8 column a target, one float32 column ``value:NAME`` a
        component (NaN not measured); the targets' names; the components' names, without ``value:``.

    Raises
    ------
    CohortError
        No such file, a missing column, neither target nor value, a label that is not 1, 0, -1 or empty, a value that
        is no number.
    """
    path = Path(path)
    table = _read_text(path)
    for wanted in ("record", "patient"):
        if wanted not in table.columns:
            raise CohortError(f"{path}: column '{wanted}' is missing; found {', '.join(table.columns)}")
        names = table[wanted].str.strip_chars()
        if (names == "").any():
            raise CohortError(f"{path} line {int((names == '').to_numpy().argmax()) + 2}: '{wanted}' is empty")
        table = table.with_columns(names)
    columns = [name for name in table.columns if name not in ("record", "patient")]
    components = tuple(name.removeprefix(VALUE) for name in columns if name.startswith(VALUE))
    targets = tuple(name for name in columns if not name.startswith(VALUE))
    reserved = [name for name in columns if name in RESERVED or name == VALUE]
    if reserved:
        raise CohortError(f"{path}: '{reserved[0]}' cannot be a target's name; give it another one")
    if not columns:
        raise CohortError(f"{path}: no target; add one column a target, or {VALUE}NAME, after record and patient")
    for name in columns:
        read = _values if name.startswith(VALUE) else _labels
        table = table.with_columns(read(path, table[name].str.strip_chars()))
    return table, targets, components


def _read_text(path):
    """Return the CSV with every column as text."""
    if not path.is_file():
        raise CohortError(f"{path}: no such file; give the CSV of labels as 'labels' in [cohort]")
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.readline()
        # Spreadsheets of some countries write semicolons.
        separator = ";" if ";" in head and "," not in head else ","
        table = pl.read_csv(path, infer_schema=False, separator=separator).fill_null("")
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as cause:
        raise CohortError(f"{path}: not a CSV ({str(cause).splitlines()[0]})") from None
    names = [name.strip() for name in table.columns]
    if len(set(names)) < len(names):
        raise CohortError(f"{path}: two columns have one name; found {', '.join(names)}")
    table.columns = names
    return table


def _labels(path, texts):
    wrong = [row for row, text in enumerate(texts) if text not in LABEL]
    if wrong:
        raise CohortError(
            f"{path} line {wrong[0] + 2}: {texts.name} is {texts[wrong[0]]!r}; wanted 1, 0, -1 or empty"
        )  # fmt: skip
    return pl.Series(texts.name, [LABEL[text] for text in texts], pl.Int8)


def _values(path, texts):
    with np.errstate(over="ignore"):
        numbers = texts.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy().astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(numbers) & (texts != "").to_numpy())
    if len(wrong):
        raise CohortError(
            f"{path} line {wrong[0] + 2}: {texts.name} is {texts[int(wrong[0])]!r}; wanted a number, or empty where it "
            "was not measured"
        )
    return pl.Series(texts.name, numbers, pl.Float32)


def folder_cohort(config, *, seed):
    """Make a cohort of the records that ``config.labels`` names below ``config.path``.

    A record is named by its path below the folder, with or without its extension. One that is listed twice, ambiguous,
    missing, unreadable or without any label or value goes to the quarantine with its reason.
    """
    root = Path(config.path)
    if not root.is_dir():
        raise CohortError(f"{root}: no such folder; give the folder of the recordings as 'path' in [cohort]")
    table, targets, components = read_labels(config.labels)
    measured = [*targets, *(VALUE + name for name in components)]
    listed = table["record"]
    has_any = table.select(
        pl.any_horizontal(
            *(pl.col(name) >= 0 for name in targets), *(pl.col(VALUE + c).is_not_nan() for c in components)
        )
    ).to_series()
    repeated = set(listed.filter(listed.is_duplicated()))
    options = config.options
    found = find_files(root, any_table="fs" in options)
    labels = os.path.relpath(config.labels, root)
    found = {name: file for name, file in found.items() if file != labels}
    file_of = {file: file for file in found.values()} | found
    used = set()
    kept: list[int] = []
    records: list[tuple] = []
    quarantine: list[tuple[str, str]] = []
    with Progress("cohort", table.height, " records") as progress:
        for row, name in enumerate(listed):
            reason = None
            if name in repeated:
                reason = "listed twice"
            elif name not in file_of:
                alike = [file for file in found.values() if file.rpartition(".")[0] == name]
                reason = f"ambiguous: which of {', '.join(alike)}?" if alike else "no such record"
            elif file_of[name] in used:
                reason = "listed twice"
            elif not has_any[row]:
                reason = "no label"
            else:
                try:
                    record = open_record(root / file_of[name], root=root, **options)
                    records.append((len(kept), file_of[name], record.fs, 0, record.n_samples, record.digest))
                    kept.append(row)
                except RecordError as cause:
                    reason = f"unreadable: {cause}"
            used.add(file_of.get(name, name))
            if reason:
                quarantine.append((name, reason))
            progress.advance(1)
    table = table[kept]
    patients = np.array([pseudonym(seed, "patient", name) for name in table["patient"]], np.uint64)
    split = split_patients(patients, seed=seed, **config.fractions)
    visits = pl.DataFrame(
        {
            "visit": np.array([pseudonym(seed, "visit", name) for name in table["record"]], np.uint64),
            "patient": patients,
            "split": split,
            "age": np.full(len(kept), np.nan, np.float32),
            "sex": np.full(len(kept), -1, np.int8),
        }
    )
    records_table = pl.DataFrame(records, schema=RECORD_SCHEMA, orient="row")
    middle = (records_table["n_samples"] / records_table["fs"] * 5e5).round().cast(pl.Int64)
    draws = pl.DataFrame({"visit_row": records_table["visit_row"], "time": middle}).hstack(table.select(measured))
    reasons = [reason.split(":")[0] for _, reason in quarantine]
    flow = [
        ("rows in the labels", len(listed)),
        *((f"- {reason}", reasons.count(reason)) for reason in dict.fromkeys(reasons)),
        ("records kept", len(kept)),
        ("patients kept", len(np.unique(patients))),
        ("records without a label row (not used)", len(set(found.values()) - used)),
    ]
    return Cohort(
        targets=targets, components=components, visits=visits, records=records_table, draws=draws,
        quarantine=pl.DataFrame(quarantine, schema={"record": pl.String, "reason": pl.String}, orient="row"),
        flow=flow, root=root.resolve(), options=options,
    )  # fmt: skip
