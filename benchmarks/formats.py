"""Time open_recording with all samples read, for each format against its library in this process; a day of EDF."""

import contextlib
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import edfio
import numpy as np
import pydicom
from ecgdatakit import FileParser

from anyecg.app.convert import convert
from anyecg.loaders.records import find_files, open_record, open_recording

from .fuzz_formats import REPOSITORY, SHARED

FILES = ("aecg/Example aECG.xml", "scp/Example.scp", "dicom/Example.dcm", "sierra/129DYPRG.XML")
HOURS, FS = 24, 500


def milliseconds(call, times=15):
    """Return the median of some calls."""
    call()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e3)
    return statistics.median(found)


def read_all(path):
    """Open a recording and read every lead."""
    return [record.read() for record in open_recording(path)[0]]


def main():
    """Print one line a format, and what a day of EDF takes."""
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    read_all(SHARED / FILES[0])
    print(f"first file, with the start of the child: {(time.perf_counter() - start) * 1e3:.0f} ms")
    for name in FILES:
        library = pydicom.dcmread if name.endswith("dcm") else FileParser.parse
        ours, theirs = milliseconds(lambda name=name: read_all(SHARED / name)), milliseconds(
            lambda name=name, library=library: library(SHARED / name)
        )  # fmt: skip
        print(f"{name}: {ours:.1f} ms; {library.__qualname__} in this process {theirs:.1f} ms")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for form, suffix in (("hdf5", "a.h5"), ("csv", "a.csv"), ("edf", "a.edf")):
            convert(REPOSITORY / "app/demo/records/A00009", suffix, form)
            print(f"{suffix}, 30 s of one lead: {milliseconds(lambda suffix=suffix: read_all(suffix)):.1f} ms")
        mv_T = np.random.default_rng(0).integers(-2000, 2000, HOURS * 3600 * FS) / 1000
        signal = edfio.EdfSignal(mv_T, FS, label="ECG I", physical_dimension="mV", physical_range=(-32.767, 32.767))
        edfio.Edf([signal] * 3).write("day.edf")
        day = Path("day.edf")
        print(f"EDF of {HOURS} h, 3 leads at {FS} Hz, {day.stat().st_size / 1e6:.0f} MB: open and read 10 s "
              f"{milliseconds(lambda: open_record(day, lead=1).read(20_000_000, 20_005_000)):.2f} ms; one lead whole "
              f"{milliseconds(lambda: open_record(day, lead=1).read(), 3):.0f} ms")  # fmt: skip
    records = REPOSITORY / "app" / "demo" / "records"
    n_files = len(list(records.iterdir()))
    print(f"find_files in {n_files} files: {milliseconds(lambda: find_files(records)):.0f} ms")


if __name__ == "__main__":
    main()
