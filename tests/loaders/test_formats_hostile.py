"""Hostile and damaged files of other formats: each one typed error, in little time and memory, and no canary fires."""

import io
import os
import pickle
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import edfio
import h5py
import numpy as np
import pyarrow as pa
import pytest
import scipy.io
from pyarrow import parquet

from anyecg.loaders import other_formats
from anyecg.loaders.errors import RecordError
from anyecg.loaders.records import find_files, open_record

from ..conftest import SHARED
from .foreign import counts, dicom_group, write_dicom

CASES = {}
AECG = '<?xml version="1.0"?>{doctype}<AnnotatedECG xmlns="urn:hl7-org:v3">{body}</AnnotatedECG>'
SEQUENCE = (
    "<component><series><code code='RHYTHM'/><component><sequenceSet><component><sequence><code code='TIME_ABSOLUTE'/>"
    "<value><head value='20240101'/><increment value='0.002' unit='s'/></value></sequence></component><component>"
    "<sequence><code code='MDC_ECG_LEAD_II'/><value><origin value='0' unit='uV'/><scale value='{scale}' unit='uV'/>"
    "<digits>{digits}</digits></value></sequence></component></sequenceSet></component></series></component>"
)
THREE = SEQUENCE.format(scale=1, digits="1 2 3")
BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
SAID = {"fs": 500, "unit": "mV"}


class Canary:
    """Makes a file where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["CANARY"],)


def case(make):
    """Note a function of a folder that returns bytes, or writes a file and returns its path."""
    CASES[make.__name__] = make
    return make


def xml(name, doctype="", body=THREE):
    CASES[name] = lambda folder: AECG.format(doctype=doctype, body=body).replace("CANARY", str(folder)).encode()


xml("xml_bomb", f'<!DOCTYPE x [<!ENTITY a0 "lol">{BOMB}]>', SEQUENCE.format(scale=1, digits="&a11;"))
xml("xml_quadratic_bomb", f'<!DOCTYPE x [<!ENTITY a "{"1 " * 1500}">]>',
    SEQUENCE.format(scale=1, digits="&a;" * 500_000))  # fmt: skip
xml("xml_external_entity", '<!DOCTYPE x [<!ENTITY a SYSTEM "file://CANARY/canary.txt">]>',
    SEQUENCE.format(scale=1, digits="&a;"))  # fmt: skip
xml("xml_parameter_entity", '<!DOCTYPE x [<!ENTITY % a SYSTEM "file://CANARY/canary.txt"> %a;]>')
xml("xml_deep", "", "<a>" * 300_000)
xml("xml_many_attributes", "", "<a " + " ".join(f"b{n}='1'" for n in range(100_000)) + "/>")
xml("aecg_of_words", "", SEQUENCE.format(scale=1, digits="one two"))
xml("aecg_of_no_digits", "", SEQUENCE.format(scale=1, digits=" "))


@case
def sierra_bomb(folder):
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "x">{BOMB}]><restingecgdata>&a11;</restingecgdata>'.encode()


@case
def muse_bomb(folder):
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "x">{BOMB}]><RestingECG>&a11;</RestingECG>'.encode()


@case
def npy_of_objects(folder):
    stream = io.BytesIO()
    np.save(stream, np.array([Canary()], object), allow_pickle=True)
    return stream.getvalue()


@case
def npz_of_objects(folder):
    stream = io.BytesIO()
    np.savez(stream, signal=np.array([Canary()], object), **SAID)
    return stream.getvalue()


@case
def npy_of_10_to_the_12(folder):
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + bytes(100)


@case
def npy_header_of_code(folder):
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (__import__('os').mkdir('x'),), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + bytes(100)


@case
def npy_header_of_4_gb(folder):
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{" * 1000


@case
def npz_bomb(folder):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file, file.open("signal.npy", "w") as member:
        head = b"{'descr': '|i1', 'fortran_order': False, 'shape': (2000000000,), }"
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n")
        for _ in range(200):
            member.write(bytes(1 << 20))
    return stream.getvalue()


@case
def npz_that_climbs(folder):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("../canary.npy", b"\x93NUMPY")
    return stream.getvalue()


@case
def npz_of_many_members(folder):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for number in range(5000):
            file.writestr(f"a{number}.npy", b"")
    return stream.getvalue()


@case
def matlab_of_a_huge_array(folder):
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"val": np.zeros((2, 50)), **SAID})
    return stream.getvalue().replace(struct.pack("<ii", 2, 50), struct.pack("<ii", 2**30, 2**30))


@case
def matlab_bomb(folder):
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"val": np.zeros(40_000_000), **SAID}, do_compression=True)
    return stream.getvalue()


@case
def matlab_of_cells_and_structs_alone(folder):
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"val": {"a": 1}, "other": np.array([[1], "a"], object)})
    return stream.getvalue()


def hdf5(name, change):
    def make(folder):
        path = folder / "a.h5"
        with h5py.File(path, "w") as file:
            change(file, folder)
        return path.read_bytes()

    CASES[name] = make


def canary_h5(folder):
    with h5py.File(folder / "canary.h5", "w") as file:
        file["signal"] = np.ones(1000)
    return str(folder / "canary.h5")


hdf5("hdf5_external_link", lambda file, folder: file.__setitem__("signal", h5py.ExternalLink(canary_h5(folder), "/")))
hdf5("hdf5_soft_link", lambda file, folder: file.__setitem__("signal", h5py.SoftLink("/nowhere")))
hdf5(
    "hdf5_external_storage",
    lambda file, folder: file.create_dataset("signal", (9,), "u1", external=[(str(folder / "canary.txt"), 0, 9)]),
)
hdf5("hdf5_of_10_to_the_12", lambda file, _: file.create_dataset("signal", (10**12,), "f8", chunks=(10**6,)))
hdf5("hdf5_of_references", lambda file, _: file.create_dataset("signal", (9,), h5py.ref_dtype))
hdf5("hdf5_cycle", lambda file, _: file.__setitem__("again", file["/"]))
hdf5("hdf5_of_many_sets", lambda file, _: [file.create_dataset(f"s{n}", (2,), "f4") for n in range(1500)] and None)


@case
def hdf5_virtual(folder):
    layout = h5py.VirtualLayout((1000,), "f8")
    layout[:] = h5py.VirtualSource(canary_h5(folder), "signal", (1000,))
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("signal", layout)
        file.attrs.update(SAID)
    return (folder / "a.h5").read_bytes()


@case
def hdf5_bomb(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        rows = 1 << 26
        signal = file.create_dataset("signal", (rows,), "f8", chunks=(rows,), compression="gzip")
        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(rows * 8 >> 20)) + packer.flush()
        signal.id.write_direct_chunk((0,), packed)
        signal.attrs.update(SAID)
    return (folder / "a.h5").read_bytes()


@case
def parquet_bomb(folder):
    table = pa.table({"time": pa.array(np.arange(10.0)), "I [mV]": pa.array(np.zeros(10))})
    parquet.write_table(table, folder / "a")
    return (folder / "a").read_bytes()[:-100] + b"\xff" * 92 + b"\x00\x10\x00\x00PAR1"


@case
def parquet_of_runs(folder):
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(80_000_000, np.int32)), pa.array([1.0]))
    parquet.write_table(pa.table({"I [mV]": column.cast(pa.float64())}), folder / "a", compression="zstd")
    return (folder / "a").read_bytes()


@case
def dicom_of_10_to_the_9_samples(folder):
    group = dicom_group(counts(10), NumberOfWaveformSamples=10**9)
    return write_dicom(folder / "a", [group]).read_bytes()


@case
def dicom_without_waveform(folder):
    return write_dicom(folder / "a", []).read_bytes()


@case
def dicom_of_mu_law(folder):
    return write_dicom(folder / "a", [dicom_group(counts(10), kind="MB")]).read_bytes()


@case
def dicom_very_late(folder):
    return write_dicom(folder / "a", [dicom_group(counts(10)), dicom_group(counts(10), late_ms="1e12")]).read_bytes()


@case
def dicom_deflate_bomb(folder):
    data = write_dicom(folder / "a", [dicom_group(counts(10))]).read_bytes()
    uid, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
    place = data.index(uid)
    head = data[: place - 2] + struct.pack("<H", 22) + deflated
    length = struct.unpack("<I", data[140:144])[0] + 2
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1000)) + packer.flush()
    return head[:140] + struct.pack("<I", length) + head[144:] + data[place + 20 : length + 142] + bomb


@case
def dicom_of_nested_sequences(folder):
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x00\x54\x00\x01SQ\0\0\xff\xff\xff\xff"
    data = write_dicom(folder / "a", []).read_bytes()
    return data[: data.rindex(b"\x00\x54\x00\x01")] + b"\x00\x54\x00\x01SQ\0\0\xff\xff\xff\xff" + item * 50_000


def edf_of(name, place, value):
    def make(folder):
        signal = edfio.EdfSignal(np.sin(np.arange(5000)), 500, label="ECG I", physical_dimension="mV")
        edfio.Edf([signal]).write(folder / "a")
        data = (folder / "a").read_bytes()
        return data[:place] + value + data[place + len(value) :]

    CASES[name] = make


edf_of("edf_of_10_to_the_7_blocks", 236, b"99999999")
edf_of("edf_of_9999_signals", 252, b"9999")
edf_of("edf_of_no_seconds", 244, b"0       ")
edf_of("edf_of_nan_seconds", 244, b"nan     ")
edf_of("edf_of_a_wide_signal", 256 + 16 + 80 + 8 * 5 + 80, b"99999999")
edf_of("edf_of_no_range", 256 + 16 + 80 + 8, b"1       1       ")
edf_of("edf_of_words", 256 + 16 + 80 + 8, b"one     ")
edf_of("edf_plus_d_without_annotations", 192, b"EDF+D")


@case
def scp_of_huge_leads(folder):
    data = bytearray(6 + 16 + 120)
    data[2:6] = struct.pack("<I", len(data))
    data[8:14] = struct.pack("<HI", 0, 136)
    data[28:32] = struct.pack("<I", 7)
    return bytes(data)


@case
def text_of_one_endless_line(folder):
    return b"time,I [mV]\n0,1\n1,2\n2,3\n" + b"1" * 5_000_000


@case
def text_of_many_columns(folder):
    return (b"1," * 500 + b"1\n") * 100


@case
def text_of_nul_bytes_behind_its_head(folder):
    return b"time,I [mV]\n" + b"".join(b"%d,1\n" % n for n in range(2000)) + bytes(10_000)


@case
def pickle_itself(folder):
    return pickle.dumps(Canary())


def made(name, folder):
    path = folder / "record"
    path.write_bytes(CASES[name](folder))
    return path


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Start a child and let it import what the readers need: a new one takes longer than two busy seconds."""
    other_formats._children.end()
    yield
    other_formats._children.end()


@pytest.mark.parametrize("name", list(CASES))
def test_a_hostile_file_is_one_typed_error_and_fires_no_canary(tmp_path, monkeypatch, name):
    canary = tmp_path / "fired"
    monkeypatch.setenv("CANARY", str(canary))
    (tmp_path / "canary.txt").write_text("7 7 7 CANARY 7 7 7")
    path = made(name, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(RecordError, match=r"^record: ") as caught:
        open_record(path).read()
    said = str(caught.value)
    assert said.isprintable()
    assert "CANARY" not in said
    assert len(said) < 400
    assert str(tmp_path) not in said
    assert not canary.exists()
    find_files(tmp_path)
    # One that the system ended was bounded by it.
    for child in other_formats._children.idle:
        status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
        assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 512_000
    # A child that was ended has been waited for; its processor time is in the sum.
    other_formats._children.end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 6


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_every_cut_of_a_real_file_is_a_record_or_one_typed_error(tmp_path):
    formats = SHARED / "formats"
    for path in (formats / "aecg" / "Example aECG.xml", formats / "scp" / "Example.scp", formats / "dicom/Example.dcm",
                 formats / "sierra" / "129DYPRG.XML", formats / "edf" / "test_generator_2.edf"):  # fmt: skip
        data = path.read_bytes()
        for share in (0.001, 0.01, 0.3, 0.7, 0.999):
            (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
            with pytest.raises(RecordError, match="cut"):
                open_record(tmp_path / "cut").read()


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "terminal").symlink_to("/dev/stdin")
    (tmp_path / "link_to_pipe").symlink_to("pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    for name in ("pipe", "device", "folder", "terminal", "link_to_pipe", "socket"):
        with pytest.raises(RecordError, match=r"regular file|outside its root"):
            open_record(tmp_path / name)
    listener.close()
    assert find_files(tmp_path) == {}


@pytest.mark.parametrize("what", [
    "open('/etc/hostname')", "open('x', 'w')", "__import__('socket').socket()", "__import__('os').system('true')",
    "__import__('subprocess').run(['true'])", "__import__('pickle').loads(data)", "__import__('os').mkdir('x')",
])  # fmt: skip
def test_the_child_refuses_a_parser_that_reaches_out(tmp_path, what):
    code = f"""
import json, os, sys, pickle, subprocess, socket, decimal
data = pickle.dumps(decimal.Decimal(1))
import anyecg.loaders.format_child as child
import anyecg.loaders.format_dicom as reader
reader.load = lambda kind: None
def read(file, kind, options):
    {what}
    raise child.RecordError("reached out")
reader.read = read
child.main()
"""
    (tmp_path / "a").write_bytes(b"")
    request = '["dicom", "' + str(tmp_path / "a") + '", 0, {}]\n'
    done = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True, cwd=tmp_path)
    assert "refused while parsing" in done.stdout, done.stdout + done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_parser_that_loops_is_ended(tmp_path):
    code = """
import anyecg.loaders.format_child as child
import anyecg.loaders.format_dicom as reader
reader.load = lambda kind: None
def read(file, kind, options):
    while True: pass
reader.read = read
child.main()
"""
    (tmp_path / "a").write_bytes(b"")
    request = '["dicom", "' + str(tmp_path / "a") + '", 0, {}]\n'
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True)
    assert done.returncode < 0
    assert done.stdout == ""
    assert time.monotonic() - begin < 60
