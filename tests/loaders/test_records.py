from pathlib import Path

import numpy as np
import pytest
import wfdb

from anyecg.loaders.errors import RecordError
from anyecg.loaders.records import find_records, open_record

from ..conftest import DEMO, SHARED


def wfdb_mv(path, position):
    """The reference: wfdb's physical samples of one lead, in mV."""
    record = wfdb.rdrecord(str(path), smooth_frames=False)
    factor = {"mv": 1, "uv": 1e-3, "v": 1e3}[record.units[position].lower()]
    return record.e_p_signal[position] * factor


def test_demo_recordings_read_as_wfdb_reads_them():
    for header in sorted((DEMO / "records").glob("*.hea"))[::20]:
        path = header.with_suffix("")
        record = open_record(path)
        wanted = wfdb_mv(path, 0)
        assert (record.fs, record.n_samples, record.leads) == (300, len(wanted), ("ECG",))
        np.testing.assert_allclose(record.read(), wanted, atol=1e-6)
        np.testing.assert_array_equal(record.read(1000, 1100), record.read()[1000:1100])


@pytest.mark.parametrize("form", ["16", "212", "24", "80"])
def test_written_records_come_back_with_their_gaps(tmp_path, form):
    rng = np.random.default_rng(1)
    mv = rng.standard_normal((501, 3))
    mv[40:50, 1] = np.nan
    wfdb.wrsamp(
        "r", fs=250, units=["mV", "uV", "mV"], sig_name=["I", "II", "V1"], p_signal=mv * [1, 1000, 1],
        fmt=[form] * 3, write_dir=str(tmp_path),
    )  # fmt: skip
    for position, lead in enumerate(["I", "II", "V1"]):
        found = open_record(tmp_path / "r", lead=lead).read()
        np.testing.assert_allclose(found, wfdb_mv(tmp_path / "r", position), atol=1e-5)
        assert np.isnan(found).sum() == (10 if position == 1 else 0)
    if form in ("16", "212"):
        for start, stop in ((0, 501), (3, 8), (100, 101), (500, 501), (7, 7)):
            np.testing.assert_array_equal(
                open_record(tmp_path / "r").read(start, stop), open_record(tmp_path / "r").read()[start:stop]
            )


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/mitdb, 22 more recordings")
def test_half_hour_recordings_of_format_212_read_as_wfdb_reads_them():
    for header in sorted((SHARED / "mitdb").glob("*.hea"))[::7]:
        for position in (0, 1):
            found = open_record(header, lead=position).read()
            np.testing.assert_allclose(found, wfdb_mv(header.with_suffix(""), position), atol=1e-5)


def test_start_is_the_base_time_of_the_header():
    assert open_record(DEMO / "records" / "A00009").start.isoformat().startswith("20")


def test_records_are_found_below_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("b.hea", "a/c.hea", "a/c.dat"):
        (tmp_path / name).touch()
    assert find_records(tmp_path) == ["a/c", "b"]


BAD_HEADERS = {
    "empty": "",
    "no signals": "r 0 250 100\n",
    "too many leads": "r 65 250 100\n" + "r.dat 16\n" * 65,
    "missing signal line": "r 2 250 100\nr.dat 16\n",
    "rate of zero": "r 1 0 100\nr.dat 16\n",
    "rate in words": "r 1 fast 100\nr.dat 16\n",
    "no length": "r 1 250\nr.dat 16\n",
    "absurd length": "r 1 250 2000000000\nr.dat 16\n",
    "bad gain": "r 1 250 100\nr.dat 16 1/2/3/4)\n",
    "not a format": "r 1 250 100\nr.dat x16\n",
    "no such file": "r 1 250 100\nmissing.dat 16 200/mV\n",
    "not a voltage": "r 1 250 100\nr.dat 16 200/mmHg\n",
    "cut short": "r 1 250 1000\nr.dat 16 200/mV\n",
    "out of the root": "r 1 250 100\n../secret.dat 16 200/mV\n",
    "absolute path": "r 1 250 100\n/etc/hostname 16 200/mV\n",
    "segments": "r/2 1 250 100\na 50\nb 50\n",
    "bad time": "r 1 250 100 25:00:00 01/01/2000\nr.dat 16 200/mV\n",
    "unknown format": "r 1 250 100\nr.dat 99 200/mV\n",
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_give_a_typed_error(tmp_path, name):
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "r.hea").write_text(BAD_HEADERS[name])
    (folder / "r.dat").write_bytes(bytes(300))
    (tmp_path / "secret.dat").write_bytes(bytes(300))
    with pytest.raises(RecordError):
        open_record(folder / "r").read()


def test_a_link_out_of_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.dat").write_bytes(bytes(300))
    (root / "r.dat").symlink_to(tmp_path / "secret.dat")
    (root / "r.hea").write_text("r 1 250 100\nr.dat 16 200/mV\n")
    with pytest.raises(RecordError, match="outside"):
        open_record(root / "r")


def test_a_missing_lead_is_named():
    with pytest.raises(RecordError, match="lead 'II' is missing; found ECG"):
        open_record(DEMO / "records" / "A00009", lead="II")


def test_mutated_headers_never_raise_an_untyped_error(tmp_path):
    rng = np.random.default_rng(2)
    header = (DEMO / "records" / "A00009.hea").read_bytes()
    (tmp_path / "A00009.mat").write_bytes((DEMO / "records" / "A00009.mat").read_bytes())
    for _ in range(1500):
        data = bytearray(header)
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(len(data)))
            data[place : place + int(rng.integers(2))] = bytes(
                rng.integers(0, 256, int(rng.integers(3)), dtype=np.uint8)
            )
        Path(tmp_path / "r.hea").write_bytes(data)
        try:
            record = open_record(tmp_path / "r")
            record.read(0, min(100, record.n_samples))
        except RecordError:
            pass
