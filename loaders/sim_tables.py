"""The simulated double's tables: visits, laboratory results, vital signs, waveform summary and official splits."""

import numpy as np
import polars as pl

from anyecg.kernels.counter import permute
from anyecg.loaders.sim_law import (
    BLOCK,
    OF_TABLES,
    PLANTED,
    component_laws,
    generator,
    levels,
)
from anyecg.loaders.sim_waveforms import RATES, SHORTEST_S, TYPICAL_RATE

CSN_FIRST, MRN_FIRST, N_NAMES = 90_000_000, 10_000_000, 10_000_000
SEXES, RACES = ("F", "M"), ("White", "Asian", "Black or African American", "Other", "Unknown")
ETHNICITIES = ("Non-Hispanic/Non-Latino", "Hispanic/Latino", "Unknown")
# Vital signs: mean, standard deviation, digits after the point. Triage takes the temperature in C, monitors in F.
TRIAGE = {"Temp": (36.9, 0.5, 1), "HR": (86, 17, 0), "RR": (18, 2.5, 0), "SpO2": (96, 1, 0), "SBP": (136, 23, 0),
          "DBP": (79, 14, 0)}  # fmt: skip
MONITOR = {**TRIAGE, "Temp": (98.5, 0.8, 1), "HR": (TYPICAL_RATE, 12, 0)}
PANELS = ("COMPREHENSIVE METABOLIC PANEL", "CBC WITH DIFFERENTIAL", "BLOOD GAS, VENOUS", "LIPID PANEL", "COAGULATION")
# Results that no target asks for, as the real table has them: commas, a line break, words instead of numbers.
OTHERS = (
    ("COVID-19 RNA, PCR", ("Negative", "Positive"), ""), ("NITRITE, URINE", ("Negative", "Positive", "Trace"), ""),
    ("RBC MORPHOLOGY,\nMANUAL", ("Normal", "See note", 'Anisocytosis, "slight"'), ""),
    ("HEMOLYSIS INDEX", ("12", "<5", ">300"), "mg/dL"),
)  # fmt: skip
# Shares of flawed results.
WORDS, OTHER_UNIT, NO_ORDER_TIME, REPEATED, UNKNOWN_VISIT, UNDECIDED = 0.004, 0.002, 0.003, 0.006, 0.0005, 0.002
# Levels beyond which the analyser says "above (below) its range" only.
RANGE = 2.4


def name_visits(seed, number):
    """Return the CSNs of visits, 8 digits, in no order that means anything."""
    return (CSN_FIRST + permute(number, N_NAMES, seed)).astype(str)


def name_patients(seed, number):
    """Return the MRNs of patients."""
    return (MRN_FIRST + permute(number, N_NAMES, seed + 1)).astype(str)


def iso(seconds):
    """Return int64 seconds since 1970 as MC-MED writes them, 2262-01-09T03:16:07Z."""
    text = np.datetime_as_string(np.asarray(seconds, np.int64).astype("datetime64[s]"))
    return np.char.add(text, "Z")


def visit_table(seed, block):
    """Return visits.csv of one block."""
    rng = generator(seed, OF_TABLES, int(block.number[0]))
    person = block.patient - block.number[0]
    age, sex, race, ethnicity = (
        values[person]
        for values in (
            rng.integers(18, 100, BLOCK), rng.integers(0, 2, BLOCK), rng.integers(0, len(RACES), BLOCK),
            rng.integers(0, len(ETHNICITIES), BLOCK),
        )
    )  # fmt: skip
    roomed, disposed = (
        block.arrival + 60 * rng.integers(1, 30, BLOCK),
        block.arrival + 3600 * rng.integers(3, 12, BLOCK),
    )
    vitals = {}
    for name, (mean, sd, digits) in TRIAGE.items():
        text = np.char.mod(f"%.{digits}f", rng.normal(mean, sd, BLOCK))
        vitals[f"Triage_{name}"] = np.where(rng.random(BLOCK) < 0.05, "", text)
    return pl.DataFrame(
        {
            "MRN": name_patients(seed, block.patient), "CSN": name_visits(seed, block.number),
            "Age": np.where(age > 90, "90+", age.astype(str)), "Gender": np.array(SEXES)[sex],
            "Race": np.array(RACES)[race], "Ethnicity": np.array(ETHNICITIES)[ethnicity],
            "Means_of_arrival": np.array(["Self", "EMS"])[rng.integers(0, 2, BLOCK)], **vitals,
            "Triage_acuity": rng.integers(1, 6, BLOCK).astype(str),
            "CC": np.array(["CHEST PAIN", "ABDOMINAL PAIN", "SHORTNESS OF BREATH, ACUTE"])[rng.integers(0, 3, BLOCK)],
            "Arrival_time": iso(block.arrival), "Roomed_time": iso(roomed), "Dispo_time": iso(disposed),
            "ED_dispo": np.array(["Discharge", "Inpatient", "Observation"])[rng.integers(0, 3, BLOCK)],
        }
    )  # fmt: skip


def lab_table(seed, block, n_visits):
    """Return labs.csv of the first ``n_visits`` visits of one block."""
    rng = generator(seed, OF_TABLES, 1 << 40 | int(block.number[0]))
    parts = []
    shape_ND = block.time_ND.shape
    present_ND = np.isfinite(block.time_ND) & block.has_labs[:, None]
    present_ND[n_visits:] = False
    for place, law in enumerate(component_laws()):
        planted = law.component in PLANTED
        # Taken for planted components too, so that planting another leaves the results of the others as they are.
        level_ND = levels(rng, shape_ND)
        level_ND = block.level_NDC[:, :, PLANTED.index(law.component)] if planted else level_ND
        parts.append(_results(rng, block, law, place, level_ND, present_ND & (rng.random(shape_ND) < law.measured)))
    for name, words, unit in OTHERS:
        visit, draw = np.nonzero(present_ND & (rng.random(shape_ND) < 0.3))
        values = np.array(words)[rng.integers(0, len(words), len(visit))]
        parts.append(_rows(rng, block, visit, draw, name, values, np.full(len(visit), unit), PANELS[0], "", ""))
    table = pl.concat(parts)
    table = table.with_columns(CSN=pl.Series(name_visits(seed, block.number))[table["visit"].to_numpy()])
    table = table.sort("visit", "order", maintain_order=True)
    return _flaws(rng, table).select(
        "CSN", Order_time="Order_time", Result_time="Result_time", Display_name="panel", Abnormal="flag",
        Component_name="name", Component_result="value", Component_value="value", Component_units="unit",
        Component_abnormal="flag", Component_nml_low="low", Component_nml_high="high",
    )  # fmt: skip


def _results(rng, block, law, place, level_ND, measured_ND):
    visit, draw = np.nonzero(measured_ND)
    level = level_ND[visit, draw]
    value = np.char.mod(f"%.{law.decimals}f", law.value(np.clip(level, -RANGE, RANGE)))
    value = np.char.add(np.where(level > RANGE, ">", np.where(level < -RANGE, "<", "")), value)
    if law.component not in PLANTED and not np.isnan(law.high):
        # "Below a number above the limit" does not say whether it is above the limit.
        value = np.where(rng.random(len(level)) < UNDECIDED, f"<{2 * law.high:g}", value)
    value = np.where(rng.random(len(level)) < WORDS, "Hemolyzed, not reported", value)
    unit = np.where(rng.random(len(level)) < OTHER_UNIT, "arb. unit", law.unit.replace("ug", "µg"))
    limits = ["" if np.isnan(limit) else f"{limit:g}" for limit in (law.low, law.high)]
    return _rows(rng, block, visit, draw, law.component, value, unit, PANELS[place % len(PANELS)], *limits)


def _rows(rng, block, visit, draw, name, value, unit, panel, low, high):
    order = block.arrival[visit] + block.time_ND[visit, draw].astype(np.int64)
    result = order + 60 * rng.integers(15, 90, len(visit))
    columns = {"visit": visit, "order": order, "result": result, "value": value, "unit": unit}
    constants = {"name": name, "panel": panel, "low": low, "high": high}
    table = pl.DataFrame(
        columns,
        schema={"visit": pl.Int64, "order": pl.Int64, "result": pl.Int64, "value": pl.String, "unit": pl.String},
    )
    return table.with_columns(**{key: pl.lit(text) for key, text in constants.items()})


def _flaws(rng, table):
    """Add times, abnormal flags and the flaws of real tables: repeated rows, missing order times, unknown visits."""
    repeated = table.filter(pl.Series(rng.random(table.height) < REPEATED))
    # Half of the repeats were reported again later; of the others half differ by a digit, but for planted components.
    later, differs = (pl.Series(rng.random(repeated.height) < 0.5) for _ in range(2))
    differs &= ~later & ~repeated["name"].is_in(PLANTED)
    repeated = repeated.with_columns(
        result=pl.col("result") + pl.when(later).then(1800).otherwise(0),
        value=pl.col("value") + pl.when(differs).then(pl.lit("1")).otherwise(pl.lit("")),
    )
    table = pl.concat([table, repeated]).sort("visit", "order", maintain_order=True)
    unknown = pl.Series(rng.random(table.height) < UNKNOWN_VISIT)
    no_time = pl.Series(rng.random(table.height) < NO_ORDER_TIME)
    number = pl.col("value").str.strip_chars("<>").cast(pl.Float64, strict=False)
    limit = {side: pl.col(side).cast(pl.Float64, strict=False) for side in ("low", "high")}
    return table.with_columns(
        CSN=pl.when(unknown).then(pl.lit("9") + pl.col("CSN")).otherwise(pl.col("CSN")),
        Order_time=pl.when(no_time).then(pl.lit("")).otherwise(pl.Series(iso(table["order"].to_numpy()))),
        Result_time=pl.Series(iso(table["result"].to_numpy())),
        flag=pl.when(number > limit["high"]).then(pl.lit("High")).when(number < limit["low"]).then(pl.lit("Low"))
        .otherwise(pl.lit("")),
    )  # fmt: skip


def numeric_table(seed, block, n_visits, hours):
    """Return numerics.csv of the first ``n_visits`` visits: vital signs every ten minutes."""
    rng = generator(seed, OF_TABLES, 2 << 40 | int(block.number[0]))
    steps = max(1, int(hours * 6))
    visit = np.repeat(np.arange(BLOCK), steps)
    time = iso(block.arrival[visit] + 600 * np.tile(np.arange(steps), BLOCK))
    csn = name_visits(seed, block.number)[visit]
    parts = [
        pl.DataFrame(
            {
                "CSN": csn, "Source": np.full(len(visit), "Monitor"), "Measure": np.full(len(visit), measure),
                "Value": np.char.mod(f"%.{digits}f", rng.normal(mean, sd, len(visit))), "Time": time,
            }
        )
        for measure, (mean, sd, digits) in MONITOR.items()
    ]  # fmt: skip
    return pl.concat(parts).filter(pl.Series(np.tile(visit < n_visits, len(parts))))


def summary_table(seed, block, n_visits):
    """Return waveform_summary.csv of the first ``n_visits`` visits."""
    length_NS = block.stop_NS - block.start_NS
    length_NS = np.where(length_NS >= SHORTEST_S, length_NS, 0)[:n_visits]
    kept = np.flatnonzero(block.has_waveforms[:n_visits] & (length_NS > 0).any(axis=1))
    csn = name_visits(seed, block.number)[kept]
    kinds = len(RATES)
    return pl.DataFrame(
        {
            "CSN": np.repeat(csn, kinds), "Type": np.tile(list(RATES), len(kept)),
            "Segments": np.repeat((length_NS[kept] > 0).sum(axis=1), kinds),
            "Duration": np.repeat(np.round(length_NS[kept].sum(axis=1), 3), kinds),
        }
    )  # fmt: skip


def official_lists(seed, patient, arrival, number):
    """Return {file name: CSNs} of MC-MED's own splits, 80/10/10 of the patients, by chance and by first arrival."""
    patients, row = np.unique(patient, return_inverse=True)
    first = np.full(len(patients), np.iinfo(np.int64).max)
    np.minimum.at(first, row, arrival)
    chance = permute(np.arange(len(patients)), max(len(patients), 2), seed + 2)
    lists = {}
    for kind, key in (("random", chance), ("chrono", first)):
        rank = np.empty(len(patients), np.int64)
        rank[np.argsort(key, kind="stable")] = np.arange(len(patients))
        split = np.digitize(rank / len(patients), [0.8, 0.9])[row]
        for place, name in enumerate(("train", "val", "test")):
            lists[f"split_{kind}_{name}.csv"] = name_visits(seed, number[split == place])
    return lists
