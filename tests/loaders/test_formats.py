import os
from datetime import UTC, datetime

import edfio
import h5py
import numpy as np
import pyarrow as pa
import pydicom
import pytest
import scipy.io
from pyarrow import parquet
from wfdb.io.convert.edf import read_edf

from anyecg.loaders import other_formats
from anyecg.loaders.errors import RecordError, Unsaid
from anyecg.loaders.formats import sniff
from anyecg.loaders.lead_names import STANDARD_LEADS
from anyecg.loaders.records import find_files, find_records, open_record, open_recording

from ..conftest import DEMO, SHARED
from .foreign import FS, LEADS, counts, dicom_group, millivolts, write_dicom

FORMATS = SHARED / "formats"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


def assert_holds(path, wanted_TL=None, leads=LEADS, fs=FS, **options):
    """Compare every lead, whole and in a range, with float32 mV (samples, leads)."""
    wanted_TL = millivolts() if wanted_TL is None else wanted_TL
    for lead, wanted_T in zip(leads, wanted_TL.T, strict=True):
        record = open_record(path, lead=lead, **options)
        assert (record.leads, record.fs, record.n_samples) == (leads, fs, len(wanted_T))
        assert record.read().dtype == np.float32
        np.testing.assert_array_equal(record.read(), wanted_T)
        np.testing.assert_array_equal(record.read(7, 20), wanted_T[7:20])
    with pytest.raises(RecordError, match=f"lead 'V9' is missing; found {', '.join(leads)}"):
        open_record(path, lead="V9", **options)
    with pytest.raises(RecordError, match="lead number 99 asked for"):
        open_record(path, lead=99, **options)


@needs_shared
def test_one_ecg_in_three_formats_gives_the_same_samples():
    paths = [FORMATS / "aecg" / "Example aECG.xml", FORMATS / "scp" / "Example.scp", FORMATS / "dicom" / "Example.dcm"]
    for lead in STANDARD_LEADS:
        records = [open_record(path, lead=lead) for path in paths]
        assert {(record.fs, record.n_samples) for record in records} == {(500, 5000)}
        assert {record.start for record in records} == {datetime(2002, 11, 22, 9, 10, tzinfo=UTC)}
        first, *others = (record.read() for record in records)
        assert np.isfinite(first).all()
        for other in others:
            np.testing.assert_array_equal(first, other)


@needs_shared
@pytest.mark.parametrize("name", ["Example.dcm", "waveform_ecg.dcm"])
def test_dicom_gives_the_samples_of_pydicom(name):
    data = pydicom.dcmread(FORMATS / "dicom" / name)
    wanted_TL = pydicom.waveforms.numpy_handler.multiplex_array(data, 0, as_raw=False)
    records, _ = open_recording(FORMATS / "dicom" / name)
    for record, wanted_T in zip(records, wanted_TL.T, strict=True):
        np.testing.assert_allclose(record.read(), wanted_T / 1e3, rtol=1e-6)


@needs_shared
@pytest.mark.parametrize("name", ["129DYPRG.XML", "3191723_ZZDEMOPTONLY_1-04_orig.xml"])
def test_sierra_limb_leads_agree_with_einthoven_and_goldberger_and_their_pulse_is_1_mv(name):
    mv = {lead: open_record(FORMATS / "sierra" / name, lead=lead).read() for lead in STANDARD_LEADS[:6]}
    for lead, wanted in {
        "III": mv["II"] - mv["I"], "aVR": -(mv["I"] + mv["II"]) / 2, "aVL": mv["I"] - mv["II"] / 2,
        "aVF": mv["II"] - mv["I"] / 2,
    }.items():  # fmt: skip
        # A count is 5 uV, and each lead is rounded to one.
        np.testing.assert_allclose(mv[lead][:5000], wanted[:5000], atol=0.0101)
    # Behind the ten seconds the device drew its calibration pulse.
    assert [mv_T[5000:].max() for mv_T in mv.values()] == [1.0] * 6


@needs_shared
def test_a_real_edf_gives_the_samples_of_edfio():
    path = FORMATS / "edf" / "test_generator_2.edf"
    reference = edfio.read_edf(path)
    records, opened = open_recording(path)
    assert (opened.form, opened.start) == ("EDF+", datetime(2009, 12, 10, 12, 44, 2, tzinfo=UTC))
    for record, signal in zip(records, reference.signals, strict=True):
        if signal.physical_dimension != "uV":
            with pytest.raises(RecordError, match="is in '°'; wanted a voltage"):
                record.read()
            continue
        wanted = signal.data / 1e3
        np.testing.assert_allclose(record.read(), wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(record.read(199, 12_345), record.read()[199:12_345])
        assert record.fs == signal.sampling_frequency


def write_edf(path, annotations=None):
    """Write three leads of two rates, of which one is in uV."""
    signals = [
        edfio.EdfSignal(np.repeat(mv_T, times) * scale, FS * times, label=f"ECG {lead}", physical_dimension=unit,
                        physical_range=(-4.0 * scale, 4.0 * scale))
        for lead, mv_T, times, unit, scale in zip(LEADS, millivolts().T, (1, 2, 1), ("mV", "uV", "mV"), (1, 1000, 1),
                                                  strict=True)
    ]  # fmt: skip
    edfio.Edf(signals, annotations=annotations).write(path)
    return path


def test_edf_of_several_rates_gives_the_samples_of_wfdb_and_of_edfio(tmp_path):
    path = write_edf(tmp_path / "a.edf")
    theirs = read_edf(str(path), rdedfann_flag=False)
    for lead, times, mv_T in zip(LEADS, (1, 2, 1), millivolts().T, strict=True):
        record = open_record(path, lead=lead)
        assert (record.leads, record.fs) == (LEADS, FS * times)
        assert np.abs(record.read() - np.repeat(mv_T, times)).max() <= 8 / 65535
        np.testing.assert_array_equal(record.read(333, 1777), record.read()[333:1777])
    # Within the counts that wfdb makes of what it read: it repeats or leaves out samples for one rate.
    factor = {"mv": 1, "uv": 1e-3}[theirs.units[0].lower()]
    ours = open_record(path, lead="I").read()
    np.testing.assert_allclose(theirs.p_signal[:: theirs.fs // FS, 0] * factor, ours, atol=2e-4)


def test_edf_with_gaps_is_nan_between_its_parts(tmp_path):
    path = write_edf(tmp_path / "a.edf", annotations=[edfio.EdfAnnotation(0, None, "begin")])
    whole = open_record(path, lead="II").read()
    data = path.read_bytes().replace(b"EDF+C", b"EDF+D")
    for second in range(5, 10):
        data = data.replace(b"+%d\x14\x14\0" % second, b"+%d\x14\x14" % (second + 90), 1)
    path.write_bytes(data)
    records, opened = open_recording(path)
    assert opened.notes == ["has gaps: NaN between its parts"]
    found = records[1].read()
    assert len(found) == records[1].n_samples == 100 * 2 * FS
    np.testing.assert_array_equal(found[: 5 * 2 * FS], whole[: 5 * 2 * FS])
    assert np.isnan(found[5 * 2 * FS : 95 * 2 * FS]).all()
    np.testing.assert_array_equal(found[95 * 2 * FS :], whole[5 * 2 * FS :])
    np.testing.assert_array_equal(records[1].read(2000, 48_000), found[2000:48_000])


def test_an_edf_lead_without_a_range_is_refused_alone_when_it_is_read(tmp_path):
    path = write_edf(tmp_path / "a.edf")
    whole = open_record(path, lead="V1").read()
    data = bytearray(path.read_bytes())
    for field in (3 * 104, 3 * 112):
        data[256 + field : 256 + field + 8] = b"0       "
    path.write_bytes(data)
    np.testing.assert_array_equal(open_record(path, lead="V1").read(), whole)
    with pytest.raises(RecordError, match="lead 'I' has a range without two ends"):
        open_record(path, lead="I").read()


@pytest.mark.parametrize(
    ("unit", "factor"),
    [(b"uV", 1e-3), ("µV".encode(), 1e-3), ("µV".encode("latin-1"), 1e-3), (b"uVolts", 1e-3), (b"microV", 1e-3),
     (b"mVolt", 1), (b"Volts", 1e3), (b"nV", 1e-6)],
)  # fmt: skip
def test_units_of_edf_are_understood_as_devices_write_them(tmp_path, unit, factor):
    path = write_edf(tmp_path / "a.edf")
    wanted_T = open_record(path, lead="I").read()
    data = bytearray(path.read_bytes())
    data[256 + 3 * 96 : 256 + 3 * 96 + 8] = unit.ljust(8)
    path.write_bytes(data)
    np.testing.assert_allclose(open_record(path, lead="I").read(), wanted_T * factor, rtol=1e-6)


@pytest.mark.parametrize(("field", "wanted"), [(b"Startdate 05-MAR-2031", 2031), (b"Startdate X", None)])
def test_the_start_of_edf_is_that_of_its_four_digits_and_none_where_it_says_so(tmp_path, field, wanted):
    path = write_edf(tmp_path / "a.edf", annotations=[edfio.EdfAnnotation(0, None, "begin")])
    data = bytearray(path.read_bytes())
    data[88:168] = (field + b" X X X").ljust(80)
    data[168:176] = b"05.03.31"
    path.write_bytes(data)
    start = open_record(path).start
    assert (start and start.year) == wanted


def test_edf_that_is_cut_or_longer_than_it_says(tmp_path):
    path = write_edf(tmp_path / "a.edf")
    data = path.read_bytes()
    path.write_bytes(data + bytes(10_000))
    assert "more than announced" in open_recording(path)[1].notes[0]
    path.write_bytes(data[:-1])
    with pytest.raises(RecordError, match=r"a\.edf: cut short: 9 of 10 data records are there"):
        open_record(path)
    path.write_bytes(data[:236] + b"-1      " + data[244:-1])
    assert open_record(path).n_samples == 9 * FS


@pytest.mark.parametrize(("bits", "kind"), [(8, "SB"), (8, "UB"), (16, "SS"), (16, "US"), (32, "SL"), (32, "UL")])
def test_dicom_of_each_width_gives_the_samples_of_pydicom(tmp_path, bits, kind):
    dtype = f"<{'u' if kind[0] == 'U' else 'i'}{bits // 8}"
    count_TL = np.random.default_rng(2).integers(0, 256, (500, 3)).astype(dtype)
    path = write_dicom(tmp_path / "a", [dicom_group(count_TL, bits=bits, kind=kind)])
    wanted = pydicom.waveforms.numpy_handler.multiplex_array(pydicom.dcmread(path), 0, as_raw=False)
    assert_holds(path, (wanted / 1e3).astype(np.float32))


def test_dicom_groups_are_laid_side_by_side_late_ones_behind_nan_and_averages_left_out(tmp_path):
    count_TL = counts(1000)
    groups = [
        dicom_group(count_TL[:, :2], leads=("I", "II")),
        dicom_group(count_TL[:, 2:], leads=("V1",), late_ms="200"),
        dicom_group(count_TL[:100], label="MEDIAN BEAT"),
    ]
    records, opened = open_recording(write_dicom(tmp_path / "a.dcm", groups))
    assert opened.leads == ["I", "II", "V1"]
    assert opened.notes == ["1 groups of average beats left out"]
    assert opened.start == datetime(2024, 1, 2, 3, 4, 5, 250_000, UTC)
    assert opened.patient == {"name": "Canary^Patient", "patient_id": "4711"}
    late = records[2].read()
    assert np.isnan(late[:50]).all()
    np.testing.assert_array_equal(late[50:], millivolts(1000)[:, 2])


@pytest.mark.parametrize(
    ("digits", "wanted"),
    [("2024010203", (3, 0, 0)), ("202401020304", (3, 4, 0)), ("20240102030405", (3, 4, 5)), ("20240102", None),
     ("202401020", None), ("20240102030", None), ("2024010203040", None)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Invalid value for VR DT")
def test_a_start_of_dicom_without_minutes_or_seconds_is_read_as_it_stands(tmp_path, digits, wanted):
    path = write_dicom(tmp_path / "a.dcm", [dicom_group(counts())], AcquisitionDateTime=digits)
    start = open_record(path).start
    assert (start and (start.hour, start.minute, start.second)) == wanted


def test_dicom_padding_is_nan_unless_it_lies_amid_the_signal(tmp_path):
    count_TL = counts(1000)
    count_TL[100:110, 1] = -32768
    path = write_dicom(tmp_path / "a", [dicom_group(count_TL, WaveformPaddingValue=b"\x00\x80")])
    assert np.flatnonzero(np.isnan(open_record(path, lead="II").read())).tolist() == list(range(100, 110))
    path = write_dicom(tmp_path / "b", [dicom_group(counts(1000), WaveformPaddingValue=bytes(2))])
    assert np.isfinite(open_record(path, lead="II").read()).all()


def write_text(path, mv_TL, *, delimiter=",", decimal=".", above="", time=True):
    lines = [above] if above else []
    for number, row in enumerate(mv_TL.tolist()):
        fields = ([f"{number / FS:.6f}"] if time else []) + [repr(float(value)) for value in row]
        lines.append(delimiter.join(field.replace(".", decimal) for field in fields))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("delimiter", "decimal", "above"),
    [
        (",", ".", "time [s],I [mV],II [mV],V1 [mV]"), (";", ",", "time [s];ECG I [mV];lead ii [mV];v1 [mV]"),
        ("\t", ".", "t (s)\tI (mV)\tII (mV)\tV1 (mV)"), (" ", ".", "# unit: mV\ntime I II V1"),
        (",", ".", "'Elapsed time','I','II','V1'\n'seconds','mV','mV','mV'"), (" ", ",", "# unit = mV\ntime I II V1"),
    ],
)  # fmt: skip
def test_tables_of_text_say_their_rate_by_time_and_their_unit_by_name(tmp_path, delimiter, decimal, above):
    path = write_text(tmp_path / "a", millivolts(), delimiter=delimiter, decimal=decimal, above=above)
    assert_holds(path)
    assert find_records(tmp_path) == ["a"]


def test_a_bare_table_of_text_wants_its_rate_and_unit(tmp_path):
    path = write_text(tmp_path / "a.csv", millivolts() * 1000, time=False)
    with pytest.raises(Unsaid, match=r"a\.csv: says no sampling rate; give it in Hz, as in --fs 500"):
        open_record(path)
    with pytest.raises(Unsaid, match=r"a\.csv: says no unit; give it, as in --unit mV"):
        open_record(path, fs=FS)
    record = open_record(path, lead="II", fs=FS, unit="uV", leads=LEADS)
    np.testing.assert_allclose(record.read(), millivolts()[:, 1], rtol=1e-6)
    # It could as well be a table of labels.
    assert find_records(tmp_path) == []
    assert find_files(tmp_path, any_table=True) == {"a": "a.csv"}


def test_empty_fields_are_nan_and_words_amid_numbers_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("time,I [mV]\n0,1\n0.004,\n0.008,nan\n0.012,2\n")
    np.testing.assert_array_equal(open_record(path).read(), np.float32([1, np.nan, np.nan, 2]))
    path.write_text("time,I [mV]\n" + "".join(f"{n / 250},1\n" for n in range(1000)) + "4.0,high\n")
    with pytest.raises(RecordError, match=r"a\.csv: not a table of numbers"):
        open_record(path)
    path.write_text("time,I [mV]\n0,1\n0.004,1\n0.5,2\n0.504,2\n")
    with pytest.raises(RecordError, match="column of time is not even"):
        open_record(path)


@pytest.mark.parametrize(
    ("lines", "leads", "unit"),
    [("I [mV],I [mV],II [mV]", ("I", "I:2", "II"), 1.0), ("I (µV),II (µV),V1 (µV)", ("I", "II", "V1"), 1e-3)],
)
def test_doubled_names_are_numbered_and_units_may_be_in_latin_1(tmp_path, lines, leads, unit):
    path = write_text(tmp_path / "a.csv", millivolts(), above=f"time [s],{lines}")
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    tables = [path]
    if unit == 1.0:
        columns = [pa.array(np.arange(2500) / FS), *(pa.array(mv_T) for mv_T in millivolts().T)]
        parquet.write_table(pa.Table.from_arrays(columns, ["time [s]", *lines.split(",")]), tmp_path / "b")
        tables.append(tmp_path / "b")
    for table in tables:
        records, opened = open_recording(table)
        assert tuple(opened.leads) == leads
        for record, mv_T in zip(records, millivolts().T, strict=True):
            np.testing.assert_allclose(record.read(), mv_T * unit, rtol=1e-6)


def test_the_name_of_a_single_column_may_hold_a_blank(tmp_path):
    (tmp_path / "a.csv").write_text("# fs = 250\nI [uV]\n" + "1.5\n" * 300)
    record = open_record(tmp_path / "a.csv")
    assert (record.leads, record.read(0, 1)[0]) == (("I",), np.float32(0.0015))


@pytest.mark.parametrize("said", ["500 Hz", "500,0", "500.0 hz", "5e2"])
def test_a_rate_in_a_comment_may_have_its_unit_or_a_decimal_comma(tmp_path, said):
    (tmp_path / "a.csv").write_text(f"# fs = {said}\nI [mV]\n" + "1.5\n" * 300)
    assert open_record(tmp_path / "a.csv").fs == 500


def test_two_whole_numbers_a_line_are_not_taken_for_one_or_two_leads_unsaid(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("0,125\n-0,250\n1,500\n" * 100)
    said = {"fs": FS, "unit": "mV"}
    with pytest.raises(Unsaid, match="two numbers, or one with a decimal comma; say which"):
        open_record(path, **said)
    np.testing.assert_array_equal(open_record(path, decimal=",", **said).read(0, 3), np.float32([0.125, -0.25, 1.5]))
    assert len(open_record(path, delimiter=",", **said).leads) == 2
    with pytest.raises(RecordError, match="delimiter 'xx'; wanted one character"):
        open_record(path, delimiter="xx", **said)


def test_a_column_that_only_rises_is_no_lead_and_is_named(tmp_path):
    mv_TL = millivolts()
    mv_TL[:, 0] = np.arange(len(mv_TL)) / FS
    path = write_text(tmp_path / "a.csv", mv_TL, above="zeit,II [mV],V1 [mV]", time=False)
    _, opened = open_recording(path, fs=FS)
    assert opened.leads == ["II", "V1"]
    assert opened.notes == ["column 'zeit' only rises, as time does; left out"]


@pytest.mark.parametrize("fs", [128, 250, 360, 499, 977])
def test_a_whole_rate_is_found_in_times_rounded_to_ms(tmp_path, fs):
    lines = [f"{number / fs:.3f},{number % 7}" for number in range(10 * fs)]
    (tmp_path / "a.csv").write_text("time [s],I [mV]\n" + "\n".join(lines) + "\n")
    assert open_record(tmp_path / "a.csv").fs == fs


def test_what_is_said_of_one_set_of_hdf5_goes_for_that_set_alone(tmp_path):
    mv_TL = millivolts()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["I"], file["II"] = mv_TL[:, 0], mv_TL[:1250, 1] * 1000
        file["I"].attrs.update(fs=FS, unit=np.bytes_(b"mV"))
        file["II"].attrs.update(fs=FS / 2, unit="uV")
        file["noise"] = mv_TL[:, 2]
    records, opened = open_recording(tmp_path / "a.h5")
    assert [(record.fs, record.n_samples) for record in records] == [(FS, 2500), (FS / 2, 1250)]
    np.testing.assert_allclose(records[1].read(), mv_TL[:1250, 1], rtol=1e-6)
    assert opened.notes == ["array 'noise' left out"]


@pytest.mark.parametrize("name", ["signal", "II"])
def test_several_recordings_in_one_file_are_refused_with_their_names(tmp_path, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update(fs=FS, unit="mV")
        for visit in "ab":
            file[f"{visit}/{name}"] = millivolts()[:, 0]
    with pytest.raises(RecordError, match=f"several recordings: a/{name}, b/{name}; wanted a file of one"):
        open_record(tmp_path / "a.h5")


def test_units_may_be_a_list_and_lists_of_matlab_cells(tmp_path):
    mv_TL = millivolts()
    scaled_TL = mv_TL * np.float32([1, 1000, 1])
    units = ["mV", "uV", "mV"]
    np.savez(tmp_path / "npz", signal=scaled_TL, fs=FS, leads=np.array(LEADS), unit=np.array(units))
    cells = {"leads": np.array(LEADS, object), "unit": np.array(units, object)}
    scipy.io.savemat(tmp_path / "matlab", {"val": scaled_TL, "fs": FS, **cells}, appendmat=False)
    for name in ("npz.npz", "matlab"):
        records, opened = open_recording(tmp_path / name)
        assert opened.leads == list(LEADS)
        for record, mv_T in zip(records, mv_TL.T, strict=True):
            np.testing.assert_allclose(record.read(), mv_T, rtol=1e-6)


def test_references_of_matlab_7_3_are_not_read_as_names(tmp_path):
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file["val"], file["fs"] = millivolts().T, 250.0
        file["#refs#/a"] = np.array([[73]], np.uint16)
        references = file.create_dataset("leads", (3, 1), h5py.ref_dtype)
        references[:] = np.full((3, 1), file["#refs#/a"].ref, h5py.ref_dtype)
    _, opened = open_recording(path, unit="mV")
    assert opened.leads == ["column 1", "column 2", "column 3"]


def test_an_array_x_beside_a_signal_is_not_it(tmp_path):
    np.savez(tmp_path / "a", x=np.arange(2500.0), ecg=millivolts()[:, 0], fs=FS, unit="mV")
    records, opened = open_recording(tmp_path / "a.npz")
    np.testing.assert_array_equal(records[0].read(), millivolts()[:, 0])
    assert opened.notes == ["array 'x' left out"]


def test_arrays_say_their_rate_unit_and_leads(tmp_path):
    mv = millivolts()
    said = {"fs": FS, "unit": "mV"}
    np.savez(tmp_path / "npz", signal=mv, leads=np.array(LEADS), **said)
    scipy.io.savemat(tmp_path / "matlab", {"val": mv.T, "leads": "I,II,V1", **said}, appendmat=False)
    for name, array in {"h5": mv, "h5t": mv.T}.items():
        with h5py.File(tmp_path / name, "w") as file:
            file["signal"] = array
            file["signal"].attrs.update(fs=FS, unit="mV", leads=list(LEADS))
    with h5py.File(tmp_path / "by_lead", "w") as file:
        file.attrs.update(fs=FS, units="mV")
        for lead, mv_T in zip(LEADS, mv.T, strict=True):
            file.create_dataset(f"ecg/{lead}", data=mv_T, compression="gzip")
    table = pa.table({"time": np.arange(len(mv)) / FS, **dict(zip(LEADS, mv.T, strict=True))})
    parquet.write_table(table.replace_schema_metadata({"unit": "mV"}), tmp_path / "parquet")
    for name in ("npz.npz", "matlab", "h5", "h5t", "by_lead", "parquet"):
        assert_holds(tmp_path / name)
    np.save(tmp_path / "a.npy", mv)
    for name, lead in zip(LEADS, mv.T, strict=True):
        found = open_record(tmp_path / "a.npy", lead=name, fs=FS, unit="mV", leads=LEADS).read()
        np.testing.assert_array_equal(found, lead)


def test_matlab_7_3_is_hdf5_with_axes_swapped_and_text_as_numbers(tmp_path):
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        # MATLAB's (samples, leads) lies as (leads, samples).
        file["val"] = millivolts().T.astype(np.float64)
        file["fs"] = np.array([[250.0]])
        for name, text in (("unit", "mV"), ("leads", "I,II,V1")):
            file[name] = np.array([[ord(letter)] for letter in text], np.uint16)
            file[name].attrs["MATLAB_class"] = np.bytes_(b"char")
    data = path.read_bytes()
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    path.write_bytes(head.ljust(512, b"\0") + data[512:])
    assert_holds(path)


def test_the_kind_of_a_file_is_told_by_its_content_and_signal_files_of_wfdb_are_none(tmp_path):
    found = {path.name: sniff(path.read_bytes()[:1024]) for path in sorted((DEMO / "records").iterdir())[:60]}
    assert set(found.values()) == {None}
    for text in ("100\n101\n102\n103\n", "record,patient,af\n1,1,0\n2,2,1\n3,3,1\n", "hello\nworld\n", ""):
        (tmp_path / "RECORDS").write_text(text)
        assert find_files(tmp_path) == {}
    with pytest.raises(RecordError, match=r"RECORDS: no recording of a known format \(it is empty\); wanted WFDB, EDF"):
        open_record(tmp_path / "RECORDS")


def test_names_without_extension_are_found_and_ambiguous_ones_refused(tmp_path):
    above = "time [s],I [mV],II [mV],V1 [mV]"
    (tmp_path / "sub").mkdir()
    write_text(tmp_path / "sub" / "a.csv", millivolts(), above=above)
    assert find_files(tmp_path) == {"sub/a": "sub/a.csv"}
    assert_holds(tmp_path / "sub" / "a")
    write_dicom(tmp_path / "sub" / "a.bin", [dicom_group(counts())])
    assert find_files(tmp_path) == {"sub/a.bin": "sub/a.bin", "sub/a.csv": "sub/a.csv"}
    with pytest.raises(RecordError, match=r"a: which of a\.bin, a\.csv\? give its extension"):
        open_record(tmp_path / "sub" / "a")


def test_what_may_not_be_read_is_found_and_says_so(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", [dicom_group(counts())])
    (tmp_path / "closed").mkdir()
    write_dicom(tmp_path / "closed" / "b.dcm", [dicom_group(counts())])
    access, walk = os.access, os.walk
    hidden = (str(path), str(tmp_path / "closed"))
    monkeypatch.setattr(os, "access", lambda at, mode: str(at) not in hidden and access(at, mode))
    monkeypatch.setattr(os, "walk", lambda top: (found for found in walk(top) if not found[0].endswith("closed")))
    assert find_files(tmp_path) == {"a": "a.dcm", "closed": "closed"}
    with pytest.raises(RecordError, match="closed: "):
        open_record(tmp_path / "closed", root=tmp_path)
    with pytest.raises(RecordError, match=r"^none: no such file or record$"):
        open_record(tmp_path / "none")


def test_files_outside_the_root_are_refused_through_links_too(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_dicom(tmp_path / "out.dcm", [dicom_group(counts())])
    (root / "link.dcm").symlink_to("../out.dcm")
    for path in (root / "link.dcm", root / "link", root / ".." / "out.dcm"):
        with pytest.raises(RecordError, match=r"outside its root|No such file|no such"):
            open_record(path, root=root)
    assert find_files(root) == {}
    (tmp_path / "in.dcm").symlink_to("root/b.dcm")
    write_dicom(root / "b.dcm", [dicom_group(counts())])
    assert_holds(tmp_path / "in.dcm")


def test_a_lead_that_is_no_voltage_is_listed_and_refused_when_read(tmp_path):
    (tmp_path / "a.csv").write_text("time,I [mV],Resp [kPa]\n0,1,2\n0.004,1,2\n0.008,1,2\n")
    record = open_record(tmp_path / "a.csv", lead="Resp")
    assert record.leads == ("I", "Resp")
    with pytest.raises(RecordError, match=r"a\.csv: lead 'Resp' is in 'kPa'; wanted a voltage"):
        record.read()


def test_a_child_serves_many_files(tmp_path):
    other_formats._children.end()
    path = write_dicom(tmp_path / "a.dcm", [dicom_group(counts())])
    for _ in range(3):
        open_record(path)
    assert len(other_formats._children.idle) == 1
    other_formats._children.end()
