"""A cohort from MC-MED 1.0.1: visits, laboratory results and lead II waveforms, on one time axis."""

import re
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.cohort import RECORD_SCHEMA, SPLITS, Cohort, pseudonym, split_patients
from anyecg.loaders.errors import CohortError, RecordError
from anyecg.loaders.progress import Progress
from anyecg.loaders.records import open_record
from anyecg.loaders.targets import label_of, parse_results, read_targets

VISIT_COLUMNS = ("MRN", "CSN", "Age", "Gender", "Race", "Ethnicity")
LAB_COLUMNS = (
    "CSN", "Order_time", "Result_time", "Component_name", "Component_value", "Component_units", "Component_nml_low",
    "Component_nml_high",
)  # fmt: skip
TRIAGE = ("Triage_Temp", "Triage_HR", "Triage_RR", "Triage_SpO2", "Triage_SBP", "Triage_DBP")
SEX = {"F": 0, "M": 1}
# Results without a result time come after all others of their draw.
LEFT_OUT = ("unreadable", "no base time", "overlaps another record")
NO_RESULT_TIME = 2**62


def _scan(path, wanted):
    """Open a CSV lazily, every column as text; refuse it without the wanted columns."""
    if not path.is_file():
        raise CohortError(f"{path}: no such file; give the folder of MC-MED as 'path' in [cohort]")
    try:
        table = pl.scan_csv(path, infer_schema=False)
        found = table.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as cause:
        raise CohortError(f"{path}: not a CSV ({str(cause).splitlines()[0]})") from None
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CohortError(f"{path}: column '{missing[0]}' is missing; found {', '.join(found)}")
    # An empty field counts as missing, quoted or not, and a name with spaces around it as the name.
    stripped = pl.all().str.strip_chars()
    return table.select(pl.when(stripped != "").then(stripped).name.keep())


def _collect(table, path):
    try:
        return table.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as cause:
        raise CohortError(f"{path}: not a CSV ({str(cause).splitlines()[0]})") from None


def microseconds(text):
    """Return the expression of int64 microseconds since 1970 of ISO times, beyond 2262 too; null where none."""
    parsed = text.str.strip_chars().str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", strict=False)
    return parsed.dt.timestamp("us")


def read_visits(path):
    """Read visits.csv.

    Returns
    -------
    (polars.DataFrame, list)
        One row a visit: MRN, CSN, age (float), sex (0 F, 1 M, -1), race, ethnicity, triage vitals; the flow of
        exclusions.
    """
    table = _scan(path, VISIT_COLUMNS)
    columns = [*VISIT_COLUMNS, *(name for name in TRIAGE if name in table.collect_schema().names())]
    rows = _collect(table.select(columns), path)
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
    age = pl.col("Age").cast(pl.Float32, strict=False).fill_null(float("nan")).alias("age")
    return visits.select("MRN", "CSN", age, sex, "Race", "Ethnicity", *vitals), flow


def read_draws(path, visits, targets, config):
    """Read labs.csv in streaming fashion into draws.

    Parameters
    ----------
    visits : polars.DataFrame
        With CSN; its row numbers become ``visit_row``.
    targets : list of Target
    config : CohortConfig
        anchor, lag_minutes, limits, units.

    Returns
    -------
    (polars.DataFrame, list)
        visit_row, time in microseconds, one int8 column a target, one float32 column ``value:COMPONENT`` each; and the
        flow of exclusions.
    """
    components = list(dict.fromkeys(target.component for target in targets))
    table = _reasoned(_scan(path, LAB_COLUMNS), visits, targets, components, config)
    counts = dict(_collect(table.group_by("reason").len(), path).iter_rows())
    flow = [("rows in labs.csv", sum(counts.values()))]
    flow += [(f"- {reason}", n) for reason, n in sorted(counts.items()) if reason != "kept"]
    # Only row numbers and values go to the temporary file; it keeps memory at one component's results at a time.
    with tempfile.TemporaryDirectory(prefix="anyecg-") as folder:
        spill = Path(folder) / "results.parquet"
        try:
            kept = table.filter(pl.col("reason") == "kept")
            kept.select("visit_row", "anchor", "result", "code", "sign", "number", "low", "high").sink_parquet(spill)
        except (pl.exceptions.PolarsError, OSError) as cause:
            raise CohortError(f"{path}: cannot be read on ({str(cause).splitlines()[0]})") from None
        return _wide(pl.scan_parquet(spill), counts.get("kept", 0), components, targets, config, flow)


def _plain_unit(unit):
    return unit.strip().lower().replace("\u00b5", "u").replace("\u03bc", "u")


def _reasoned(table, visits, targets, components, config):
    """Add to each row of labs.csv its visit row, anchor, parsed result, component code, and why it is left out."""
    units = {target.component: _plain_unit(target.unit) for target in targets}
    sign, number = parse_results(pl.col("Component_value"))
    name = pl.col("Component_name").fill_null("")
    unit = pl.col("Component_units").fill_null("").str.to_lowercase().str.replace_all("[µμ]", "u")
    other_unit = unit != name.replace_strict(units, default="")
    rows = pl.LazyFrame({"CSN": visits["CSN"], "visit_row": np.arange(visits.height, dtype=np.int32)})
    codes = {component: code for code, component in enumerate(components)}
    limits = [pl.col(f"Component_nml_{side}").cast(pl.Float64, strict=False).alias(side) for side in ("low", "high")]
    table = table.join(rows, on="CSN", how="left").with_columns(
        *limits,
        anchor=microseconds(pl.col("Order_time" if config.anchor == "order" else "Result_time")),
        result=microseconds(pl.col("Result_time")).fill_null(NO_RESULT_TIME),
        code=name.replace_strict(codes, default=-1, return_dtype=pl.Int16),
        sign=sign, number=number,
    )  # fmt: skip
    return table.with_columns(
        reason=pl.when(pl.col("visit_row").is_null()).then(pl.lit("of an unknown visit"))
        .when(pl.col("code") < 0).then(pl.lit("of a component without target"))
        .when(pl.col("anchor").is_null()).then(pl.lit(f"without {config.anchor} time"))
        .when(pl.col("number").is_null()).then(pl.lit("not a number"))
        .when(other_unit & pl.lit(config.units == "refuse")).then(pl.lit("in another unit"))
        .otherwise(pl.lit("kept"))
    )  # fmt: skip


NOT_BLOOD = r"(?i)\b(urine|ua|csf|fluid|stool|fecal|feces|sputum|swab|saliva|semen)\b"


def candidate_targets(config, *, min_visits):
    """Count, per component of labs.csv, the visits that have lead II waveforms, and say which could be targets.

    Parameters
    ----------
    config : CohortConfig
    min_visits : int
        Fewer visits with waveforms are called rare.

    Returns
    -------
    polars.DataFrame
        component, results, visits, visits_with_ecg, numeric (share), unit (the most common), units (how many),
        in_table, excluded (empty, or the first reason: not blood, yes/no, rare), by falling visits_with_ecg.
    """
    root = Path(config.path)
    path = root / "labs.csv"
    table = _scan(path, LAB_COLUMNS)
    has_ecg = {folder.parent.name for folder in (root / "waveforms").glob("*/*/II") if any(folder.glob("*.hea"))}
    number = parse_results(pl.col("Component_value"))[1]
    table = table.with_columns(
        component=pl.col("Component_name").fill_null(""), unit=pl.col("Component_units").fill_null("")
    )
    by_unit = _collect(table.group_by("component", "unit").len(), path).sort("component", "len", "unit")
    units = by_unit.group_by("component", maintain_order=True).agg(unit=pl.col("unit").last(), units=pl.len())
    pairs = table.group_by("component", "CSN").agg(results=pl.len(), numeric=number.is_not_null().sum())
    with_ecg = pl.col("CSN").is_in(list(has_ecg)).fill_null(False)
    counted = pairs.group_by("component").agg(
        results=pl.col("results").sum(),
        visits=pl.len(),
        visits_with_ecg=with_ecg.sum(),
        numeric=pl.col("numeric").sum() / pl.col("results").sum(),
    )
    components = [target.component for target in read_targets(config.targets)]
    excluded = (
        pl.when(pl.col("component").str.contains(NOT_BLOOD)).then(pl.lit("not blood"))
        .when(pl.col("numeric") < 0.5).then(pl.lit("yes/no"))
        .when(pl.col("visits_with_ecg") < min_visits).then(pl.lit("rare"))
        .otherwise(pl.lit(""))
    )  # fmt: skip
    found = _collect(counted, path).join(units, on="component")
    found = found.with_columns(in_table=pl.col("component").is_in(components), excluded=excluded)
    return found.sort(["visits_with_ecg", "component"], descending=[True, False])


def _single(results, component_code):
    """Return one result a draw of one component, and how many repeated or contradicted another.

    Of several the first reported counts; two reported at the same moment that differ cancel each other out.
    """
    mine = results.filter(pl.col("code") == component_code).collect(engine="streaming")
    key = ["visit_row", "anchor"]
    ordered = mine.sort(*key, "result", "number", "sign", "low", "high")
    distinct = ordered.unique([*key, "result", "sign", "number"], keep="first", maintain_order=True)
    first = distinct.filter(pl.col("result") == pl.col("result").min().over(key))
    alone = pl.len().over(key) == 1
    return first.filter(alone), mine.height - first.height, first.filter(~alone).height


def _wide(results, n_results, components, targets, config, flow):
    """Lay results out as one row a draw."""
    draws = results.select("visit_row", "anchor").unique().collect(engine="streaming").sort("visit_row", "anchor")
    draws = draws.with_columns(draw=pl.int_range(pl.len(), dtype=pl.Int64))
    value_DC = np.full((draws.height, len(components)), np.nan, np.float32)
    label_DC = np.full((draws.height, len(targets)), -1, np.int8)
    seen_D = np.zeros(draws.height, bool)
    n_read = n_kept = n_repeated = n_torn = n_undecided = 0
    for column, component in enumerate(components):
        mine, repeated, torn = _single(results, column)
        n_read += mine.height + repeated + torn
        mine = mine.join(draws, on=["visit_row", "anchor"], how="left", maintain_order="left")
        n_kept, n_repeated, n_torn = n_kept + mine.height, n_repeated + repeated, n_torn + torn
        seen_D[mine["draw"].to_numpy()] = True
        exact = mine.filter(pl.col("sign") == "=")
        value_DC[exact["draw"].to_numpy(), column] = exact["number"].to_numpy()
        for place, target in enumerate(targets):
            if target.component != component:
                continue
            limit = pl.col(target.direction) if config.limits == "file" else target.limit
            labels = mine.select(label_of(pl.col("sign"), pl.col("number"), target.direction, limit)).to_series()
            label_DC[mine["draw"].to_numpy(), place] = labels.to_numpy()
            n_undecided += int((labels == -1).sum())
    if n_read != n_results:
        raise CohortError(
            f"labs.csv: {n_results} results when counted, {n_read} when read; it changed meanwhile, run again"
        )
    flow += [
        ("- repeated in a draw", n_repeated), ("- contradicting another of the draw", n_torn), ("results", n_kept),
        ("labels that a result cannot decide", n_undecided), ("draws", int(seen_D.sum())),
    ]  # fmt: skip
    time = draws["anchor"] - round(config.lag_minutes * 60e6)
    wide = pl.DataFrame({"visit_row": draws["visit_row"], "time": time})
    wide = wide.hstack(pl.DataFrame(label_DC, schema=[target.name for target in targets]))
    wide = wide.hstack(pl.DataFrame(value_DC, schema=[f"value:{component}" for component in components]))
    # A draw whose every result was contradicted has nothing to say.
    return wide.filter(pl.Series(seen_D)), flow


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


def mcmed_cohort(config, *, seed):
    """Make a cohort of MC-MED below ``config.path``; only visits with draws and lead II waveforms stay."""
    root = Path(config.path)
    targets = read_targets(config.targets)
    visits, flow = read_visits(root / "visits.csv")
    draws, lab_flow = read_draws(root / "labs.csv", visits, targets, config)
    flow += lab_flow
    rows = np.unique(draws["visit_row"].to_numpy())
    records, quarantine = read_records(root, visits, rows)
    kept = np.unique(records["visit_row"].to_numpy())
    flow += [
        ("visits with draws", len(rows)),
        ("- without lead II waveforms", len(rows) - len(kept)),
        ("records found", records.height + len(quarantine)),
        *((f"- {reason}", sum(r.startswith(reason) for _, r in quarantine)) for reason in LEFT_OUT),
    ]
    patient = np.array([pseudonym(seed, "patient", name) for name in visits["MRN"]], np.uint64)
    if config.split in ("random", "chrono"):
        split = official_split(root, config.split, visits)
        flow.append(("- visits in no official list", int((split[kept] < 0).sum())))
        kept = kept[split[kept] >= 0]
    else:
        visit = np.array([pseudonym(seed, "visit", name) for name in visits["CSN"]], np.uint64)
        unit = patient if config.split == "patient" else visit
        split = np.full(visits.height, -1, np.int8)
        split[kept] = split_patients(
            unit[kept], seed=seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction
        )
    new_row = np.full(visits.height, -1, np.int32)
    new_row[kept] = np.arange(len(kept), dtype=np.int32)
    chosen = visits[kept]
    table = chosen.select("age", "sex").insert_column(0, pl.Series("split", split[kept]))
    table.insert_column(0, pl.Series("patient", patient[kept]))
    table.insert_column(0, pl.Series("visit", [pseudonym(seed, "visit", name) for name in chosen["CSN"]], pl.UInt64))

    def renumber(rows_table):
        renumbered = pl.Series("visit_row", new_row[rows_table["visit_row"].to_numpy()])
        return rows_table.with_columns(renumbered).filter(pl.col("visit_row") >= 0)

    flow += [("visits kept", len(kept)), ("patients kept", len(np.unique(patient[kept])))]
    return Cohort(
        targets=tuple(target.name for target in targets),
        components=tuple(dict.fromkeys(target.component for target in targets)),
        visits=table, records=renumber(records), draws=renumber(draws),
        side=chosen.select("Race", "Ethnicity", *(name for name in chosen.columns if name in TRIAGE)),
        quarantine=pl.DataFrame(quarantine, schema={"record": pl.String, "reason": pl.String}, orient="row"),
        flow=flow, root=root.resolve(), pairing="horizon", may_overlap=config.split == "visit",
        definition=tuple((t.name, t.limit, t.unit, config.limits, config.units) for t in targets),
    )  # fmt: skip
