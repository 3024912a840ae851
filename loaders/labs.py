"""Laboratory results of MC-MED's labs.csv: streamed, each row kept or counted by reason, laid out as draws."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.errors import CohortError
from anyecg.loaders.targets import label_of, parse_results, read_targets

LAB_COLUMNS = (
    "CSN", "Order_time", "Result_time", "Component_name", "Component_value", "Component_units", "Component_nml_low",
    "Component_nml_high",
)  # fmt: skip
# Results without a result time come after all others of their draw.
NO_RESULT_TIME = 2**62
NOT_BLOOD = r"(?i)\b(urine|ua|csf|fluid|stool|fecal|feces|sputum|swab|saliva|semen)\b"


def scan(path, wanted):
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


def collect(table, path):
    """Run a lazy query in streaming fashion; refuse what is not a CSV."""
    try:
        return table.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as cause:
        raise CohortError(f"{path}: not a CSV ({str(cause).splitlines()[0]})") from None


def microseconds(text):
    """Return the expression of int64 microseconds since 1970 of ISO times, beyond 2262 too; null where none."""
    parsed = text.str.strip_chars().str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", strict=False)
    return parsed.dt.timestamp("us")


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
    table = _reasoned(scan(path, LAB_COLUMNS), visits, targets, components, config)
    counts = dict(collect(table.group_by("reason").len(), path).iter_rows())
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
    table = scan(path, LAB_COLUMNS)
    has_ecg = {folder.parent.name for folder in (root / "waveforms").glob("*/*/II") if any(folder.glob("*.hea"))}
    number = parse_results(pl.col("Component_value"))[1]
    table = table.with_columns(
        component=pl.col("Component_name").fill_null(""), unit=pl.col("Component_units").fill_null("")
    )
    by_unit = collect(table.group_by("component", "unit").len(), path).sort("component", "len", "unit")
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
    found = collect(counted, path).join(units, on="component")
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
