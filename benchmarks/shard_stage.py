"""Time the shard stage on a simulated MC-MED: against a naive pipeline, on two ranks, and up to a million windows.

First make the input, then a cohort of it (docs/shard.md has the config):

    anyecg simulate --out sim --visits 2400 --hours 4 --seed 7
    anyecg cohort million.toml
    python -m benchmarks.shard_stage naive RUN_FOLDER
    python -m benchmarks.shard_stage ranks RUN_FOLDER
    python -m benchmarks.shard_stage scale RUN_FOLDER
"""

import argparse
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import wfdb
from scipy.signal import medfilt

from anyecg.loaders import shards
from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.index import open_index
from anyecg.loaders.plan import deal, plan_shards
from anyecg.loaders.shard_config import SECONDS, ShardConfig
from anyecg.loaders.shards import write_shards
from anyecg.slurm.launch import find_mpirun, rank_environment
from benchmarks.kernels import filtered, numpy_flags, processor

CONFIG = ShardConfig(lead="II", windows_per_shard=25_000)


def part_of(cohort, n_windows, skip=0):
    """Return the cohort of as many visits as can hold ``n_windows`` windows, after those that can hold ``skip``."""
    one_split = dataclasses.replace(cohort, visits=cohort.visits.with_columns(split=pl.lit(0, pl.Int8)))
    (plan,) = plan_shards(one_split, windows_per_shard=2**62)
    stop = np.cumsum(plan.windows_V)
    rows = plan.rows_V[(stop > skip) & (stop <= skip + n_windows)]
    number_of = pl.DataFrame({"visit_row": rows.astype(np.int32), "number": np.arange(len(rows), dtype=np.int32)})

    def renumbered(table):
        kept = table.join(number_of, on="visit_row", maintain_order="left")
        return kept.with_columns(visit_row=pl.col("number")).drop("number")

    return dataclasses.replace(
        cohort, visits=cohort.visits[rows], records=renumbered(cohort.records), draws=renumbered(cohort.draws),
        quarantine=cohort.quarantine.clear(), hash=f"{cohort.hash} {skip} {n_windows}",
    )  # fmt: skip


def rank(arguments):
    """Be one MPI rank of a run: write the shards of a part of the cohort, print what it took."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    cohort = part_of(open_cohort(arguments.run / "cohort"), arguments.windows, arguments.skip)
    small = part_of(cohort, 5000)
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as warm:
        # Compiled code is loaded before the clock starts; how long that takes is said beside.
        write_shards(warm, small, CONFIG, MPI.COMM_SELF, seed=1, stage_hash="")
    comm.barrier()
    joined, write_index = [0.0], shards.write_index

    def timed(*given, **options):
        begin = time.perf_counter()
        write_index(*given, **options)
        joined[0] = time.perf_counter() - begin

    shards.write_index = timed
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    write_shards(arguments.out, cohort, CONFIG, comm, seed=1, stage_hash="")
    comm.barrier()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = comm.gather(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    peak = comm.gather(after.ru_maxrss / 1e6)
    if comm.rank == 0:
        counts = open_index(arguments.out).head["counts"]
        plans = plan_shards(cohort, windows_per_shard=CONFIG.windows_per_shard)
        largest = max(sum(plan.n_windows for plan in share) for share in deal(plans, comm.size))
        print(json.dumps({
            "seconds": seconds, "joined": joined[0], "cpu": sum(cpu), "peak_gb": max(peak),
            "cut": counts["windows cut"], "kept": counts["windows"],
            **{name: counts[name] for name in ("pairs", "visits", "draws")},
            "planned": sum(plan.n_windows for plan in plans), "largest_share": largest,
        }))  # fmt: skip


def start_ours(run, out, n_windows, n_ranks, skip=0):
    """Start a run on ``n_ranks`` ranks of its own."""
    command = [
        find_mpirun(), "-n", str(n_ranks), sys.executable, "-m", "benchmarks.shard_stage", "rank", str(run),
        "--windows", str(n_windows), "--skip", str(skip), "--out", str(out),
    ]  # fmt: skip
    environment = {**rank_environment(n_ranks), "PYTHONSAFEPATH": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment)


def finish(process):
    """Return what a run printed."""
    text, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a run ended with {process.returncode}")
    return json.loads(text.splitlines()[-1])


def naive(cohort, wanted, path):
    """Do the stage as one would write it first: wfdb, SciPy window by window, NumPy, and an HDF5 file appended to.

    ``wanted`` says for each visit which window starts are to be kept, so that both ways store the same windows; the
    pairing itself costs this way nothing.
    """
    n_stored = 0
    with h5py.File(path, "w") as file:
        signal = file.create_dataset("signal", (0, 5000), np.int16, maxshape=(None, 5000), chunks=(64, 5000))
        scale = file.create_dataset("scale", (0,), np.float32, maxshape=(None,), chunks=(16_384,))
        flags = file.create_dataset("flags", (0,), np.uint8, maxshape=(None,), chunks=(16_384,))
        for visit, name, start in cohort.records.select("visit_row", "path", "start").iter_rows():
            record = wfdb.rdrecord(str(cohort.root / name), channel_names=["II"])
            mv = record.p_signal[:, 0]
            for first in range(0, len(mv) - 5000 + 1, 5000):
                raw_T = mv[first : first + 5000]
                flag = numpy_flags(raw_T[None], 500)[0]
                if (visit, start + round(first / 500 * 1e6)) not in wanted:
                    continue
                x_T = filtered(np.nan_to_num(raw_T))
                x_T = x_T - medfilt(x_T, 201)
                step = abs(x_T).max() / 32767
                for data, value in ((signal, np.rint(x_T / step)), (scale, step), (flags, flag)):
                    data.resize(n_stored + 1, axis=0)
                    data[n_stored] = value
                n_stored += 1
    return n_stored


def kept_windows(folder, cohort):
    """Return {(visit row of the cohort, start)} of the windows that our stage stored."""
    tables = open_index(folder).tables
    row_of = {int(key): row for row, key in enumerate(cohort.visits["visit"].to_list())}
    keys = np.asarray(tables["visit_visit"])[tables["window_visit"]]
    return {(row_of[int(key)], int(start)) for key, start in zip(keys, tables["window_start"], strict=True)}


def compare_naive(arguments):
    """Run both ways in turn on the same visits, one process each."""
    cohort = part_of(open_cohort(arguments.run / "cohort"), arguments.windows)
    ratios = []
    with tempfile.TemporaryDirectory(dir=arguments.run) as folder:
        folder = Path(folder)
        for turn in range(arguments.repeats):
            ours = finish(start_ours(arguments.run, folder / f"ours{turn}", arguments.windows, 1))
            wanted = kept_windows(folder / f"ours{turn}", cohort)
            start = time.perf_counter()
            n_stored = naive(cohort, wanted, folder / "naive.h5")
            theirs = time.perf_counter() - start
            assert n_stored == ours["kept"]
            ratios.append(theirs / ours["seconds"])
            print(
                f"{ours['cut']} windows cut, {n_stored} kept: naive {1e6 * theirs / n_stored:.0f} us a window kept, "
                f"ours {1e6 * ours['seconds'] / n_stored:.0f} us: {ratios[-1]:.1f}x", flush=True,
            )  # fmt: skip
            shutil.rmtree(folder / f"ours{turn}")
    print(f"median {statistics.median(ratios):.1f}x")


def arithmetic():
    """Return a command that does nothing but arithmetic for some seconds, and prints how long it took."""
    loop = "import time; s = time.perf_counter(); sum(i * i % 7 for i in range(30_000_000))"
    return [sys.executable, "-c", f"{loop}; print(time.perf_counter() - s)"]


def compare_ranks(arguments):
    """Compare two ranks on two halves with two independent processes, one on each half."""
    ratios, controls = [], []
    half = arguments.windows // 2
    with tempfile.TemporaryDirectory(dir=arguments.run) as folder:
        for turn in range(arguments.repeats):
            out = Path(folder) / str(turn)
            out.mkdir()
            alone = float(subprocess.run(arithmetic(), capture_output=True, text=True, check=True).stdout)
            copies = [subprocess.Popen(arithmetic(), stdout=subprocess.PIPE, text=True) for _ in range(2)]
            controls.append(2 * alone / max(float(copy.communicate()[0]) for copy in copies))
            both = finish(start_ours(arguments.run, out / "both", 2 * half, 2))
            runs = [start_ours(arguments.run, out / f"half{n}", half, 1, skip=n * half) for n in range(2)]
            halves = [finish(run) for run in runs]
            independent = sum(found["kept"] / found["seconds"] for found in halves)
            ratios.append(both["kept"] / both["seconds"] / independent)
            print(
                f"two ranks {both['kept'] / both['seconds']:.0f} windows/s, two processes {independent:.0f}: "
                f"{ratios[-1]:.2f}; two arithmetic loops reach {controls[-1]:.2f} of one", flush=True,
            )  # fmt: skip
            shutil.rmtree(out)
    said = "void: the machine has not two free cores" if statistics.median(controls) < 1.8 else "valid"
    print(f"median {statistics.median(ratios):.2f} ({said})")


def disk_rates(folder):
    """Return (write, read) in bytes a second of a file of 1 GB, flushed to the disk and dropped from the cache."""
    path, block = Path(folder) / "disk.tmp", os.urandom(2**24)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(64):
            file.write(block)
        os.fsync(file.fileno())
    write = 64 * len(block) / (time.perf_counter() - start)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while file.read(2**24):
            pass
        read = 64 * len(block) / (time.perf_counter() - start)
    path.unlink()
    return write, read


def drop_from_cache(cohort):
    """Make Linux forget the recordings' contents, so that every size is read from the disk."""
    for name in cohort.records["path"]:
        for path in (cohort.root / name).parent.glob(f"{Path(name).name}.*"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclasses.dataclass(frozen=True)
class Model:
    """Seconds of the stage.

    Attributes
    ----------
    fixed, fixed_join : float
        A run, and joining its tables, whatever the size.
    window : float
        Core-seconds a window kept: its share of the windows read and judged, filters, writing and reading back.
    join : float
        Seconds a window kept that one rank takes to join the tables while the others wait.
    read, written : float
        Bytes a window kept.
    """

    fixed: float
    fixed_join: float
    window: float
    join: float
    read: float
    written: float

    def seconds(self, n_windows, *, share, read_rate, write_rate):
        """Return (seconds, what binds); ``share`` is the part of the most loaded rank, rates are bytes a second."""
        terms = {
            "cores": share * n_windows * self.window,
            "disk or network": n_windows * (self.read / read_rate + self.written / write_rate),
        }
        binds = max(terms, key=terms.get)
        joined = self.fixed_join + n_windows * self.join
        return self.fixed + terms[binds] + joined, binds if terms[binds] >= joined else "joining the tables"


def fit(runs):
    """Fit the model on finished runs: a straight line through time against the windows of the most loaded rank."""
    kept, cut = (np.array([run[name] for run in runs], float) for name in ("kept", "cut"))
    share = np.array([run["largest_share"] / run["planned"] for run in runs])
    join, fixed_join = np.polyfit(kept, [run["joined"] for run in runs], 1)
    busy = np.array([run["seconds"] - run["joined"] for run in runs])
    # Each run counts by its relative error, so that the small ones decide the constant and the large ones the slope.
    columns = np.stack([np.ones(len(runs)), share * kept], axis=1) / busy[:, None]
    fixed, window = np.linalg.lstsq(columns, np.ones(len(runs)), rcond=None)[0]
    window_bytes = 2.0 * SECONDS * 500
    return Model(
        max(float(fixed), 0.0), float(fixed_join), float(window), max(float(join), 0.0),
        window_bytes * float(cut.sum() / kept.sum()), window_bytes,
    )  # fmt: skip


def measure_scale(arguments):
    """Run growing parts of the cohort, then all of it; fit on the small ones and predict the last."""
    whole = open_cohort(arguments.run / "cohort")
    write_rate, read_rate = disk_rates(arguments.run)
    print(f"disk: writes {write_rate / 1e6:.0f} MB/s, reads {read_rate / 1e6:.0f} MB/s, one stream")
    runs = []
    out = arguments.run / "scale"
    for n_windows in (*arguments.sizes, 10**9):
        cohort = part_of(whole, n_windows)
        drop_from_cache(cohort)
        run = finish(start_ours(arguments.run, out, n_windows, arguments.ranks))
        shutil.rmtree(out)
        runs.append(run)
        print(
            f"{run['visits']:6d} visits {run['draws']:6d} draws {run['cut']:8d} windows cut {run['kept']:8d} kept "
            f"{run['seconds']:7.1f} s  {1e6 * run['cpu'] / run['kept']:5.1f} us of CPU and "
            f"{1e6 * run['seconds'] / run['kept']:5.1f} us a window kept, joining {run['joined']:.2f} s, "
            f"peak {run['peak_gb']:.2f} GB a rank, {run['pairs'] / run['kept']:.2f} pairs a window",
            flush=True,
        )  # fmt: skip
    model = fit(runs[:-1])
    last = runs[-1]
    share = last["largest_share"] / last["planned"]
    predicted, binds = model.seconds(last["kept"], share=share, read_rate=read_rate, write_rate=write_rate)
    print(f"{model}")
    print(
        f"predicted for {last['kept']} windows: {predicted:.1f} s ({binds}), measured {last['seconds']:.1f} s: "
        f"{100 * (predicted / last['seconds'] - 1):+.1f} %"
    )
    print("20 million windows kept, 400 shards of 50,000; reads and writes of the file system in GB/s:")
    for n_cores in (1, 16, 128, 1024):
        for rate in arguments.rates:
            share = max(1 / n_cores, 1 / 400)
            seconds, binds = model.seconds(20e6, share=share, read_rate=1e9 * rate, write_rate=1e9 * rate)
            print(f"  {n_cores:5d} cores, {rate:4.1f} GB/s: {seconds:7.0f} s, bound by {binds}")


def main():
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("naive", "ranks", "scale", "rank"))
    parser.add_argument("run", type=Path, help="run folder with a finished cohort of simulated MC-MED")
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=(15_000, 45_000, 150_000, 400_000), help="windows cut")
    parser.add_argument("--rates", type=float, nargs="*", default=(0.2, 1.0, 10.0), help="GB/s of the file system")
    arguments = parser.parse_args()
    if arguments.what != "rank":
        print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}", flush=True)
    {"naive": compare_naive, "ranks": compare_ranks, "scale": measure_scale, "rank": rank}[arguments.what](arguments)


if __name__ == "__main__":
    main()
