"""MC-MED's layout, built by hand with every oddity, each counted or refused."""

import csv
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from anyecg.loaders.cohort import build_cohort, open_cohort, write_cohort
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import CohortError
from anyecg.loaders.index import open_index
from anyecg.loaders.mcmed import find_waveforms, read_visits
from anyecg.loaders.table1 import table1

from ..conftest import anyecg

START = datetime(2262, 4, 11, 22, 0, 0, tzinfo=UTC)
LABS = (
    "CSN", "Order_time", "Result_time", "Display_name", "Abnormal", "Component_name", "Component_result",
    "Component_value", "Component_units", "Component_abnormal", "Component_nml_low", "Component_nml_high",
)  # fmt: skip
VISITS = ("MRN", "CSN", "Age", "Gender", "Race", "Ethnicity", "Triage_Temp", "Triage_HR", "Arrival_time")


def iso(minutes):
    return (START + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def lab(csn, minutes, component, value, units, low="", high="", result=None):
    result = iso(minutes + 40 if result is None else result)
    return (csn, iso(minutes), result, "Panel,\nserum", "", component, value, value, units, "", low, high)


def potassium(csn, minutes, value, units="mmol/L", **options):
    return lab(csn, minutes, "POTASSIUM", value, units, **options)


def waveform(root, csn, number, minutes, seconds=60, base=True, seed=0):
    folder = root / "waveforms" / csn[-3:] / csn / "II"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + number)
    counts = (300 * rng.standard_normal(int(seconds * 500))).astype("<i2")
    begin = START + timedelta(minutes=minutes)
    when = begin.strftime(" %H:%M:%S %d/%m/%Y") if base else ""
    name = f"{csn}_{number}"
    (folder / f"{name}.hea").write_text(f"{name} 1 500 {len(counts)}{when}\n{name}.dat 16 1000/mV 16 0 0 0 0 II\n")
    (folder / f"{name}.dat").write_bytes(counts.tobytes())


def write(path, head, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


@pytest.fixture
def mcmed(tmp_path):
    """Four visits of three patients with waveforms, one without, and a little of everything that goes wrong."""
    root = tmp_path / "mcmed"
    root.mkdir()
    visits = [
        ("m1", "99000001", "61", "F", "White", "Non-Hispanic", "36.6", "80", iso(0)),
        ("m1", "99000002", "61", "F", "White", "Non-Hispanic", "36.6", "", iso(900)),
        ("m2", "99000003", "40", "M", "Asian", "Hispanic", "37.0", "99", iso(0)),
        ("m3", "99000004", "", "X", "Other", "", "", "", iso(0)),
        ("m4 ", "99000005", "50", "M", "Other", "", "", "", iso(0)),
        ("m4", "99000005", "50", "M", "Other", "", "", "", iso(0)),
        ("m5", "99000006", "50", "M", "Other", "", "", "", iso(0)),
        ("m6", "99000006", "50", "M", "Other", "", "", "", iso(0)),
        ("", "99000007", "50", "M", "Other", "", "", "", iso(0)),
    ]
    write(root / "visits.csv", VISITS, visits)
    rows = [
        potassium("99000001", 30, "5.5"), lab("99000001", 30, "SODIUM", "140", "mmol/L"),
        potassium("99000001", 90, "<3.0"), potassium("99000001", 90, "<3.0"),
        potassium("99000002", 930, ">10.0"), potassium("99000002", 960, "Negative"),
        potassium("99000003", 20, "4.0"), potassium("99000003", 20, "4.4", result=90),
        potassium("99000003", 50, "4.0", result=60), potassium("99000003", 50, "6.0", result=60),
        potassium("99000004", 10, "4.1", units="mg/dL"), potassium("99000004", 40, ">4.0"),
        potassium("99000005", 10, "4.1"), potassium("12345678", 10, "4.1"),
        lab("99000001", 30, "ODD, COMPONENT\n2", "1", ""),
        ("99000003", "soon", iso(3), "x", "", "POTASSIUM", "4", "4", "mmol/L", "", "", ""),
    ]  # fmt: skip
    write(root / "labs.csv", LABS, rows)
    rows += [(None, *potassium("x", 30, "4")[1:]), ("", *potassium("x", 30, "4")[1:]), lab("99000001", 30, "", "5", "")]
    with (root / "labs.csv").open("a", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [["" if cell is None else cell for cell in row] for row in rows[16:]]
        )
    for number, minutes in ((2, 31), (10, 60), (1, 25)):
        waveform(root, "99000001", number, minutes)
    waveform(root, "99000002", 1, 925, seed=10)
    waveform(root, "99000003", 1, 15, seconds=300, seed=20)
    waveform(root, "99000004", 1, 35, seed=30)
    waveform(root, "99000004", 2, 36, base=False, seed=30)
    (root / "waveforms/004/99000004/II/99000004_3.hea").write_text("broken")
    return root


def cohort_of(root, **options):
    return build_cohort(
        CohortConfig(kind="mcmed", path=str(root), test_fraction=0.4, val_fraction=0.3, **options), seed=1
    )


def test_segments_are_sorted_as_numbers(mcmed):
    assert [path.split("_")[-1] for path in find_waveforms(mcmed, "99000001")] == ["1", "2", "10"]


def test_every_row_of_both_tables_is_kept_or_counted_by_reason(mcmed):
    cohort = cohort_of(mcmed)
    flow = cohort.flow
    steps = [what for what, _ in flow]
    numbers = dict(flow)
    first, last = steps.index("rows in visits.csv"), steps.index("visits")
    assert numbers["rows in visits.csv"] == numbers["visits"] + sum(n for _, n in flow[first + 1 : last]) == 9
    assert (numbers["- without MRN or CSN"], numbers["- one CSN with two patients"], numbers["- repeated CSN"]) == (
        1,
        2,
        1,
    )
    first, last = steps.index("rows in labs.csv"), steps.index("results")
    assert numbers["rows in labs.csv"] == numbers["results"] + sum(n for _, n in flow[first + 1 : last]) == 19
    assert (numbers["- of an unknown visit"], numbers["- of a component without target"]) == (3, 2)
    for reason in (
        "- without order time", "- not a number",
        "- in another unit",
    ):  # fmt: skip
        assert numbers[reason] == 1
    assert numbers["- repeated in a draw"] == 2
    assert numbers["- contradicting another of the draw"] == 2
    assert (numbers["visits kept"], numbers["patients kept"]) == (4, 3)
    assert numbers["ages not a number"] == 0
    assert (numbers["- without lead II waveforms"], numbers["- unreadable"], numbers["- no base time"]) == (1, 1, 1)


def test_the_visits_add_up_line_by_line(mcmed):
    official(mcmed, ["99000001", "99000002"], ["99000003"], [])
    for split in ("patient", "chrono"):
        flow = cohort_of(mcmed, split=split).flow
        steps = [what for what, _ in flow]
        reasons = ["- without lead II waveforms", *["- visits in no official list"] * (split == "chrono")]
        first = steps.index("visits")
        assert steps[first:] == [
            "visits", "- without a draw with results", "visits with draws", *reasons, "visits kept", "patients kept",
            "ages not a number",
        ]  # fmt: skip
        numbers = dict(flow)
        without = numbers["- without a draw with results"]
        assert numbers["visits"] == 5 == numbers["visits with draws"] + without
        assert numbers["visits with draws"] == numbers["visits kept"] + sum(numbers[reason] for reason in reasons)
    assert [numbers[reason] for reason in reasons] == [1, 1]


def test_a_visit_whose_results_are_all_left_out_is_counted_as_without_draw(mcmed):
    write(mcmed / "labs.csv", LABS, [potassium("99000001", 30, "5.5"), potassium("99000003", 30, "Negative")])
    numbers = dict(cohort_of(mcmed).flow)
    assert (numbers["- without a draw with results"], numbers["visits with draws"], numbers["visits kept"]) == (4, 1, 1)


def test_ages_above_90_are_90_and_those_not_a_number_are_counted(mcmed):
    ages = {"90+": 90, ">90": 90, "> 89.5": 89.5, "≥90": 90, "90 +": 90, "61": 61, "": None, "old": None, "nan": None}
    rows = [(f"m{n}", f"{n}", age, "F", "", "", "", "", iso(0)) for n, age in enumerate(ages)]
    write(mcmed / "visits.csv", VISITS, rows)
    visits, _, n_odd_ages = read_visits(mcmed / "visits.csv")
    assert visits["age"].fill_nan(None).to_list() == list(ages.values())
    assert n_odd_ages == 2


def test_labels_and_values_follow_the_results(mcmed):
    cohort = cohort_of(mcmed)
    high, low, value = "POTASSIUM high", "POTASSIUM low", "value:POTASSIUM"
    minutes = [round((time / 1e6 - START.timestamp()) / 60) for time in cohort.draws["time"]]
    found = dict(zip(minutes, cohort.draws.select(high, low, value).rows(), strict=True))
    assert found[30][:2] == (1, 0)
    assert found[30][2] == pytest.approx(5.5)
    assert found[90][:2] == (0, 1)
    assert found[930][:2] == (1, 0)
    assert found[20][2] == pytest.approx(4.0)  # the first reported of two
    assert found[40][:2] == (-1, 0)  # ">4.0" cannot tell whether above 5.0
    assert np.isnan(found[40][2])
    assert 960 not in found
    assert 10 not in found
    row = cohort.draws.filter(cohort.draws["time"] == cohort.draws["time"].min())
    assert row.height == 1
    assert cohort.draws["SODIUM low"].to_list().count(0) == 1


def test_times_past_2262_are_kept_to_the_second(mcmed):
    cohort = cohort_of(mcmed)
    assert cohort.records["start"].min() == int((START + timedelta(minutes=15)).timestamp()) * 1_000_000
    assert cohort.draws["time"].max() == int((START + timedelta(minutes=930)).timestamp()) * 1_000_000


def test_the_anchor_may_be_the_result_less_a_lag(mcmed):
    order, result = cohort_of(mcmed), cohort_of(mcmed, anchor="result", lag_minutes=10.0)
    moved = result.draws.filter(result.draws["POTASSIUM high"] == 1)["time"].to_list()
    first = order.draws.filter(order.draws["POTASSIUM high"] == 1)["time"].to_list()
    assert [a - b for a, b in zip(moved, first, strict=True)] == [30 * 60_000_000] * 2


def test_limits_of_the_file_replace_those_of_the_table(mcmed):
    write(mcmed / "labs.csv", LABS, [potassium("99000001", 30, "5.5", low="3.0", high="6.0")])
    assert cohort_of(mcmed).draws["POTASSIUM high"].to_list() == [1]
    assert cohort_of(mcmed, limits="file").draws["POTASSIUM high"].to_list() == [0]


def test_a_doubled_or_overlapping_recording_counts_once(mcmed):
    folder = mcmed / "waveforms/003/99000003/II"
    for suffix in ("hea", "dat"):
        text = (folder / f"99000003_1.{suffix}").read_bytes().replace(b"99000003_1", b"99000003_2")
        (folder / f"99000003_2.{suffix}").write_bytes(text)
    cohort = cohort_of(mcmed)
    assert cohort.records["path"].str.contains("99000003").sum() == 1
    assert dict(cohort.flow)["- overlaps another record"] == 1
    assert ("waveforms/003/99000003/II/99000003_2", "overlaps another record") in cohort.quarantine.rows()


def test_a_micro_sign_is_a_u(mcmed, tmp_path):
    (tmp_path / "t.csv").write_text("component,direction,limit,unit\nIRON,high,5,\u00b5g/dL\n", encoding="utf-8")
    write(
        mcmed / "labs.csv",
        LABS,
        [lab("99000001", 30 + n, "IRON", "6", u) for n, u in enumerate(("ug/dL", "\u03bcg/dl"))],
    )
    cohort = cohort_of(mcmed, targets=str(tmp_path / "t.csv"))
    assert cohort.draws["IRON high"].to_list() == [1, 1]


def test_the_run_folder_may_lie_among_the_recordings(mcmed):
    (mcmed / "c.toml").write_text(
        'folder = "run"\n[cohort]\nkind = "mcmed"\npath = "."\n[shard]\nranks = 1\nmax_bad_fraction = 0.5\n'
    )
    assert [anyecg(stage, mcmed / "c.toml").returncode for stage in ("cohort", "shard")] == [0, 0]


def test_units_may_be_ignored(mcmed):
    assert "- in another unit" not in dict(cohort_of(mcmed, units="ignore").flow)


def test_split_by_visit_says_how_many_patients_overlap(mcmed):
    overlaps = set()
    for seed in range(20):
        config = CohortConfig(kind="mcmed", path=str(mcmed), test_fraction=0.4, val_fraction=0.3, split="visit")
        overlaps.add(build_cohort(config, seed=seed).n_overlapping)
        assert build_cohort(config.model_copy(update={"split": "patient"}), seed=seed).n_overlapping == 0
    assert overlaps == {0, 1}


def official(root, train, val, test):
    for name, rows in (("train", train), ("val", val), ("test", test)):
        (root / f"split_chrono_{name}.csv").write_text("".join(f"{csn}\n" for csn in rows))


def test_official_lists_are_followed_and_visits_in_none_are_counted(mcmed, tmp_path):
    official(mcmed, ["99000001", "99000002"], ["99000003"], [])
    cohort = cohort_of(mcmed, split="chrono")
    assert sorted(cohort.visits["split"].to_list()) == [0, 0, 1]
    assert dict(cohort.flow)["- visits in no official list"] == 1
    official(mcmed, ["99000001"], ["99000003"], ["99000002"])
    with pytest.raises(CohortError, match="1 patients stand in two splits"):
        write_cohort(tmp_path / "out", cohort_of(mcmed, split="chrono"), "x")
    official(mcmed, ["99000001"], ["99000001"], [])
    with pytest.raises(CohortError, match="1 visits stand in another split's list too"):
        cohort_of(mcmed, split="chrono")
    with pytest.raises(CohortError, match=r"split_random_train\.csv: no such file"):
        cohort_of(mcmed, split="random")


def test_table_1_counts_each_patient_once(mcmed):
    cohort = cohort_of(mcmed)
    table = {row[0]: row[1:] for row in table1(cohort).iter_rows()}
    assert [int(n) for n in table["visits"]] == [4, *(int((cohort.visits["split"] == s).sum()) for s in range(3))]
    n_all, *n_splits = (int(n) for n in table["patients"])
    assert n_all == sum(n_splits) == 3
    assert int(table["draws"][0]) == cohort.draws.height
    assert table["age, mean (SD)"][0] == "50.5 (10.5)"
    assert [table[f"sex: {name}"][0] for name in ("female", "male", "unknown")] == ["1 (33.3%)"] * 3
    # Values of single patients are not named.
    assert [what for what in table if what.startswith("race")] == ["race: each of fewer than 10 patients"]
    assert table["ethnicity: each of fewer than 10 patients"][0] == "3 (100.0%)"


def test_targets_counts_components_with_ecg_and_says_why_one_is_left_out(mcmed, tmp_path):
    rows = [potassium("99000001", 1, "4"), potassium("99000003", 1, "4"), potassium("99000005", 1, "4", units="x")]
    rows += [lab("99000001", 1, name, value, "") for name, value in (("GLUCOSE, URINE", "5"), ("COVID", "Negative"))]
    rows += [lab("99000005", 1, "ODD, COMPONENT\n2", "1", "")]
    write(mcmed / "labs.csv", LABS, rows)
    (tmp_path / "c.toml").write_text(f'[cohort]\nkind = "mcmed"\npath = "{mcmed}"\n')
    done = anyecg("targets", tmp_path / "c.toml", "--out", tmp_path / "out.csv", "--min-visits", 2)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out.csv").open(newline="") as file:
        found = {row["component"]: row for row in csv.DictReader(file)}
    assert {name: row["excluded"] for name, row in found.items()} == {
        "POTASSIUM": "", "GLUCOSE, URINE": "not blood", "COVID": "yes/no", "ODD, COMPONENT\n2": "rare",
    }  # fmt: skip
    assert (found["POTASSIUM"]["visits"], found["POTASSIUM"]["visits_with_ecg"]) == ("3", "2")
    assert (found["POTASSIUM"]["unit"], found["POTASSIUM"]["units"]) == ("mmol/L", "2")
    assert found["ODD, COMPONENT\n2"]["visits_with_ecg"] == "0"
    assert "4 components" in done.stdout


@pytest.mark.parametrize(("table", "column"), [("visits", "MRN"), ("labs", "Component_units")])
def test_a_missing_table_or_column_is_one_clear_line(mcmed, table, column):
    path = mcmed / f"{table}.csv"
    text = path.read_text()
    path.write_text(text.replace(column, "renamed", 1))
    with pytest.raises(CohortError, match=f"{table}.csv: column '{column}' is missing; found"):
        cohort_of(mcmed)
    path.unlink()
    with pytest.raises(CohortError, match=f"{table}.csv: no such file"):
        cohort_of(mcmed)


def test_windows_near_draws_become_pairs_with_their_horizons(mcmed, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        f'folder = "run"\nseed = 1\n[cohort]\nkind = "mcmed"\npath = "{mcmed}"\n'
        "test_fraction = 0.4\nval_fraction = 0.3\n"
        "[shard]\npreset = 'none'\nranks = 1\nmax_bad_fraction = 0.5\n"
    )
    for stage in ("cohort", "shard"):
        done = anyecg(stage, config)
        assert done.returncode == 0, done.stderr
    index, cohort = open_index(tmp_path / "run/shards"), open_cohort(tmp_path / "run/cohort")
    tables, counts = index.tables, index.head["counts"]
    assert counts["records"] == 6 == cohort.records.height
    assert index.head["patients_in_two_splits"] == 0
    n_pairs = 0
    for window, draw, bits in zip(tables["pair_window"], tables["pair_draw"], tables["pair_horizons"], strict=True):
        offset = (tables["window_start"][window] - tables["draw_time"][draw]) / 60e6
        assert tables["window_visit"][window] == tables["draw_visit"][draw]
        train = tables["visit_split"][tables["window_visit"][window]] == 0
        wanted = sum(bit for bit, h in ((1, 60), (2, 30), (4, 15)) if -h <= offset and offset + 1 / 6 <= h)
        assert bits == (wanted & 1 if train else wanted)
        n_pairs += 1
    assert n_pairs == counts["pairs"] > 0
    assert len(set(tables["pair_window"].tolist())) == counts["windows"]


def test_no_patient_or_visit_number_leaves_the_source(mcmed, tmp_path):
    """R16 for tables, logs and shards: names of patients and visits stay in paths of the cohort's own record table."""
    config = tmp_path / "c.toml"
    config.write_text(
        f'folder = "run"\n[cohort]\nkind = "mcmed"\npath = "{mcmed}"\n[shard]\nranks = 1\nmax_bad_fraction = 0.5\n'
    )
    outputs = [anyecg(stage, config) for stage in ("cohort", "shard")]
    assert [done.returncode for done in outputs] == [0, 0], outputs[-1].stderr
    for done in outputs:
        assert "9900000" not in done.stdout + done.stderr
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.name not in ("records.parquet", "quarantine.parquet", "quarantine.csv"):
            assert b"9900000" not in path.read_bytes(), path
