"""The paper's Table 1: who is in the cohort and in each split, counted by patient."""

import numpy as np
import polars as pl

from anyecg.loaders.splits import SPLITS

MIN_PATIENTS = 10
SEX_NAMES = {0: "female", 1: "male", -1: "unknown"}


def _share(n, total):
    return f"{n} ({n / total:.1%})" if total else "0"


def _categories(cohort, what):
    """Return race or ethnicity of each visit; values of fewer than MIN_PATIENTS patients are not named."""
    values = cohort.side[what].fill_null("").replace("", "unknown")
    patients = (
        pl.DataFrame({"value": values, "patient": cohort.visits["patient"]})
        .group_by("value")
        .agg(pl.col("patient").n_unique())
    )
    rare = patients.filter(pl.col("patient") < MIN_PATIENTS)["value"].to_list()
    return values.replace(dict.fromkeys(rare, f"each of fewer than {MIN_PATIENTS} patients"))


def _column(cohort, keep):
    """Return {characteristic: text} of the visits in ``keep``; a patient counts with its first."""
    visits = cohort.visits.filter(keep)
    first = visits.with_row_index().unique("patient", keep="first", maintain_order=True)["index"].to_list()
    patients = visits[first]
    rows = np.flatnonzero(keep)
    n = len(first)
    age = patients["age"].to_numpy()
    age = age[~np.isnan(age)]
    column = {
        "patients": str(n),
        "visits": str(visits.height),
        "records": str(cohort.records["visit_row"].is_in(rows.tolist()).sum()),
        "draws": str(cohort.draws["visit_row"].is_in(rows.tolist()).sum()),
        "age, mean (SD)": f"{age.mean():.1f} ({age.std():.1f})" if len(age) else "unknown",
    }
    for code, name in SEX_NAMES.items():
        column[f"sex: {name}"] = _share(int((patients["sex"] == code).sum()), n)
    if cohort.side.width:
        for what in ("Race", "Ethnicity"):
            values = _categories(cohort, what).filter(keep)[first]
            for name, count in sorted(values.value_counts().iter_rows()):
                column[f"{what.lower()}: {name}"] = _share(count, n)
    vitals = [name for name in cohort.side.columns if name.startswith(("Triage_", "monitor_"))]
    for name in vitals:
        value = cohort.side[name].filter(keep)[first].fill_nan(None).drop_nulls()
        if cohort.side[name].is_finite().any():
            column[f"{name}, mean (SD)"] = f"{value.mean():.1f} ({value.std() or 0:.1f})" if len(value) else "unknown"
    return column


def table1(cohort):
    """Return Table 1.

    Parameters
    ----------
    cohort : anyecg.loaders.cohort.Cohort

    Returns
    -------
    polars.DataFrame
        characteristic, all, train, val, test; text. Shares are of the column's patients.
    """
    split = cohort.visits["split"].to_numpy()
    columns = {"all": _column(cohort, np.ones(len(split), bool))}
    columns |= {name: _column(cohort, split == number) for number, name in enumerate(SPLITS)}
    names = list(columns["all"])
    return pl.DataFrame(
        {"characteristic": names, **{key: [column.get(name, "0") for name in names] for key, column in columns.items()}}
    )


def render_flow(flow):
    """Return the flow of exclusions as aligned lines for a terminal."""
    width = max(len(what) for what, _ in flow)
    return "\n".join(f"{what.ljust(width)}  {n:>10}" for what, n in flow)


def render(table):
    """Return a table of text as aligned lines for a terminal."""
    lines = [table.columns, *table.iter_rows()]
    widths = [max(len(line[place]) for line in lines) for place in range(table.width)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
