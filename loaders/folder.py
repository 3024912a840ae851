"""A cohort from any folder of WFDB records and a CSV of labels; each labelled record is its own draw."""

from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.cohort import RECORD_SCHEMA, Cohort, pseudonym, split_patients
from anyecg.loaders.errors import CohortError, RecordError
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import find_records, open_record

RESERVED = ("visit_row", "time")
LABEL = {"1": 1, "0": 0, "-1": -1, "": -1}


def read_labels(path):
    """Read the CSV of labels.

    Returns
    -------
    (polars.DataFrame, tuple of str)
        Columns ``record``, ``patient`` (text) and one int8 column a target; the targets' names.

    Raises
    ------
    CohortError
        No such file, a missing column, no target, or a value that is not 1, 0, -1 or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise CohortError(f"{path}: no such file; give the CSV of labels as 'labels' in [cohort]")
    try:
        table = pl.read_csv(path, infer_schema=False).fill_null("")
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as cause:
        raise CohortError(f"{path}: not a CSV ({str(cause).splitlines()[0]})") from None
    names = [name.strip() for name in table.columns]
    if len(set(names)) < len(names):
        raise CohortError(f"{path}: two columns have one name; found {', '.join(names)}")
    table.columns = names
    for wanted in ("record", "patient"):
        if wanted not in table.columns:
            raise CohortError(f"{path}: column '{wanted}' is missing; found {', '.join(table.columns)}")
    targets = tuple(name for name in table.columns if name not in ("record", "patient"))
    reserved = [name for name in targets if name in RESERVED or name.startswith("value:")]
    if reserved:
        raise CohortError(f"{path}: '{reserved[0]}' cannot be a target's name; give it another one")
    if not targets:
        raise CohortError(f"{path}: no target; add one column a target after record and patient")
    for target in targets:
        values = table[target].str.strip_chars()
        wrong = [row for row, value in enumerate(values) if value not in LABEL]
        if wrong:
            raise CohortError(f"{path} line {wrong[0] + 2}: {target} is {values[wrong[0]]!r}; wanted 1, 0, -1 or empty")
        labels = pl.Series(target, [LABEL[value] for value in values], pl.Int8)
        table = table.with_columns(labels)
    for name in ("record", "patient"):
        table = table.with_columns(pl.col(name).str.strip_chars())
        if (table[name] == "").any():
            raise CohortError(f"{path} line {int((table[name] == '').to_numpy().argmax()) + 2}: '{name}' is empty")
    return table, targets


def folder_cohort(config, *, seed):
    """Make a cohort of the records that ``config.labels`` names below ``config.path``.

    A record that is listed twice, missing, unreadable or without any label goes to the quarantine with its reason.
    """
    root = Path(config.path)
    if not root.is_dir():
        raise CohortError(f"{root}: no such folder; give the folder of the recordings as 'path' in [cohort]")
    table, targets = read_labels(config.labels)
    listed, labels = table["record"], table.select(targets)
    repeated = set(listed.filter(listed.is_duplicated()))
    found = set(find_records(root))
    kept: list[int] = []
    records: list[tuple] = []
    quarantine: list[tuple[str, str]] = []
    with Progress("cohort", table.height, " records") as progress:
        for row, name in enumerate(listed):
            reason = None
            if name in repeated:
                reason = "listed twice"
            elif name not in found:
                reason = "no such record"
            elif max(labels.row(row)) < 0:
                reason = "no label"
            else:
                try:
                    record = open_record(root / name, root=root)
                    records.append((len(kept), name, record.fs, 0, record.n_samples, record.digest))
                    kept.append(row)
                except RecordError as cause:
                    reason = f"unreadable: {cause}"
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
    draws = pl.DataFrame({"visit_row": records_table["visit_row"], "time": middle}).hstack(table.select(targets))
    reasons = [reason.split(":")[0] for _, reason in quarantine]
    flow = [
        ("rows in the labels", len(listed)),
        *((f"- {reason}", reasons.count(reason)) for reason in dict.fromkeys(reasons)),
        ("records kept", len(kept)),
        ("patients kept", len(np.unique(patients))),
        ("records without a label row (not used)", len(found - set(listed))),
    ]
    return Cohort(
        targets=targets, visits=visits, records=records_table, draws=draws,
        quarantine=pl.DataFrame(quarantine, schema={"record": pl.String, "reason": pl.String}, orient="row"),
        flow=flow, root=root.resolve(),
    )  # fmt: skip
