"""R12 for other formats, long form: 100,000 mutated files, each a readable record or one typed error."""

import argparse
import io
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import edfio
import h5py
import numpy as np
import pyarrow as pa
import scipy.io
from pyarrow import parquet

from anyecg.app.convert import convert
from anyecg.loaders import other_formats
from anyecg.loaders.errors import RecordError
from anyecg.loaders.records import find_files, open_record, open_recording

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data" / "formats"
REAL = (
    "aecg/minimum_aecg.xml", "aecg/subject1_0.xml", "scp/Example.scp", "dicom/Example.dcm", "dicom/waveform_ecg.dcm",
    "sierra/129DYPRG.XML", "sierra/3191723_ZZDEMOPTONLY_1-04_orig.xml", "edf/test_generator_2.edf",
    "edf/test_edfann.edf",
)  # fmt: skip
NASTY = (
    b"-1", b"0", b"99999999999", b"1e309", b"nan", b"inf", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0",
    b"\0\0\0\x80", b"&a;", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"<a>" * 500, b"../../etc/hostname", b"/etc/hostname",
    b"file:///etc/hostname", b"http://127.0.0.1/", b"'", b'"', b"\0", b"\xef\xbb\xbf", b"\xff\xfe",
)  # fmt: skip
MEGABYTES = 512


def write_seeds(folder):
    """Return {name: bytes} of files to mutate: real ones, and a real recording in the formats that are written."""
    seeds = {name: (SHARED / name).read_bytes() for name in REAL if (SHARED / name).exists()}
    record = REPOSITORY / "app" / "demo" / "records" / "A00009"
    for form, suffix in (("edf", ".edf"), ("hdf5", ".h5"), ("csv", ".csv")):
        convert(record, folder / f"a{suffix}", form)
        seeds[f"a{suffix}"] = (folder / f"a{suffix}").read_bytes()
    mv_T = open_record(record).read(0, 3000)
    said = {"fs": 300, "unit": "mV"}
    streams = {name: io.BytesIO() for name in ("a.npz", "a.mat", "b.mat", "a.parquet", "a.npy")}
    np.savez_compressed(streams["a.npz"], signal=mv_T, **said)
    np.save(streams["a.npy"], mv_T)
    scipy.io.savemat(streams["a.mat"], {"val": mv_T, **said}, do_compression=True)
    scipy.io.savemat(streams["b.mat"], {"val": mv_T, "leads": ["I"], "other": {"a": [1, "b"]}, **said})
    table = pa.table({"time": np.arange(len(mv_T)) / 300, "I [mV]": mv_T})
    parquet.write_table(table, streams["a.parquet"])
    seeds |= {name: stream.getvalue() for name, stream in streams.items()}
    edf = edfio.Edf(
        [edfio.EdfSignal(mv_T, 300, label="ECG I", physical_dimension="mV")],
        annotations=[edfio.EdfAnnotation(1, None, "a")],
    )
    seeds["gaps.edf"] = edf.to_bytes().replace(b"EDF+C", b"EDF+D")
    with h5py.File(folder / "b.h5", "w") as file:
        file.create_dataset("ecg/I", data=mv_T, chunks=(500,), compression="gzip", fletcher32=True)
        file.attrs.update(said)
    seeds["b.h5"] = (folder / "b.h5").read_bytes()
    muse = (
        "<?xml version='1.0'?><!DOCTYPE RestingECG SYSTEM 'restecg.dtd'><RestingECG><MuseInfo><MuseVersion>8"
        "</MuseVersion></MuseInfo><Waveform><WaveformType>Rhythm</WaveformType><SampleBase>500</SampleBase><SampleExponent>0"
        "</SampleExponent><LeadData><LeadByteCountTotal>8</LeadByteCountTotal><LeadSampleCountTotal>4"
        "</LeadSampleCountTotal><LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>MICROVOLTS"
        "</LeadAmplitudeUnits><LeadID>II</LeadID><LeadSampleSize>2</LeadSampleSize><WaveFormData>AQACAAMABAA="
        "</WaveFormData></LeadData></Waveform></RestingECG>"
    )
    seeds["muse.xml"] = muse.encode()
    return seeds


def mutate(data, rng):
    """Change a file at a few places, more often near its beginning, where the structure is; or cut it."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        size = max(1, len(data))
        place = int(rng.integers(size)) if rng.random() < 0.4 else int(rng.integers(min(size, 4096)))
        kind = rng.integers(6)
        if kind == 0:
            data[place : place + 1] = rng.integers(0, 256, 1, np.uint8).tobytes()
        elif kind == 1 and place < len(data):
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            nasty = NASTY[int(rng.integers(len(NASTY)))]
            data[place : place + (len(nasty) if rng.random() < 0.7 else 0)] = nasty
        elif kind == 3:
            length = int(rng.integers(1, 200))
            data[place:place] = data[place : place + length]
        elif kind == 4:
            del data[place : place + int(rng.integers(1, 40))]
        elif rng.random() < 0.3:
            del data[place:]
    return bytes(data)


def attempt(path):
    """Open a file and read from each lead; return "record" or "typed error", whatever else is raised is a fault."""
    options = {"fs": 300, "unit": "mV"} if path.suffix == ".npy" else {}
    try:
        records, _ = open_recording(path, **options)
    except RecordError as cause:
        said = str(cause)
        assert "\n" not in said, said
        assert len(said) < 500, said
        return "typed error"
    for record in records:
        try:
            mv = record.read(0, min(record.n_samples, 5000))
            assert mv.dtype == np.float32
            assert mv.shape == (min(record.n_samples, 5000),)
        except RecordError as cause:
            said = str(cause)
    return "record"


def child_megabytes():
    """Return the peak memory of the children that wait."""
    peaks = [0.0]
    for child in other_formats._children.idle:
        status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e3)
    return max(peaks)


def main():
    """Print the count of each outcome, the slowest file and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, default=float("inf"), help="stop after so many seconds")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    counts: Counter = Counter()
    slowest, peak, begin, done = (0.0, ""), 0.0, time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        seeds = write_seeds(Path(folder))
        for name, data in seeds.items():
            path = Path(folder) / f"seed{Path(name).suffix}"
            path.write_bytes(data)
            # An EDF of annotations alone is none.
            assert attempt(path) == ("typed error" if "edfann" in name else "record"), name
        names = list(seeds)
        for done in range(1, arguments.files + 1):
            name = names[int(rng.integers(len(names)))]
            path = Path(folder) / "mutated" / f"m{Path(name).suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(mutate(seeds[name], rng))
            start = time.perf_counter()
            try:
                counts[name, attempt(path)] += 1
                if done % 50 == 0:
                    find_files(path.parent)
            except BaseException:
                print(f"seed {arguments.seed}, file {done}, of {name}: {path.read_bytes()[:300]!r}", file=sys.stderr)
                raise
            seconds = time.perf_counter() - start
            slowest = max(slowest, (seconds, name))
            peak = max(peak, child_megabytes()) if done % 20 == 0 else peak
            if peak > MEGABYTES:
                raise SystemExit(f"file {done} of {name}: {peak:.0f} MB in the child; wanted at most {MEGABYTES}")
            path.unlink()
            if time.monotonic() - begin > arguments.until:
                break
    other_formats._children.end()
    total = Counter()
    for (_, outcome), number in counts.items():
        total[outcome] += number
    print(
        f"{done} files of {len(names)} kinds: {total['record']} records, {total['typed error']} typed errors, 0 others"
    )
    print(f"slowest {slowest[0]:.1f} s ({slowest[1]}); peak memory of the child {peak:.0f} MB; "
          f"{time.monotonic() - begin:.0f} s")  # fmt: skip
    for name in names:
        print(f"  {name}: {counts[name, 'record']} records, {counts[name, 'typed error']} typed errors")


if __name__ == "__main__":
    main()
