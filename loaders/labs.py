"""Laboratory results of MC-MED's labs.csv: read in blocks, each row kept or counted by reason, laid out as draws."""

import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from anyecg.loaders.errors import CohortError
from anyecg.loaders.progress import Progress
from anyecg.loaders.tables import blocks, microseconds
from anyecg.loaders.targets import label_of, parse_results, read_targets

LAB_COLUMNS = (
    "CSN", "Order_time", "Result_time", "Component_name", "Component_value", "Component_units", "Component_nml_low",
    "Component_nml_high",
)  # fmt: skip
DRAW = {"visit_row": pl.Int32, "anchor": pl.Int64}
RESULT = {
    **DRAW, "result": pl.Int64, "sign": pl.String, "number": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip
# Results without a result time come after all others of their draw.
NO_RESULT_TIME = 2**62
NOT_BLOOD = r"(?i)\b(urine|ua|csf|fluid|stool|fecal|feces|sputum|swab|saliva|semen)\b"

log = logging.getLogger(__name__)


def _append(path, results):
    with path.open("ab") as file:
        results.write_ipc_stream(file, compression="zstd")


def _appended(path):
    """Return all results appended to a file, one after the other."""
    blocks = [pl.DataFrame(schema=RESULT)]
    if path.exists():
        with path.open("rb") as file:
            while file.peek(1):
                blocks.append(pl.DataFrame(pa.ipc.open_stream(file).read_all()))
    return pl.concat(blocks)


def read_draws(path, visits, targets, config):
    """Read labs.csv block by block into draws.

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
    counts: Counter[str] = Counter()
    try:
        # One file a component, so that memory holds a block of labs.csv, then one component's results, at a time.
        with tempfile.TemporaryDirectory(prefix="anyecg-") as folder:
            files = [Path(folder) / str(code) for code in range(len(components))]
            for block in blocks(path, LAB_COLUMNS, counts):
                rows = _reasoned(block, visits, targets, components, config).collect()
                counts.update(dict(rows.group_by("reason").len().iter_rows()))
                kept = rows.filter(pl.col("reason") == "kept").partition_by("code", as_dict=True)
                for (code,), results in kept.items():
                    _append(files[code], results.select(*RESULT))
            flow = [("rows in labs.csv", sum(counts.values()))]
            flow += [(f"- {reason}", n) for reason, n in sorted(counts.items()) if reason != "kept"]
            return _wide(files, components, targets, config, flow)
    except OSError as cause:
        raise CohortError(
            f"{tempfile.gettempdir()}: cannot keep results ({cause}); give a folder with room as TMPDIR"
        ) from None


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
    ).select("reason", "code", *RESULT)  # fmt: skip


def _coded(texts, codes):
    """Return a number for each text, the same one in every block."""
    numbers = {text: codes.setdefault(text, len(codes)) for text in texts.unique()}
    return texts.replace_strict(numbers).cast(pl.UInt64)


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
    has_ecg = [folder.parent.name for folder in (root / "waveforms").glob("*/*/II") if any(folder.glob("*.hea"))]
    counts: Counter[str] = Counter()
    by_unit = pl.DataFrame(schema={"component": pl.String, "unit": pl.String, "results": pl.UInt32, "n": pl.UInt32})
    component_codes: dict[str, int] = {}
    visit_codes: dict[str, int] = {}
    # One number a pair of component and visit: a fifth of the memory of two columns when repeats are dropped.
    pairs = [pl.Series("pair", [], pl.UInt64)]
    for block in blocks(path, LAB_COLUMNS, counts):
        rows = block.select(
            pl.col("CSN").fill_null(""), component=pl.col("Component_name").fill_null(""),
            unit=pl.col("Component_units").fill_null(""), number=parse_results(pl.col("Component_value"))[1],
        ).collect()  # fmt: skip
        found = rows.group_by("component", "unit").agg(results=pl.len(), n=pl.col("number").count())
        by_unit = pl.concat([by_unit, found]).group_by("component", "unit").sum()
        pair = _coded(rows["component"], component_codes) * 2**32 + _coded(rows["CSN"], visit_codes)
        pairs.append(pair.unique().alias("pair"))
        if len(pairs) > 64:
            pairs = [pl.concat(pairs).unique()]
    if counts:
        log.warning("labs.csv rows_with_another_number_of_fields=%d", counts.total())
    units = by_unit.sort("component", "results", "unit").group_by("component", maintain_order=True).agg(
        pl.col("results").sum(), numeric=pl.col("n").sum() / pl.col("results").sum(), unit=pl.col("unit").last(),
        units=pl.len(),
    )  # fmt: skip
    with_ecg = pl.col("pair").mod(2**32).is_in([visit_codes[csn] for csn in has_ecg if csn in visit_codes])
    visits = pl.concat(pairs).unique().to_frame().group_by(code=pl.col("pair") // 2**32).agg(
        visits=pl.len(), visits_with_ecg=with_ecg.sum()
    )  # fmt: skip
    components = [target.component for target in read_targets(config.targets)]
    excluded = (
        pl.when(pl.col("component").str.contains(NOT_BLOOD)).then(pl.lit("not blood"))
        .when(pl.col("numeric") < 0.5).then(pl.lit("yes/no"))
        .when(pl.col("visits_with_ecg") < min_visits).then(pl.lit("rare"))
        .otherwise(pl.lit(""))
    )  # fmt: skip
    found = units.with_columns(code=_coded(units["component"], component_codes)).join(visits, on="code").select(
        "component", "results", "visits", "visits_with_ecg", "numeric", "unit", "units",
        in_table=pl.col("component").is_in(components), excluded=excluded,
    )  # fmt: skip
    return found.sort(["visits_with_ecg", "component"], descending=[True, False])


def _single(results):
    """Return one result a draw of one component, and how many repeated or contradicted another.

    Of several the first reported counts; two reported at the same moment that differ cancel each other out.
    """
    ordered = results.sort(*DRAW, "result", "number", "sign", "low", "high")
    distinct = ordered.unique([*DRAW, "result", "sign", "number"], keep="first", maintain_order=True)
    first = distinct.filter(pl.col("result") == pl.col("result").min().over(*DRAW))
    alone = pl.len().over(*DRAW) == 1
    return first.filter(alone), results.height - first.height, first.filter(~alone).height


def _wide(files, components, targets, config, flow):
    """Lay results out as one row a draw; a draw whose every result was contradicted has nothing to say."""
    draws = pl.DataFrame(schema=DRAW)
    columns = {}
    n_kept = n_repeated = n_torn = n_undecided = 0
    with Progress("draws", 2 * len(files), " steps") as progress:
        for file in files:
            single, repeated, torn = _single(_appended(file))
            n_kept, n_repeated, n_torn = n_kept + single.height, n_repeated + repeated, n_torn + torn
            single.write_ipc_stream(file, compression="zstd")
            draws = pl.concat([draws, single.select(*DRAW)]).unique()
            progress.advance(1)
        draws = draws.sort(*DRAW)
        for file, component in zip(files, components, strict=True):
            mine = draws.join(_appended(file), on=list(DRAW), how="left", maintain_order="left")
            exact = pl.when(pl.col("sign") == "=").then(pl.col("number")).otherwise(float("nan"))
            columns[f"value:{component}"] = mine.select(exact.cast(pl.Float32)).to_series()
            for target in targets:
                if target.component == component:
                    limit = pl.col(target.direction) if config.limits == "file" else target.limit
                    label = label_of(pl.col("sign"), pl.col("number"), target.direction, limit)
                    columns[target.name] = mine.select(label).to_series()
                    n_undecided += mine.filter(pl.col("number").is_not_null() & (label == -1)).height
            progress.advance(1)
    flow += [
        ("- repeated in a draw", n_repeated), ("- contradicting another of the draw", n_torn), ("results", n_kept),
        ("labels that a result cannot decide", n_undecided), ("draws", draws.height),
    ]  # fmt: skip
    names = [target.name for target in targets] + [f"value:{component}" for component in components]
    time = draws["anchor"] - round(config.lag_minutes * 60e6)
    return pl.DataFrame(
        {"visit_row": draws["visit_row"], "time": time, **{name: columns[name] for name in names}}
    ), flow
