"""A cohort from MC-MED 1.0.1: visits, laboratory results and lead II waveforms, on one time axis."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import polars.selectors as cs

from anyecg.loaders.cohort import RECORD_SCHEMA, REFERENCE_SCHEMA, Cohort, pseudonym, split_patients
from anyecg.loaders.errors import CohortError, RecordError
from anyecg.loaders.labs import read_draws
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import open_record
from anyecg.loaders.splits import SPLITS
from anyecg.loaders.tables import collect, scan
from anyecg.loaders.targets import read_targets
from anyecg.loaders.vitals import read_vitals

VISIT_COLUMNS = ("MRN", "CSN", "Age", "Gender", "Race", "Ethnicity")
TRIAGE = ("Triage_Temp", "Triage_HR", "Triage_RR", "Triage_SpO2", "Triage_SBP", "Triage_DBP")
SEX = {"F": 0, "M": 1}
LEFT_OUT = ("unreadable", "no base time", "overlaps another record")


def read_visits(path):
    """Read visits.csv.

    Returns
    -------
    (polars.DataFrame, list, int)
        One row a visit: MRN, CSN, age (float; "90+" and ">90" are 90), sex (0 F, 1 M, -1), race, ethnicity, triage
        vitals; the flow of exclusions; how many ages are text that is not a number.
    """
    table = scan(path, VISIT_COLUMNS)
    columns = [*VISIT_COLUMNS, *(name for name in TRIAGE if name in table.collect_schema().names())]
    rows = collect(table.select(columns), path)
    nameless = rows.filter(pl.col("MRN").is_null() | pl.col("CSN").is_null()).height
    rows = rows.filter(pl.col("MRN").is_not_null() & pl.col("CSN").is_not_null())
    n_patients = pl.col("MRN").n_unique().over("CSN")
    torn = rows.filter(n_patients > 1).height
    single = rows.filter(n_patients == 1)
    visits = single.unique("CSN", keep="first", maintain_order=True)
    flow = [
        ("rows in visits.csv", rows.height + nameless),
        ("- without MRN or CSN", nameless),
        ("- one CSN with two patients", torn),
        ("- repeated CSN", single.height - visits.height),
        ("visits", visits.height),
    ]
    vitals = [pl.col(name).cast(pl.Float32, strict=False) for name in columns if name in TRIAGE]
    sex = pl.col("Gender").replace_strict(SEX, default=-1, return_dtype=pl.Int8).alias("sex")
    age = pl.col("Age").str.strip_chars_start(">=≥ ").str.strip_chars_end("+ ").cast(pl.Float32, strict=False)
    age = pl.when(age.is_finite()).then(age)
    n_odd_ages = visits.filter(pl.col("Age").is_not_null() & age.is_null()).height
    age = age.fill_null(float("nan")).alias("age")
    return visits.select("MRN", "CSN", age, sex, "Race", "Ethnicity", *vitals), flow, n_odd_ages


def find_waveforms(root, csn):
    """Return the lead II records of a visit, relative to ``root``, in numeric order of their segments."""
    folder = Path(root) / "waveforms" / csn[-3:] / csn / "II"
    form = re.compile(re.escape(csn) + r"_(\d+)\.hea")
    found = [(int(match[1]), path) for path in folder.glob("*.hea") if (match := form.fullmatch(path.name))]
    return [str(path.relative_to(root).with_suffix("")) for _, path in sorted(found)]


def read_records(root, visits, rows):
    """Read the headers of the lead II records of some visits.

    Returns
    -------
    (polars.DataFrame, list)
        visit_row, path, fs, start, n_samples, digest; and (record, reason) of those left out. A record that begins more
        than a second before another of its visit ends is left out: each moment counts once.
    """
    records: list[tuple] = []
    quarantine: list[tuple[str, str]] = []
    with Progress("waveforms", len(rows), " visits") as progress:
        for row in rows:
            of_visit = []
            for path in find_waveforms(root, visits["CSN"][int(row)]):
                try:
                    record = open_record(root / path, root=root)
                except RecordError as cause:
                    quarantine.append((path, f"unreadable: {cause}"))
                    continue
                if record.start is None:
                    quarantine.append((path, "no base time"))
                    continue
                start = int(record.start.timestamp()) * 1_000_000 + record.start.microsecond
                of_visit.append((int(row), path, record.fs, start, record.n_samples, record.digest))
            end = -(2**62)
            for found in sorted(of_visit, key=lambda found: found[3]):
                _, path, fs, start, n_samples, _ = found
                if start < end - 1_000_000:
                    quarantine.append((path, "overlaps another record"))
                    continue
                end = start + round(n_samples / fs * 1e6)
                records.append(found)
            progress.advance(1)
    return pl.DataFrame(records, schema=RECORD_SCHEMA, orient="row"), quarantine


def official_split(root, kind, visits):
    """Return each visit's split by MC-MED's own lists (one CSN a line, no header): 0, 1, 2, or -1 in none.

    Raises
    ------
    CohortError
        A list is missing, or a patient stands in two of them.
    """
    split = np.full(visits.height, -1, np.int8)
    for number, name in enumerate(SPLITS):
        path = root / f"split_{kind}_{name}.csv"
        if not path.is_file():
            raise CohortError(f"{path}: no such file; wanted MC-MED's own list of the {name} split")
        listed = set(path.read_text(encoding="utf-8").split())
        inside = visits["CSN"].is_in(list(listed)).to_numpy()
        twice = int((inside & (split >= 0)).sum())
        if twice:
            raise CohortError(f"{path}: {twice} visits stand in another split's list too; mend the lists")
        split[inside] = number
    return split


def reference_aurocs(root, targets, config):
    """Return what others found: the paper's AUROC of each target, and a simulated double's truth where there is one.

    Returns
    -------
    polars.DataFrame
        target, horizon_min, level, source ("paper" or "truth"), auroc.
    """
    paper = [(t.name, 60, "window", "paper", t.paper_auroc) for t in targets if t.paper_auroc == t.paper_auroc]
    table = pl.DataFrame(paper, schema=REFERENCE_SCHEMA, orient="row")
    path = root / "truth.csv"
    # The truth holds for the paper's targets at the time of order.
    if not path.is_file() or (config.anchor, config.lag_minutes, config.targets, config.limits) != (
        "order", 0, "", "table",
    ):  # fmt: skip
        return table
    try:
        truth = pl.read_csv(path).with_columns(source=pl.lit("truth"))
        return pl.concat([table, truth.select(pl.col(name).cast(kind) for name, kind in REFERENCE_SCHEMA.items())])
    except pl.exceptions.PolarsError as cause:
        raise CohortError(f"{path}: not the truth of a simulation ({str(cause).splitlines()[0]}); remove it") from None


def mcmed_cohort(config, *, seed):
    """Make a cohort of MC-MED below ``config.path``; only visits with draws and lead II waveforms stay."""
    root = Path(config.path)
    targets = read_targets(config.targets)
    visits, visit_flow, n_odd_ages = read_visits(root / "visits.csv")
    draws, flow = read_draws(root / "labs.csv", visits, targets, config)
    vitals, vital_flow = read_vitals(root / "numerics.csv", visits)
    rows = np.unique(draws["visit_row"].to_numpy())
    records, quarantine = read_records(root, visits, rows)
    kept = np.unique(records["visit_row"].to_numpy())
    flow += [
        ("records found", records.height + len(quarantine)),
        *((f"- {reason}", sum(r.startswith(reason) for _, r in quarantine)) for reason in LEFT_OUT),
        *vital_flow,
        *visit_flow,
        ("- without a draw with results", visits.height - len(rows)),
        ("visits with draws", len(rows)),
        ("- without lead II waveforms", len(rows) - len(kept)),
    ]
    patient = np.array([pseudonym(seed, "patient", name) for name in visits["MRN"]], np.uint64)
    if config.split in ("random", "chrono"):
        split = official_split(root, config.split, visits)
        flow.append(("- visits in no official list", int((split[kept] < 0).sum())))
        kept = kept[split[kept] >= 0]
    else:
        visit = np.array([pseudonym(seed, "visit", name) for name in visits["CSN"]], np.uint64)
        unit = visit if config.split == "visit" else patient
        split = np.full(visits.height, -1, np.int8)
        split[kept] = split_patients(unit[kept], seed=seed, **config.fractions)
    new_row = np.full(visits.height, -1, np.int32)
    new_row[kept] = np.arange(len(kept), dtype=np.int32)
    chosen = visits[kept]
    table = chosen.select("age", "sex").insert_column(0, pl.Series("split", split[kept]))
    table.insert_column(0, pl.Series("patient", patient[kept]))
    table.insert_column(0, pl.Series("visit", [pseudonym(seed, "visit", name) for name in chosen["CSN"]], pl.UInt64))

    def renumber(rows_table):
        renumbered = pl.Series("visit_row", new_row[rows_table["visit_row"].to_numpy()])
        return rows_table.with_columns(renumbered).filter(pl.col("visit_row") >= 0)

    flow += [
        ("visits kept", len(kept)),
        ("patients kept", len(np.unique(patient[kept]))),
        ("ages not a number", n_odd_ages),
    ]
    return Cohort(
        targets=tuple(target.name for target in targets),
        components=tuple(dict.fromkeys(target.component for target in targets)),
        visits=table, records=renumber(records), draws=renumber(draws),
        side=chosen.select("Race", "Ethnicity", cs.starts_with("Triage_")).hstack(vitals[kept]),
        quarantine=pl.DataFrame(quarantine, schema={"record": pl.String, "reason": pl.String}, orient="row"),
        flow=flow, root=root.resolve(), pairing="horizon", may_overlap=config.split == "visit",
        reference=reference_aurocs(root, targets, config),
        definition=tuple((t.name, t.limit, t.unit, config.limits, config.units) for t in targets),
    )  # fmt: skip
