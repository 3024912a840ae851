import datetime
import json
import os
import shutil
import subprocess
import sys

import edfio
import numpy as np
import pytest
import wfdb

from anyecg.app.convert import FORMATS, SUFFIX, convert, find_gain
from anyecg.app.inspect import braille, inspect_file
from anyecg.loaders.cohort_config import CohortConfig
from anyecg.loaders.errors import AnyECGError, RecordError
from anyecg.loaders.folder import folder_cohort
from anyecg.loaders.records import open_record, open_recording
from anyecg.loaders.windows import find_windows, store_windows

from ..conftest import DEMO, anyecg
from ..loaders.foreign import FS, LEADS, counts, dicom_group, millivolts, write_dicom

NAMES = sorted(path.stem for path in (DEMO / "records").glob("*.hea"))[:12]


@pytest.fixture
def recording(tmp_path):
    """A DICOM file of three leads with the fields of a patient."""
    return write_dicom(tmp_path / "recording.dcm", [dicom_group(counts())])


@pytest.mark.parametrize("form", FORMATS)
def test_a_written_recording_gives_back_samples_leads_rate_and_start(recording, tmp_path, form):
    out = tmp_path / f"out{SUFFIX[form]}"
    assert convert(recording, out, form) == []
    records, opened = open_recording(out)
    assert opened.leads == list(LEADS)
    assert opened.start == open_record(recording).start
    for record, wanted_T in zip(records, millivolts().T, strict=True):
        assert (record.fs, record.n_samples) == (FS, 2500)
        assert np.abs(record.read() - wanted_T).max() <= (1e-6 if form == "edf" else 0)
    if form == "wfdb":
        theirs = wfdb.rdrecord(str(out.with_suffix("")))
        np.testing.assert_allclose(theirs.p_signal, millivolts(), atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_patient_fields_are_written_only_where_asked_for(recording, tmp_path, form):
    for with_patient in (False, True):
        out = tmp_path / f"out{SUFFIX[form]}"
        convert(recording, out, form, with_patient=with_patient)
        data = b"".join(path.read_bytes() for path in tmp_path.glob("out*"))
        assert (b"Canary" in data) == (b"4711" in data) == with_patient


@pytest.mark.parametrize("form", ["wfdb", "hdf5", "csv"])
def test_gaps_stay_gaps_and_edf_refuses_them(tmp_path, form):
    mv_T = millivolts()[:, 0].copy()
    mv_T[100:200] = np.nan
    np.savez(tmp_path / "a.npz", signal=mv_T, fs=FS, unit="mV", leads=np.array(["II"]))
    out = tmp_path / f"out{SUFFIX[form]}"
    convert(tmp_path / "a.npz", out, form)
    np.testing.assert_array_equal(open_record(out, lead="II").read(), mv_T)
    with pytest.raises(RecordError, match="lead II has gaps, which EDF cannot hold"):
        convert(tmp_path / "a.npz", tmp_path / "out.edf", "edf")
    assert not (tmp_path / "out.edf").exists()


def test_samples_that_no_quantum_fits_are_rounded_and_said_to_be(tmp_path):
    mv_T = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    assert not find_gain(mv_T, 2**15 - 1)[1]
    np.savez(tmp_path / "a.npz", signal=mv_T, fs=FS, unit="mV", leads=np.array(["II"]))
    for form, atol in (("wfdb", 1e-8), ("edf", 1e-4)):
        out = tmp_path / f"out{SUFFIX[form]}"
        (note,) = convert(tmp_path / "a.npz", out, form)
        assert note.startswith("lead II: rounded to")
        np.testing.assert_allclose(open_record(out).read(), mv_T, atol=atol)


def test_samples_that_fill_no_data_record_of_edf_are_left_out_and_said_to_be(tmp_path):
    mv_T = np.round(np.random.default_rng(1).standard_normal(17_801), 3).astype(np.float32)
    np.savez(tmp_path / "a.npz", signal=mv_T, fs=300, unit="mV", leads=np.array(["II"]))
    (note,) = convert(tmp_path / "a.npz", tmp_path / "out.edf", "edf")
    assert note == "lead II: the last 2 samples left out, they fill no data record of EDF"
    record = open_record(tmp_path / "out.edf")
    assert record.fs == 300
    np.testing.assert_allclose(record.read(), mv_T[:-2], atol=1e-6)


@pytest.mark.parametrize("form", ["wfdb", "edf"])
@pytest.mark.parametrize("largest", [0.0, 1e-12, 1e-7])
def test_signals_near_nothing_are_written(tmp_path, form, largest):
    mv_T = (largest * np.random.default_rng(1).uniform(-1, 1, 1000)).astype(np.float32)
    np.savez(tmp_path / "a.npz", signal=mv_T, fs=FS, unit="mV", leads=np.array(["II"]))
    out = tmp_path / f"out{SUFFIX[form]}"
    convert(tmp_path / "a.npz", out, form)
    np.testing.assert_allclose(open_record(out).read(), mv_T, atol=1e-7)


def test_rates_that_fill_no_second_are_written_as_edf(tmp_path):
    mv_T = np.round(np.random.default_rng(1).standard_normal(1285), 3).astype(np.float32)
    np.savez(tmp_path / "a.npz", signal=mv_T, fs=128.5, unit="mV", leads=np.array(["II"]))
    assert convert(tmp_path / "a.npz", tmp_path / "out.edf", "edf") == []
    assert open_record(tmp_path / "out.edf").fs == 128.5
    np.testing.assert_allclose(open_record(tmp_path / "out.edf").read(), mv_T, atol=1e-6)


def test_what_edf_cannot_hold_is_left_out_and_said(tmp_path):
    said = {"fs": FS, "unit": "mV", "leads": np.array(["a lead with a long name"]), "start": "1975-03-04T05:06:07"}
    np.savez(tmp_path / "a.npz", signal=millivolts()[:, 0], **said)
    assert convert(tmp_path / "a.npz", tmp_path / "a.edf", "edf") == [
        "start 1975-03-04T05:06:07+00:00 left out: EDF holds the years 1985 to 2084",
        "lead a lead with a long name: its label is 'a lead with a lo'",
    ]
    dicom = write_dicom(tmp_path / "a.dcm", [dicom_group(counts())], PatientBirthDate="19510203", PatientSize="1.8")
    with_patient = open_recording(dicom)[1].patient
    notes = convert(dicom, tmp_path / "b.edf", "edf", with_patient=True)
    patient = edfio.read_edf(tmp_path / "b.edf").patient
    assert (patient.code, patient.birthdate) == ("4711", datetime.date(1951, 2, 3))
    left = sorted(set(with_patient) - {"patient_id", "name", "birth_date"})
    assert notes == ([f"patient fields left out, EDF has none for them: {', '.join(left)}"] if left else [])


@pytest.mark.parametrize(("form", "name"), [("hdf5", "a.h5"), ("wfdb", "rec"), ("wfdb", "rec.hea")])
def test_a_recording_is_not_written_over_itself(tmp_path, form, name):
    source = tmp_path / ("a.npz" if form == "hdf5" else "b.npz")
    np.savez(source, signal=millivolts()[:, 0], fs=FS, unit="mV", leads=np.array(["II"]))
    there = tmp_path / ("a.h5" if form == "hdf5" else "rec.hea")
    convert(source, there, form)
    data = there.read_bytes()
    for path in (there, there.with_suffix("")) if form == "wfdb" else (there,):
        with pytest.raises(RecordError, match="the recording itself; write to another file"):
            convert(path, tmp_path / name, form)
    assert there.read_bytes() == data


def test_leads_whose_names_look_like_times_come_back_from_csv(tmp_path):
    leads = ["T", "N", "time", "V9"]
    np.savez(tmp_path / "a.npz", signal=np.repeat(millivolts(), 2, axis=1)[:, :4], fs=FS, unit="mV",
             leads=np.array(leads))  # fmt: skip
    convert(tmp_path / "a.npz", tmp_path / "a.csv", "csv")
    records, opened = open_recording(tmp_path / "a.csv")
    assert opened.leads == leads
    np.testing.assert_array_equal(records[1].read(), millivolts()[:, 0])


def test_what_cannot_be_written_leaves_what_was_there(recording, tmp_path):
    out = tmp_path / "out.h5"
    out.write_text("before")
    with pytest.raises(RecordError, match="lead 'V9' is missing; found I, II, V1"):
        convert(recording, out, "hdf5", chosen=["V9"])
    assert out.read_text() == "before"
    convert(recording, out, "hdf5", chosen=["V1"])
    assert open_record(out).leads == ("V1",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", "recording.dcm"]


def test_a_folder_of_mixed_formats_gives_the_windows_of_the_recordings_it_was_made_of(tmp_path):
    mixed = tmp_path / "mixed"
    for number, name in enumerate(NAMES):
        form = FORMATS[number % 4]
        convert(DEMO / "records" / name, mixed / f"{name}{SUFFIX[form]}", form)
    (tmp_path / "labels.csv").write_text(
        "record,patient,af\n" + "".join(f"{name},{name},{number % 2}\n" for number, name in enumerate(NAMES))
    )
    cohorts = [
        folder_cohort(CohortConfig(path=str(folder), labels=str(tmp_path / "labels.csv")), seed=1)
        for folder in (DEMO / "records", mixed)
    ]
    for cohort in cohorts:
        assert cohort.quarantine.height == 0
        assert cohort.records.height == len(NAMES)
    assert cohorts[0].visits.equals(cohorts[1].visits)
    assert cohorts[0].draws.equals(cohorts[1].draws)
    for number, paths in enumerate(zip(cohorts[0].records["path"], cohorts[1].records["path"], strict=True)):
        found = [
            find_windows(open_record(cohort.root / path, root=cohort.root), pad_short=True)
            for cohort, path in zip(cohorts, paths, strict=True)
        ]
        stored = [store_windows(one, one.flags_W >= 0, fs=500, preset="ecgfounder") for one in found]
        if FORMATS[number % 4] == "edf":
            quantum = 1 / 1000
            for (signal_WT, scale_W), (other_WT, other_W) in [stored]:
                np.testing.assert_allclose(signal_WT * scale_W[:, None], other_WT * other_W[:, None], atol=quantum)
        else:
            for one, other in zip(*stored, strict=True):
                np.testing.assert_array_equal(one, other)


def test_ambiguous_and_repeated_names_are_in_quarantine_with_both_files(tmp_path):
    records = tmp_path / "records"
    for name, form in (("a", "edf"), ("a", "hdf5"), ("b", "csv"), ("c", "wfdb")):
        convert(DEMO / "records" / NAMES[0], records / f"{name}{SUFFIX[form]}", form)
    (tmp_path / "labels.csv").write_text("record,patient,af\na,1,1\na.h5,1,1\nb,2,0\nb.csv,2,0\nc,3,1\nd,3,1\n")
    config = CohortConfig(path=str(records), labels=str(tmp_path / "labels.csv"))
    cohort = folder_cohort(config, seed=1)
    assert cohort.records["path"].to_list() == ["a.h5", "b.csv", "c"]
    assert dict(cohort.quarantine.iter_rows()) == {
        "a": "ambiguous: which of a.edf, a.h5?", "b.csv": "listed twice", "d": "no such record"
    }  # fmt: skip


def test_inspect_tells_what_a_file_is_without_its_patient(recording, tmp_path):
    said = inspect_file(recording)
    assert said.startswith(
        "recording.dcm: DICOM (General ECG Waveform Storage), 3 leads, 250 Hz, 10 s, from 2024-01-02"
    )
    assert "Canary" not in said
    assert "patient: name: Canary^Patient" in inspect_file(recording, with_patient=True)
    found = json.loads(inspect_file(recording, as_json=True, png=tmp_path / "a.png"))
    assert "patient" not in found
    assert [lead["name"] for lead in found["leads"]] == list(LEADS)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_lead_that_is_no_voltage_is_told_with_its_unit(tmp_path):
    (tmp_path / "a.csv").write_text("time,I [mV],ABP [mmHg]\n" + "".join(f"{n / 250},1,80\n" for n in range(300)))
    first, second = json.loads(inspect_file(tmp_path / "a.csv", as_json=True))["leads"]
    assert (first["unit"], second["unit"]) == ("mV", None)
    assert "is in 'mmHg'; wanted a voltage" in second["problem"]
    assert "ABP: 300 samples at 250 Hz, 1.2 s; not shown: a.csv: lead 'ABP'" in inspect_file(tmp_path / "a.csv")
    with pytest.raises(AnyECGError, match="--start nan; wanted a time"):
        inspect_file(tmp_path / "a.csv", start=float("nan"))


def test_inspect_ends_in_order_when_its_reader_does_and_in_any_encoding(recording):
    command = f"{sys.executable} -m anyecg.app.cli inspect {recording}"
    done = subprocess.run(f"{command} | head -c 9", shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("recording", "")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command.split(), env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, "3 leads, 250 Hz" in done.stdout) == (0, "", True)


def test_a_drawing_of_dots_keeps_every_spike_and_leaves_gaps_empty():
    mv_T = np.zeros(10_000, np.float32)
    mv_T[3777] = 1.0
    mv_T[5000:] = np.nan
    lines = braille(mv_T, n_columns=50, n_rows=4)
    spikes = {column for line in lines[:-1] for column, mark in enumerate(line) if mark != "\u2800"}
    assert spikes == {18}
    assert {line[26:] for line in lines} == {"\u2800" * 24}


def test_the_commands_write_and_tell(recording, tmp_path):
    done = anyecg("convert", recording, tmp_path / "a.h5", "--format", "hdf5", "--leads", "II")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/a.h5: written\n")
    done = anyecg("inspect", tmp_path / "a.h5")
    assert done.returncode == 0
    assert done.stdout.startswith("a.h5: HDF5, 1 leads, 250 Hz, 10 s")
    np.save(tmp_path / "a.npy", millivolts() * 1000)
    done = anyecg("inspect", tmp_path / "a.npy", "--json")
    assert (done.returncode, done.stderr) == (
        2, "anyecg inspect: a.npy: says no sampling rate; give it in Hz, as in --fs 500, or add a column 'time' in "
        "seconds\n",
    )  # fmt: skip
    done = anyecg("inspect", tmp_path / "a.npy", "--json", "--fs", "250", "--unit", "uV", "--names", "I,II,V1")
    assert [lead["name"] for lead in json.loads(done.stdout)["leads"]] == list(LEADS)


def test_predict_takes_a_folder_of_mixed_formats_and_one_file(tmp_path):
    model = DEMO.parent / "cinc2017" / "model"
    mixed, plain = tmp_path / "mixed", tmp_path / "plain"
    plain.mkdir()
    for name, form in zip(NAMES[:3], ("hdf5", "csv", "wfdb"), strict=True):
        convert(DEMO / "records" / name, mixed / f"{name}{SUFFIX[form]}", form)
        for suffix in (".hea", ".mat"):
            shutil.copy(DEMO / "records" / (name + suffix), plain)
    scores = []
    for folder in (mixed, plain):
        done = anyecg("predict", "--model", model, "--input", folder, "--out", tmp_path / "scores.csv")
        assert done.returncode == 0, done.stderr
        scores.append((tmp_path / "scores.csv").read_text())
    assert scores[0] == scores[1]
    done = anyecg("predict", "--model", model, "--input", mixed / f"{NAMES[0]}.h5", "--out", tmp_path / "one.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.csv").read_text().splitlines() == [
        line for line in scores[0].splitlines() if line.startswith(("record,", NAMES[0]))
    ]
