"""Vital signs of MC-MED's numerics.csv: the mean of each measure in each visit."""

from collections import Counter

import polars as pl

from anyecg.loaders.tables import blocks

NUMERIC_COLUMNS = ("CSN", "Measure", "Value")
MEASURES = ("HR", "RR", "SpO2", "SBP", "DBP", "MAP", "Temp", "Perf")


def read_vitals(path, visits):
    """Read numerics.csv block by block, where there is one.

    Parameters
    ----------
    path : path
    visits : polars.DataFrame
        With CSN.

    Returns
    -------
    (polars.DataFrame, list)
        One row a visit and one float32 column ``monitor_MEASURE`` each, its mean in the source's unit (Temp in F), NaN
        without any; and the flow of exclusions, empty without the file.
    """
    names = [f"monitor_{measure}" for measure in MEASURES]
    if not path.exists():
        return pl.DataFrame({name: [float("nan")] * visits.height for name in names}).cast(pl.Float32), []
    counts: Counter[str] = Counter()
    sums = pl.DataFrame(schema={"visit_row": pl.UInt32, "Measure": pl.String, "sum": pl.Int64, "n": pl.UInt32})
    rows = visits.select("CSN").with_row_index("visit_row").lazy()
    for block in blocks(path, NUMERIC_COLUMNS, counts):
        number = pl.col("Value").cast(pl.Float64, strict=False)
        # Thousandths as integers: their sum is the same in any order and so on any number of threads.
        number = pl.when(number.abs() < 1e9).then((number * 1000).round().cast(pl.Int64))
        table = block.with_columns(number=number).join(rows, on="CSN", how="left")
        reason = (
            pl.when(pl.col("visit_row").is_null()).then(pl.lit("of an unknown visit"))
            .when(~pl.col("Measure").is_in(MEASURES).fill_null(False)).then(pl.lit("of another measure"))
            .when(pl.col("number").is_null()).then(pl.lit("not a number"))
            .otherwise(pl.lit("kept"))
        )  # fmt: skip
        table = table.with_columns(reason=reason).collect()
        counts.update(dict(table.group_by("reason").len().iter_rows()))
        kept = table.filter(pl.col("reason") == "kept").group_by("visit_row", "Measure")
        found = kept.agg(sum=pl.col("number").sum(), n=pl.len())
        sums = pl.concat([sums, found]).group_by("visit_row", "Measure", maintain_order=True).sum()
    n_rows, n_kept = sum(counts.values()), counts.pop("kept", 0)
    flow = [("rows in numerics.csv", n_rows), *((f"- {reason}", n) for reason, n in sorted(counts.items()))]
    means = visits.select("CSN").with_row_index("visit_row").select("visit_row")
    for measure, name in zip(MEASURES, names, strict=True):
        mean = pl.col("sum") / pl.col("n") / 1000
        mine = sums.filter(pl.col("Measure") == measure).select("visit_row", mean.alias(name))
        means = means.join(mine, on="visit_row", how="left", maintain_order="left")
    return means.select(pl.col(names).fill_null(float("nan")).cast(pl.Float32)), [*flow, ("vital signs", n_kept)]
