import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import wfdb

from anyecg.loaders import wfdb_samples
from anyecg.loaders.errors import RecordError
from anyecg.loaders.records import find_records, open_record

from ..conftest import DEMO, REPOSITORY, SHARED

FORMATS = SHARED / "formats" / "wfdb"
# Headers of ../shared/data/formats/wfdb that wfdb 4.3.1 cannot read whole, and why.
UNREADABLE = {
    "no signal file": [
        "1003", "12726", "drive02", "drive02-no-len", "n16", "n8_evoked_raw_95_F1_R9", "wave_4", "s0010_re",
        "multi-segment/s00001/3975656_0009", "multi-segment/s00001/3975656_0010", "multi-segment/s00001/3975656_0011",
    ],
    "a segment without its file": [
        "multi-segment/p000878/p000878-2137-10-26-16-57", "multi-segment/s00001/s00001-2896-10-10-00-31",
    ],
    "a layout holds no samples": [
        "multi-segment/p000878/3269321_layout", "multi-segment/s00001/3248903_layout",
        "multi-segment/s00001/3975656_layout", "multi-segment/s25047/3234460_layout",
    ],
}  # fmt: skip
READABLE = sorted(
    {str(path.relative_to(FORMATS))[:-4] for path in FORMATS.rglob("*.hea")}
    - {name for names in UNREADABLE.values() for name in names}
)
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


def wfdb_mv(path, position):
    """The reference: wfdb's physical samples of one lead, in mV."""
    record = wfdb.rdrecord(str(path), smooth_frames=False)
    factor = {"mv": 1, "uv": 1e-3, "v": 1e3}[record.units[position].lower()]
    return record.e_p_signal[position] * factor


def assert_same_as_wfdb(path):
    """Compare every lead that is a voltage, whole and in ranges; return how many were."""
    wanted = wfdb.rdrecord(str(path), smooth_frames=False, ignore_skew=False)
    units = getattr(wanted, "units", None) or [None] * wanted.n_sig
    rng = np.random.default_rng(5)
    n_voltages = 0
    for position, wanted_mv in enumerate(wanted.e_p_signal):
        record = open_record(path, lead=position)
        assert record.leads == tuple(wanted.sig_name)
        assert record.fs == pytest.approx(wanted.fs * wanted.samps_per_frame[position])
        assert record.n_samples == len(wanted_mv)
        try:
            mv = record.read()
        except RecordError as error:
            assert "wanted a voltage" in str(error)  # noqa: PT017
            assert units[position] is None or units[position].lower() not in ("mv", "uv", "v")
            continue
        factor = {"uv": 1e-3, "v": 1e3}.get((units[position] or "mV").lower(), 1)
        np.testing.assert_array_equal(np.isnan(mv), np.isnan(wanted_mv))
        np.testing.assert_allclose(mv, (wanted_mv * factor).astype(np.float32), rtol=1.2e-7, atol=0)
        for start in rng.integers(0, len(mv), 5):
            stop = int(rng.integers(start, min(len(mv), start + 5000) + 1))
            np.testing.assert_array_equal(record.read(int(start), stop), mv[start:stop])
        n_voltages += 1
    return n_voltages


@needs_shared
@pytest.mark.parametrize("name", READABLE)
def test_every_readable_header_gives_the_samples_of_wfdb(name):
    assert_same_as_wfdb(FORMATS / name)


@needs_shared
def test_arrhythmia_and_challenge_recordings_give_the_samples_of_wfdb():
    for header in [*sorted((SHARED / "mitdb").glob("*.hea")), *sorted((SHARED / "cinc2017").glob("*.hea"))[::200]]:
        assert assert_same_as_wfdb(header.with_suffix("")) in (1, 2)


@needs_shared
@pytest.mark.parametrize("name", [name for names in UNREADABLE.values() for name in names])
def test_what_wfdb_cannot_read_is_a_typed_error(name):
    with pytest.raises((OSError, ValueError)):
        wfdb.rdrecord(str(FORMATS / name), smooth_frames=False)
    # Leads of s0010_re whose file is there are read; wfdb wants all files.
    with pytest.raises(RecordError):
        open_record(FORMATS / name, lead="vx" if name == "s0010_re" else None).read()


@needs_shared
def test_a_range_needs_only_the_segments_it_lies_in():
    path = FORMATS / "multi-segment" / "s00001" / "s00001-2896-10-10-00-31"
    wanted = wfdb.rdrecord(str(path), sampfrom=3000, sampto=20_000, channels=[0], smooth_frames=False)
    found = open_record(path, lead="II").read(3000, 20_000)
    np.testing.assert_allclose(found, wanted.e_p_signal[0], rtol=1.2e-7)
    assert np.isnan(found[:261]).all()
    assert not np.isnan(found[261:7136]).any()


def test_demo_recordings_read_as_wfdb_reads_them():
    for header in sorted((DEMO / "records").glob("*.hea"))[::20]:
        path = header.with_suffix("")
        record = open_record(path)
        wanted = wfdb_mv(path, 0)
        assert (record.fs, record.n_samples, record.leads) == (300, len(wanted), ("ECG",))
        np.testing.assert_allclose(record.read(), wanted, atol=1e-6)
        np.testing.assert_array_equal(record.read(1000, 1100), record.read()[1000:1100])


@pytest.mark.parametrize("form", ["16", "212", "24", "32", "80", "516", "524"])
def test_written_records_come_back_with_their_gaps(tmp_path, form):
    rng = np.random.default_rng(1)
    mv = rng.standard_normal((501, 3))
    mv[40:50, 1] = np.nan
    wfdb.wrsamp(
        "r", fs=250, units=["mV", "uV", "mV"], sig_name=["I", "II", "V1"], p_signal=mv * [1, 1000, 1],
        fmt=[form] * 3, write_dir=str(tmp_path),
    )  # fmt: skip
    for position, lead in enumerate(["I", "II", "V1"]):
        record = open_record(tmp_path / "r", lead=lead)
        found = record.read()
        np.testing.assert_allclose(found, wfdb_mv(tmp_path / "r", position), atol=1e-5)
        assert np.isnan(found).sum() == (10 if position == 1 else 0)
        for start, stop in ((0, 501), (3, 8), (100, 101), (500, 501), (7, 7)):
            np.testing.assert_array_equal(record.read(start, stop), found[start:stop])


def write(folder, **headers):
    """Write headers, and 3000 random bytes as r.dat."""
    (folder / "r.dat").write_bytes(np.random.default_rng(3).integers(0, 256, 3000, np.uint8).tobytes())
    for name, text in headers.items():
        (folder / f"{name}.hea").write_text(text)
    return folder / "r"


FORMS = ("8", "16", "24", "32", "61", "80", "160", "212", "310", "311")
SHAPES = ("", "x2", "x3", ":2", "+24")


# wfdb fails on a skew in format 8: the test after this one holds it.
@pytest.mark.parametrize(("form", "shape"), [(f, s) for f in FORMS for s in SHAPES if (f, s) != ("8", ":2")])
def test_every_format_gives_the_samples_of_wfdb(tmp_path, form, shape):
    offset = "+24" if "+" in shape else ""
    path = write(
        tmp_path,
        r=f"r 2 250 140\nr.dat {form}{shape} 200(9)/mV 12 0 3 0 0 I\nr.dat {form}{offset} 11/uV 12 2 -7 0 0 II\n",
    )
    assert assert_same_as_wfdb(path) == 2


def test_a_skew_in_format_8_is_the_record_without_it_that_many_frames_later(tmp_path):
    plain = write(tmp_path, p="p 2 250 140\nr.dat 8 200/mV 12 0 3 0 0 I\nr.dat 8 200/mV\n").with_name("p")
    path = write(tmp_path, r="r 2 250 140\nr.dat 8:2 200/mV 12 0 3 0 0 I\nr.dat 8 200/mV\n")
    found = open_record(path).read()
    np.testing.assert_array_equal(found[:-2], open_record(plain).read()[2:])
    assert np.isnan(found[-2:]).all()


@pytest.mark.parametrize("form", ["8", "16", "61", "310"])
def test_records_longer_than_a_block_are_read_block_by_block(tmp_path, form, monkeypatch):
    monkeypatch.setattr(wfdb_samples, "_BLOCK_COUNTS", 40)
    monkeypatch.setattr(wfdb_samples, "_WFDB_BLOCK_COUNTS", 40)
    path = write(tmp_path, r=f"r 2 250 300\nr.dat {form}x2 200(9)/mV 12 0 3 0 0 I\nr.dat {form} 200 12 0 5 0 0 II\n")
    assert assert_same_as_wfdb(path) == 2


def test_a_skew_of_several_samples_a_frame_leaves_no_made_up_sample(tmp_path):
    path = write(tmp_path, r="r 2 250 100\nr.dat 16x2:3 200/mV\nr.dat 16 200/mV\n")
    plain = write(tmp_path, p="p 2 250 100\nr.dat 16x2 200/mV\nr.dat 16 200/mV\n").with_name("p")
    found = open_record(path).read()
    np.testing.assert_array_equal(found[:-6], open_record(plain).read()[6:])
    assert np.isnan(found[-6:]).all()  # wfdb 4.3.1 puts NaN in three of the six, zeros in the others


@pytest.mark.parametrize(
    ("form", "n_samples"), [("16", 1500), ("212", 2000), ("24", 1000), ("310", 2250), ("80", 3000)]
)
def test_a_header_without_length_takes_it_from_the_signal_file(tmp_path, form, n_samples):
    path = write(tmp_path, r=f"r 1 250\nr.dat {form} 200/mV 16 0 0 0 0 I\n")
    assert open_record(path).n_samples == n_samples == wfdb.rdrecord(str(path)).sig_len
    assert assert_same_as_wfdb(path) == 1


@pytest.mark.parametrize("form", ["16", "61"])
def test_a_range_reads_no_more_than_was_asked_for(tmp_path, form):
    (tmp_path / "r.hea").write_text(f"r 1 500 900000000\nr.dat {form} 200/mV\n")
    with (tmp_path / "r.dat").open("wb") as file:
        file.truncate(1_800_000_000)
    record = open_record(tmp_path / "r")
    record.read(0, 10)
    tracemalloc.start()
    try:
        assert (record.read(899_990_000, 899_995_000) == 0).all()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def checksum_of(path):
    return int(np.fromfile(path, "<i2").sum(dtype=np.int64))


@pytest.mark.parametrize("shape", ["", ":3"])
@pytest.mark.parametrize("spelling", ["signed", "unsigned", "zero", "absent"])
def test_a_checksum_is_verified_when_the_lead_is_read_whole(tmp_path, spelling, shape):
    path = write(tmp_path)
    total = checksum_of(tmp_path / "r.dat") % 65536
    given = {"signed": total - 65536, "unsigned": total, "zero": 0, "absent": ""}[spelling]
    path = write(tmp_path, r=f"r 1 250 1500\nr.dat 16{shape} 200/mV 16 0 0 {given}\n")
    open_record(path).read()
    data = bytearray((tmp_path / "r.dat").read_bytes())
    data[100] ^= 1
    (tmp_path / "r.dat").write_bytes(data)
    open_record(path).read(1, 1500)
    if spelling in ("zero", "absent"):
        open_record(path).read()
    else:
        with pytest.raises(RecordError, match=f"checksum {checksum_of(tmp_path / 'r.dat') % 65536}; .* {total}\\."):
            open_record(path).read()


SEGMENTS = {
    "one": "one 2 250 60\nr.dat 16 200/mV 16 0 0 0 0 I\nr.dat 16 100/mV 16 0 0 0 0 II\n",
    "two": "two 1 250 50\nr.dat 16 50(7)/mV 16 0 0 0 0 II\n",
    "lay": "lay 2 250 0\n~ 0 200/mV 16 0 0 0 0 I\n~ 0 200/mV 16 0 0 0 0 II\n",
}


def test_gaps_and_missing_leads_of_segments_are_nan(tmp_path):
    path = write(tmp_path, r="r/4 2 250 200 1:00:00 01/02/2003\nlay 0\none 60\n~ 90\ntwo 50\n", **SEGMENTS)
    first, second = open_record(path, lead="I"), open_record(path, lead="II")
    assert first.leads == ("I", "II")
    assert (second.fs, second.n_samples, second.start.year) == (250, 200, 2003)
    np.testing.assert_array_equal(first.read()[:60], open_record(tmp_path / "one").read())
    assert np.isnan(first.read()[60:]).all()
    np.testing.assert_array_equal(second.read()[150:], open_record(tmp_path / "two").read())
    assert np.isnan(second.read()[60:150]).all()
    np.testing.assert_array_equal(second.read(55, 155), second.read()[55:155])
    assert assert_same_as_wfdb(path) == 2
    mv = second.read()
    (tmp_path / "two.hea").write_text(SEGMENTS["two"].replace("50(7)/mV", "50(7)/uV"))
    np.testing.assert_allclose(second.read()[150:], mv[150:] / 1000, rtol=2e-7)


def test_a_fixed_layout_may_have_gaps(tmp_path):
    path = write(tmp_path, r="r/3 2 250\n~ 10\none 60\none 60\n", **SEGMENTS)
    mv = open_record(path, lead="II").read()
    assert np.isnan(mv[:10]).all()
    np.testing.assert_array_equal(mv[70:], open_record(tmp_path / "one", lead="II").read())


BAD_SEGMENTS = {
    "names itself": "r/1 2 250 100\nr 100\n",
    "names a parent": "r/2 2 250 200\none 60\nup 140\n",
    "only null": "r/1 2 250 100\n~ 100\n",
    "missing": "r/2 2 250 100\none 60\nnone 40\n",
    "shorter than said": "r/1 2 250 100\none 100\n",
    "another total": "r/1 2 250 100\none 60\n",
    "another rate": "r/2 2 250 120\none 60\nfast 60\n",
    "too few leads": "r/2 2 250 110\none 60\ntwo 50\n",
    "more leads than a segment": "r/1 3 250 60\none 60\n",
    "none": "r/0 2 250 60\n",
    "in words": "r/x 2 250 60\none 60\n",
    "without length": "r/1 2 250 60\none\n",
    "negative": "r/1 2 250 60\none -60\n",
    "too many": "r/100001 2 250 60\none 60\n",
    "too long": "r/2 2 250\n~ 999999999\none 60\n",
    "out of the root": "r/1 2 250 60\n../one 60\n",
    "absolute": "r/1 2 250 60\n/one 60\n",
    "a URL": "r/1 2 250 60\nhttp://127.0.0.1:1/one 60\n",
}


@pytest.mark.parametrize("name", BAD_SEGMENTS)
def test_bad_segments_give_a_typed_error(tmp_path, name):
    extra = {"up": "up/1 2 250 140\nr 140\n", "fast": SEGMENTS["one"].replace("one 2 250", "fast 2 500")}
    path = write(tmp_path, r=BAD_SEGMENTS[name], **SEGMENTS, **extra)
    with pytest.raises(RecordError):
        open_record(path, lead=1).read()


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
    "no length, no samples": "r 1 250\nr.dat 16+400\n",
    "no length, compressed": "r 1 250\nr.dat 516\n",
    "not FLAC": "r 1 250 10\nr.dat 516 200/mV\n",
    "two formats in a file": "r 2 250 10\nr.dat 16 200/mV\nr.dat 212 200/mV\n",
    "huge frames": "r 1 250 1\nr.dat 516x999999999 200/mV\n",
    "huge number": "r 1 250 10\nr.dat 16x" + "9" * 5000 + " 200/mV\n",
    "a URL": "r 1 250 100\nhttp://127.0.0.1:1/r.dat 16 200/mV\n",
    "a URL of a bucket": "r 1 250 100\ns3://bucket/r.dat 80 200/mV\n",
    "a chained URL": "r 1 250 100\nsimplecache::r.dat 80 200/mV\n",
    "a pipe": "r 1 250 100\npipe 16 200/mV\n",
    "a folder": "r 1 250 100\n. 80 200/mV\n",
    "absurd length": "r 1 250 2000000000\nr.dat 16\n",
    "bad gain": "r 1 250 100\nr.dat 16 1/2/3/4)\n",
    "not a format": "r 1 250 100\nr.dat x16\n",
    "no such file": "r 1 250 100\nmissing.dat 16 200/mV\n",
    "not a voltage": "r 1 250 100\nr.dat 16 200/mmHg\n",
    "cut short": "r 1 250 1000\nr.dat 16 200/mV\n",
    "out of the root": "r 1 250 100\n../secret.dat 16 200/mV\n",
    "absolute path": "r 1 250 100\n/etc/hostname 16 200/mV\n",
    "missing segments": "r/2 1 250 100\na 50\nb 50\n",
    "cut short, decoded by wfdb": "r 1 250 401\nr.dat 310 200/mV\n",
    "over a megabyte": "r 1 250 100\nr.dat 16 200/mV\n" + "#" * 1_000_000,
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
    os.mkfifo(folder / "pipe")
    with pytest.raises(RecordError):
        open_record(folder / "r").read()


@pytest.mark.parametrize("form", ["16", "80"])
def test_a_link_out_of_the_root_is_refused_and_one_within_is_followed(tmp_path, form):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    write(tmp_path)
    (root / "r.dat").symlink_to(tmp_path / "r.dat")
    (root / "a" / "r.hea").write_text(f"r 1 250 100\nr.dat {form} 200/mV\n")
    (root / "r.hea").symlink_to(root / "a" / "r.hea")
    with pytest.raises(RecordError, match="outside"):
        open_record(root / "r")
    assert open_record(root / "r", root=tmp_path).read().shape == (100,)


def test_a_segment_in_a_linked_folder_outside_is_refused_though_its_header_is_inside(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    write(outside)
    write(root, r="r/1 2 250 60\nsub/one 60\n", **SEGMENTS)
    (outside / "one.hea").symlink_to(root / "one.hea")
    (root / "sub").symlink_to(outside)
    with pytest.raises(RecordError, match="outside its root"):
        open_record(root / "r").read()


def test_segments_may_lie_in_a_folder_below(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", **SEGMENTS)
    path = write(tmp_path, r="r/1 2 250 60\nsub/one 60\n")
    np.testing.assert_array_equal(open_record(path).read(), open_record(tmp_path / "sub" / "one").read())


def test_a_record_outside_the_root_is_refused(tmp_path):
    path = write(tmp_path, r="r 1 250 100\nr.dat 16 200/mV\n")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "up").symlink_to(tmp_path)
    for outside in (path, tmp_path / "root" / "up" / "r", tmp_path / "root" / ".." / "r"):
        with pytest.raises(RecordError, match="outside"):
            open_record(outside, root=tmp_path / "root")


def test_a_name_that_cannot_be_is_a_typed_error():
    with pytest.raises(RecordError):
        open_record("a\0b/r")


def test_a_missing_lead_is_named():
    with pytest.raises(RecordError, match="lead 'II' is missing; found ECG"):
        open_record(DEMO / "records" / "A00009", lead="II")


def test_300_mutated_headers_open_nothing_outside_and_raise_typed_errors_only():
    command = [sys.executable, "-m", "benchmarks.fuzz_headers", "--files", "300", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
