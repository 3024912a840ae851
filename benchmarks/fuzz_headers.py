"""R12 for headers, long form: 100,000 mutated WFDB headers of all kinds, each a readable record or one typed error."""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import wfdb

from anyecg.kernels.counts import counts_to_mv
from anyecg.loaders.errors import RecordError
from anyecg.loaders.records import open_record

FORMS = ("8", "16", "24", "32", "61", "80", "160", "212", "310", "311")
NASTY = (
    "", "0", "-1", "1", "2", "65", "99999999999", "1000000000", "4294967296", "1e309", "nan", "inf", "-0.0", "1e-320",
    "1_0", "0x10", "٣", "../canary", "../canary.dat", "/etc/hostname", "//etc/hostname", "http://127.0.0.1/a", "~",
    "s3://bucket/a", "simplecache::http://127.0.0.1/a", "file:///etc/hostname", "r", "r.hea", "sub/../../canary.dat",
    "link", "link.dat", "pipe.dat", "fixed", "layout", "16x999999999", "16:999999999", "16+99999999", "212x3", "508",
    "516", "99", "200(1e9)/mV", "200/uV", "1e300/mV", "0/mV", "200(99999999999)", "/9", "r/2", "r/99999999", "\0",
    "\xb5V", "\u2028", "é" * 300, "9" * 5000,
)  # fmt: skip


def write_seeds(folder):
    """Write signal files, segments, a link out and a pipe below ``folder``; return the headers to mutate."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder.parent / "canary.dat").write_bytes(bytes(10_000))
    (folder.parent / "canary.hea").write_text("canary 1 250 100\ncanary.dat 16\n")
    (folder / "link.dat").symlink_to(folder.parent / "canary.dat")
    (folder / "link.hea").symlink_to(folder.parent / "canary.hea")
    os.mkfifo(folder / "pipe.dat")
    for form in FORMS:
        (folder / f"f{form}.dat").write_bytes(rng.integers(0, 256, 24_000, dtype=np.uint8).tobytes())
    for form in ("508", "516", "524"):
        wfdb.wrsamp(
            f"f{form}", fs=250, units=["mV", "mV"], sig_name=["I", "II"], fmt=[form] * 2, write_dir=str(folder),
            d_signal=rng.integers(-99, 99, (2000, 2)), adc_gain=[200.0] * 2, baseline=[0, 0],
        )  # fmt: skip
    lines = "f16.dat 16 200/mV 12 0 0 0 0 I\nf16.dat 16 200/mV 12 0 0 0 0 II\n"
    (folder / "seg1.hea").write_text(f"seg1 2 250 2000\n{lines}")
    (folder / "seg2.hea").write_text("seg2 1 250 1000\nf212.dat 212 200/mV 12 0 0 0 0 II\n")
    (folder / "layout.hea").write_text("layout 2 250 0\n~ 0 200/mV 12 0 0 0 0 I\n~ 0 200/mV 12 0 0 0 0 II\n")
    (folder / "fixed.hea").write_text("fixed/2 2 250 4000\nseg1 2000\nseg1 2000\n")
    seeds = [
        f"r 2 250 2000 10:00:00 01/02/2003\nf{form}.dat {form} 200(10)/mV 12 0 0 0 0 I\n"
        f"f{form}.dat {form} 200/uV 12 0 0 0 0 II\n# a comment\n"
        for form in (*FORMS, "508", "516", "524")
    ]
    seeds += [
        f"r 2 250\n{lines}",
        "r 2 100 900\nf16.dat 16x3:2+24 200 12 5 0 0 0 I\nf16.dat 16+24 200/uV 12 5 0 0 0 II\n",
        "r 1 100 9000\nf212.dat 212:7 200/mV\n",
        "r/3 2 250 6000\nseg1 2000\n~ 2000\nseg1 2000\n",
        "r/4 2 250 4500 1:00:00 01/02/2003\nlayout 0\nseg1 2000\n~ 1500\nseg2 1000\n",
    ]
    return [seed.encode() for seed in seeds]


def load_everything(root, seeds):
    """Read each seed as it is, and load each compiled kernel: what Python and Numba open for that is no escape."""
    for seed in seeds:
        (root / "r.hea").write_bytes(seed)
        open_record(root / "r").read()
    for dtype in (np.int16, np.int32):
        for step in (1, 2):
            for baseline in (0, 2**40):
                counts = np.zeros(8, dtype)[::step]
                counts_to_mv(counts, baseline=baseline, factor=1.0, invalid=None, out_T=np.empty(8 // step, np.float32))


def mutate(seed, rng):
    """Change a header at a few random places: bytes, words and whole lines."""
    data = bytearray(seed)
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(4)
        if kind == 0 and data:
            place = int(rng.integers(len(data)))
            data[place : place + int(rng.integers(3))] = rng.integers(0, 256, int(rng.integers(3)), np.uint8).tobytes()
        elif kind == 1:
            lines = bytes(data).split(b"\n")
            chosen = lines[int(rng.integers(len(lines)))]
            lines[int(rng.integers(len(lines)))] = chosen * int(rng.integers(3))
            data = bytearray(b"\n".join(lines))
        else:
            words = bytes(data).replace(b"\n", b" \n ").split(b" ")
            words[int(rng.integers(len(words)))] = NASTY[int(rng.integers(len(NASTY)))].encode()
            data = bytearray(b" ".join(words).replace(b" \n ", b"\n"))
    return bytes(data)


def attempt(path, rng):
    """Open one header and read from it; return "record" or "typed error", whatever else is raised is a fault."""
    try:
        record = open_record(path, lead=int(rng.integers(2)))
        ends = [(0, min(record.n_samples, 2000)), (max(0, record.n_samples - 2000), record.n_samples)]
        for start, stop in [*ends, (0, record.n_samples)] if record.n_samples < 2_000_000 else ends:
            mv = record.read(start, stop)
            assert mv.dtype == np.float32
            assert mv.shape == (stop - start,)
    except RecordError:
        return "typed error"
    return "record"


class Watch:
    """An audit hook that notes every file opened outside ``root`` and every connection, while it is on."""

    def __init__(self, root):
        self.root, self.on, self.escapes = f"{root}/", False, []
        sys.addaudithook(self._note)

    def _note(self, event, arguments):
        if not self.on:
            return
        if event.startswith("socket.") or event in ("subprocess.Popen", "os.system"):
            self.escapes.append((event, str(arguments)))
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            if not os.path.realpath(path).startswith(self.root):
                self.escapes.append((event, path))


def main():
    """Print the count of each outcome, the slowest header and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    counts = {"record": 0, "typed error": 0}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "root"
        seeds = write_seeds(root)
        load_everything(root, seeds)
        watch = Watch(root)
        for _ in range(arguments.files):
            data = mutate(seeds[int(rng.integers(len(seeds)))], rng)
            (root / "r.hea").write_bytes(data)
            watch.on = True
            start = time.perf_counter()
            counts[attempt(root / "r", rng)] += 1
            seconds = time.perf_counter() - start
            watch.on = False
            slowest = max(slowest, seconds)
            if seconds > 2 or watch.escapes:
                raise SystemExit(f"{seconds:.1f} s, outside the root: {watch.escapes}: {data!r}")
    # The peak that getrusage gives would include the process that started this one.
    memory = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
    if memory > 512:
        raise SystemExit(f"peak memory {memory:.0f} MB, wanted at most 512")
    print(f"{arguments.files} headers: {counts['record']} records, {counts['typed error']} typed errors, 0 others;")
    print(f"nothing opened outside the root, no socket; slowest {slowest * 1e3:.0f} ms; peak memory {memory:.0f} MB")


if __name__ == "__main__":
    main()
