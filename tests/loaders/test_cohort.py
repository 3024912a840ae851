import csv
import json
import shutil

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from anyecg.loaders.cohort import Cohort, build_cohort, open_cohort, split_patients, write_cohort
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import CohortError, UpgradeNeeded
from anyecg.loaders.shard_config import ShardConfig
from anyecg.loaders.shards import write_shards
from anyecg.loaders.stream import open_index
from anyecg.loaders.values import draw_values
from anyecg.loaders.verify import verify

from ..conftest import DEMO


def labels(folder, *rows, head=("record", "patient", "af")):
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return CohortConfig(path=str(DEMO / "records"), labels=str(folder / "labels.csv"))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_no_patient_stands_in_two_splits_and_shares_are_met(patients, seed):
    split = split_patients(np.array(patients, np.uint64), seed=seed, val_fraction=0.1, test_fraction=0.2)
    of_patient = {
        patient: {int(s) for p, s in zip(patients, split, strict=True) if p == patient} for patient in patients
    }
    assert all(len(splits) == 1 for splits in of_patient.values())
    counts = [sum(splits == {s} for splits in of_patient.values()) for s in range(3)]
    assert counts[1:] == [round(0.1 * len(of_patient)), round(0.2 * len(of_patient))]


def test_a_patients_split_does_not_depend_on_the_order_of_the_rows():
    patients = np.arange(100, dtype=np.uint64)
    options = {"seed": 1, "val_fraction": 0.2, "test_fraction": 0.3}
    np.testing.assert_array_equal(split_patients(patients[::-1], **options), split_patients(patients, **options)[::-1])


def test_every_row_is_kept_or_in_the_quarantine_with_a_reason(tmp_path):
    config = labels(
        tmp_path, ("A00009", "p1", 1), ("A00015", "p1", 0), ("A00022", "p2", ""), ("A00022x", "p3", 1),
        ("A00015", "p1", 0), ("../records/A00009", "p4", 1),
    )  # fmt: skip
    cohort = build_cohort(config, seed=0)
    assert cohort.records["path"].to_list() == ["A00009"]
    assert cohort.quarantine.rows() == [
        ("A00015", "listed twice"), ("A00022", "no label"), ("A00022x", "no such record"), ("A00015", "listed twice"),
        ("../records/A00009", "no such record"),
    ]  # fmt: skip
    flow = dict(cohort.flow)
    assert flow["rows in the labels"] == flow["records kept"] + cohort.quarantine.height


def test_a_record_is_its_own_draw_at_its_middle(tmp_path):
    cohort = build_cohort(labels(tmp_path, ("A00009", "p1", 1), ("A00015", "p2", -1), ("A00022", "p2", 0)), seed=0)
    seconds = cohort.records["n_samples"] / cohort.records["fs"]
    assert cohort.draws["time"].to_list() == [round(s * 5e5) for s in seconds]
    assert cohort.draws["af"].to_list() == [1, 0]


def test_keys_name_nobody(tmp_path):
    write_cohort(tmp_path / "out", build_cohort(labels(tmp_path, ("A00009", "UNIQUE-PATIENT", 1)), seed=0), "x")
    for name in ("visits", "records", "draws", "quarantine"):
        assert "UNIQUE-PATIENT" not in pl.read_parquet(tmp_path / "out" / f"{name}.parquet").write_csv()
    assert "UNIQUE-PATIENT" not in (tmp_path / "out" / "cohort.json").read_text()


@pytest.mark.parametrize(
    ("head", "row", "said"),
    [
        (("record", "subject", "af"), ("A00009", "p", 1), "column 'patient' is missing; found record, subject, af"),
        (("record", "patient"), ("A00009", "p"), "no target"),
        (("record", "patient", "time"), ("A00009", "p", 1), "'time' cannot be a target's name"),
        (("record", "patient", "af", " af"), ("A00009", "p", 1, 1), "two columns have one name"),
        (("record", "patient", "af"), ("A00009", "p", 2), "line 2: af is '2'; wanted 1, 0, -1 or empty"),
        (("record", "patient", "af"), ("A00009", "", 1), "line 2: 'patient' is empty"),
        (("record", "patient", "value:"), ("A00009", "p", 1), "'value:' cannot be a target's name"),
        (
            ("record", "patient", "value:hr"),
            ("A00009", "p", "fast"),
            "line 2: value:hr is 'fast'; wanted a number, or empty",
        ),
        (
            ("record", "patient", "value:hr"),
            ("A00009", "p", "inf"),
            "line 2: value:hr is 'inf'; wanted a number, or empty",
        ),
        (
            ("record", "patient", "value:hr"),
            ("A00009", "p", "nan"),
            "line 2: value:hr is 'nan'; wanted a number, or empty",
        ),
        (("record", "patient", "value:hr"), ("A00009", "p", "1e39"), "line 2: value:hr is '1e39'; wanted a number, or"),
    ],
)
def test_wrong_labels_are_named(tmp_path, head, row, said):
    with pytest.raises(CohortError, match=said):
        build_cohort(labels(tmp_path, row, head=head), seed=0)


def test_columns_may_come_in_any_order(tmp_path):
    cohort = build_cohort(labels(tmp_path, (1, "A00009", 0, "p"), head=("af", "record", "noise", "patient")), seed=0)
    assert cohort.draws.select("af", "noise").rows() == [(1, 0)]


def test_another_recording_under_the_same_name_makes_another_cohort(tmp_path):
    config = labels(tmp_path, ("A00009", "p", 1))
    records = tmp_path / "records"
    records.mkdir()
    for suffix in (".hea", ".mat"):
        shutil.copy(DEMO / "records" / f"A00009{suffix}", records)
    config = config.model_copy(update={"path": str(records)})
    before = build_cohort(config, seed=0).records["digest"].to_list()
    with (records / "A00009.hea").open("a") as file:
        file.write("# corrected\n")
    assert build_cohort(config, seed=0).records["digest"].to_list() == before
    with (records / "A00009.mat").open("ab") as file:
        file.write(b"12")
    assert build_cohort(config, seed=0).records["digest"].to_list() != before


def test_values_stand_beside_labels_in_units_of_their_own(tmp_path):
    cohort = build_cohort(
        labels(
            tmp_path, ("A00009", "p1", 1, " 71.5", ""), ("A00015", "p2", "", "", -3e2), ("A00022", "p3", -1, "", ""),
            head=("record", "patient", "af", "value:rate", "value:axis"),
        ),
        seed=0,
    )  # fmt: skip
    assert (cohort.targets, cohort.components) == (("af",), ("rate", "axis"))
    assert cohort.draws.schema["value:rate"] == pl.Float32
    assert cohort.draws["af"].to_list() == [1, -1]
    np.testing.assert_array_equal(cohort.draws.select("value:rate", "value:axis"), [(71.5, np.nan), (np.nan, -300)])
    assert cohort.quarantine.rows() == [("A00022", "no label")]


def test_a_cohort_may_have_values_alone(tmp_path):
    config = labels(tmp_path, ("A00009", "p1", 1), ("A00015", "p2", ""), head=("record", "patient", "value:rate"))
    write_cohort(tmp_path / "out", build_cohort(config, seed=0), "x")
    cohort = open_cohort(tmp_path / "out")
    assert (cohort.targets, cohort.components, cohort.records["path"].to_list()) == ((), ("rate",), ["A00009"])
    write_shards(tmp_path / "shards", cohort, ShardConfig(), MPI.COMM_SELF, seed=0, stage_hash="")
    assert verify(tmp_path / "shards")[1] == []
    index = open_index(tmp_path / "shards")
    assert (index.targets, index.components, index.tables["draw_labels"].shape) == ((), ("rate",), (1, 0))
    np.testing.assert_array_equal(draw_values(index), [[1]])


def test_an_empty_cohort_is_refused(tmp_path):
    with pytest.raises(CohortError, match="the cohort is empty: rows in the labels 1, - no such record 1"):
        write_cohort(tmp_path, build_cohort(labels(tmp_path, ("nobody", "p", 1)), seed=0), "x")
    assert not list(tmp_path.glob("*.parquet"))


def test_a_patient_in_two_splits_is_refused(tmp_path):
    cohort = build_cohort(labels(tmp_path, ("A00009", "p", 1), ("A00015", "p", 0)), seed=0)
    mixed = cohort.visits.with_columns(pl.Series("split", [0, 2], pl.Int8))
    with pytest.raises(CohortError, match="1 patients stand in two splits"):
        write_cohort(tmp_path, Cohort(**{**cohort.__dict__, "visits": mixed}), "x")


def test_a_cohort_comes_back_as_written(tmp_path):
    cohort = build_cohort(labels(tmp_path, ("A00009", "p1", 1), ("A00015", "p2", 0)), seed=0)
    write_cohort(tmp_path / "out", cohort, "x")
    found = open_cohort(tmp_path / "out")
    assert found.draws.equals(cohort.draws)
    assert found.visits["patient"].equals(cohort.visits["patient"])
    assert (found.targets, found.flow, found.root) == (("af",), cohort.flow, DEMO / "records")


def test_changed_and_other_versions_are_refused(tmp_path):
    write_cohort(tmp_path, build_cohort(labels(tmp_path, ("A00009", "p1", 1)), seed=0), "x")
    (tmp_path / "draws.parquet").write_bytes(b"x")
    with pytest.raises(CohortError, match="changed since it was written"):
        open_cohort(tmp_path)
    document = json.loads((tmp_path / "cohort.json").read_text())
    (tmp_path / "cohort.json").write_text(json.dumps({**document, "version": 99}))
    with pytest.raises(UpgradeNeeded, match="upgrade needed: anyecg-cohort version 99"):
        open_cohort(tmp_path)
