"""Reading labs.csv in blocks: the block size changes nothing, and no row goes uncounted."""

import csv
import tempfile
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from anyecg.loaders import tables
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import CohortError
from anyecg.loaders.labs import LAB_COLUMNS, candidate_targets, read_draws
from anyecg.loaders.tables import microseconds
from anyecg.loaders.targets import read_targets

HEAD = ",".join(LAB_COLUMNS).encode() + b"\n"
WIDTH = "with another number of fields"
CONFIG = CohortConfig(kind="mcmed")
VISITS = pl.DataFrame({"CSN": [str(number) for number in range(40)]})
ORDERED = "2262-04-11T23:47:16Z"


def row(csn, component="POTASSIUM", value="4.0", unit="mmol/L", ordered=ORDERED):
    return (str(csn), ordered, "", component, value, unit, "", "")


def write_labs(path, rows, head=LAB_COLUMNS):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


@pytest.fixture
def messy(tmp_path):
    """2000 rows of every kind: quoted names with commas and line breaks, too few and too many fields, odd values."""
    rng = np.random.default_rng(0)
    names = ("POTASSIUM", "SODIUM", 'ODD, "COMPONENT"\nof\r\nlines', "")
    rows = []
    for _ in range(2000):
        moment = f"2262-04-{rng.integers(9, 13):02}T0{rng.integers(3)}:00:00Z" if rng.random() < 0.95 else "soon"
        value = rng.choice(["4.0", "3.1", "<3.0", ">10.0", "Negative", " 1,200 "])
        fields = row(rng.integers(45), rng.choice(names), value, rng.choice(["mmol/L", "mg/dL"]), moment)
        rows.append((*fields, "more")[: 8 + rng.choice([0, 0, 0, 0, 1, -1, -7])])
    return write_labs(tmp_path / "labs.csv", rows), rows


def test_blocks_of_any_size_give_the_same_draws_and_counts(messy, monkeypatch):
    path, rows = messy
    whole = read_draws(path, VISITS, read_targets(), CONFIG)
    for size in (500, 4093):
        monkeypatch.setattr(tables, "BLOCK_BYTES", size)
        draws, flow = read_draws(path, VISITS, read_targets(), CONFIG)
        assert_frame_equal(draws, whole[0])
        assert flow == whole[1]
    numbers = dict(flow)
    last = [what for what, _ in flow].index("results")
    assert numbers["rows in labs.csv"] == numbers["results"] + sum(n for _, n in flow[1:last]) == len(rows)
    assert numbers[f"- {WIDTH}"] == sum(len(fields) != 8 for fields in rows) > 0
    assert numbers["results"] > 0 < numbers["- contradicting another of the draw"]


def test_candidates_are_counted_the_same_in_blocks_of_any_size(messy, monkeypatch):
    path, rows = messy
    config = CohortConfig(kind="mcmed", path=str(path.parent))
    whole = candidate_targets(config, min_visits=1)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 500)
    assert_frame_equal(candidate_targets(config, min_visits=1), whole)
    right = [fields for fields in rows if len(fields) == 8]
    for found in whole.iter_rows(named=True):
        mine = [fields for fields in right if fields[3] == found["component"]]
        assert found["results"] == len(mine)
        assert found["visits"] == len({fields[0] for fields in mine})
        assert found["numeric"] == pytest.approx(np.mean([fields[4] != "Negative" for fields in mine]))
    assert sum(whole["results"]) == len(right)


def test_a_draw_whose_results_all_contradict_one_another_is_none(tmp_path):
    path = write_labs(tmp_path / "labs.csv", [row(0, value="4"), row(0, value="5"), row(1), row(2, "SODIUM", "140")])
    draws, flow = read_draws(path, VISITS, read_targets(), CONFIG)
    assert draws["visit_row"].to_list() == [1, 2]
    assert dict(flow)["draws"] == 2


def test_a_table_of_the_header_alone_has_no_draws(tmp_path):
    draws, flow = read_draws(write_labs(tmp_path / "labs.csv", []), VISITS, read_targets(), CONFIG)
    assert (draws.height, dict(flow)["rows in labs.csv"]) == (0, 0)
    assert draws.schema["POTASSIUM high"] == pl.Int8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a CSV .*; wanted UTF-8 text with a header"),
        (HEAD + b"7,\xff,,,,,,\n", "not a CSV .*UTF8.*; wanted UTF-8 text with a header"),
        (HEAD + b'7,"open' + b",,,,,,\n7" * 500, "not a CSV .*; wanted UTF-8 text with a header"),
        (HEAD.replace(b"CSN", b"Visit"), "column 'CSN' is missing; found Visit"),
        (None, "no such file; give the folder"),
        ("folder", "no such file; give the folder"),
    ],
)
def test_what_is_no_table_is_one_clear_line(tmp_path, monkeypatch, content, said):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1000)
    path = tmp_path / "labs.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for read in (
        lambda: read_draws(path, VISITS, read_targets(), CONFIG),
        lambda: candidate_targets(CohortConfig(kind="mcmed", path=str(tmp_path)), min_visits=1),
    ):
        with pytest.raises(CohortError, match=rf"labs\.csv: {said}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_quote_that_is_never_closed_is_refused(tmp_path):
    path = write_labs(tmp_path / "labs.csv", [row(0), row(1)])
    with path.open("a") as file:
        file.write(f'2,{ORDERED},,POTASSIUM,4.0,mmol/L,,"\n3,{ORDERED},,POTASSIUM,4.0,mmol/L,,\n')
    with pytest.raises(CohortError, match="a quote is never closed"):
        read_draws(path, VISITS, read_targets(), CONFIG)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_row_that_cannot_be_decoded_is_not_quoted(tmp_path):
    path = tmp_path / "labs.csv"
    path.write_bytes(HEAD + b"99000001,\xff\n")
    with pytest.raises(CohortError, match=r"labs\.csv: not a CSV") as caught:
        read_draws(path, VISITS, read_targets(), CONFIG)
    assert "99000001" not in str(caught.value)


def test_a_temporary_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(CohortError, match=r"absent: cannot keep results .*; give a folder with room as TMPDIR"):
        read_draws(write_labs(tmp_path / "labs.csv", [row(0)]), VISITS, read_targets(), CONFIG)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2262-01-09T03:16:07Z", datetime(2262, 1, 9, 3, 16, 7)),
        ("2262-01-09T03:16:07.5Z", datetime(2262, 1, 9, 3, 16, 7, 500_000)),
        ("2290-12-31T23:59:59.123456", datetime(2290, 12, 31, 23, 59, 59, 123_456)),
        ("2290-12-31 23:59:59", datetime(2290, 12, 31, 23, 59, 59)),
        ("2290-12-31 23:59:59Z", datetime(2290, 12, 31, 23, 59, 59)),
        ("2290-12-31T23:59:59+00:00", datetime(2290, 12, 31, 23, 59, 59)),
        ("2290-12-31 23:59:59.25-0130", datetime(2291, 1, 1, 1, 29, 59, 250_000)),
        ("2290-12-31T23:59:59+02:00", datetime(2290, 12, 31, 21, 59, 59)),
        *(
            (text, None)
            for text in ("soon", "2290-12-31", "2290-13-31T00:00:00Z", "2290-12-31T24:00:00", "12:00", None)
        ),
        *((text, None) for text in ("2290-12-31T23:59", "2290-02-30T00:00:00Z", "31/12/2290 23:59:59")),
    ],
)
def test_times_are_exact_microseconds_whatever_their_iso_form(text, moment):
    found = pl.DataFrame({"x": [text]}, schema={"x": pl.String}).select(microseconds(pl.col("x"))).to_series()
    exact = moment and (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC))
    assert found.dtype == pl.Int64
    assert found.item() == (moment and (exact.days * 86_400 + exact.seconds) * 10**6 + exact.microseconds)


def test_other_forms_of_a_time_are_the_same_draw_and_no_time_is_counted(tmp_path):
    times = (ORDERED, "2262-04-11 23:47:16", "2262-04-11T23:47:16.000+00:00", "2262-04-11")
    rows = [row(0, "SODIUM", "140", ordered=time) for time in times]
    draws, flow = read_draws(write_labs(tmp_path / "labs.csv", rows), VISITS, read_targets(), CONFIG)
    assert draws.height == 1
    assert dict(flow)["- repeated in a draw"] == 2
    assert dict(flow)["- without order time"] == 1
