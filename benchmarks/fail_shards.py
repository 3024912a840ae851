"""R2, long form: every k-th write, fsync, rename, open, unlink, mkdir and close of the shard stage fails.

Needs a C compiler (cc), for the small library that is laid over the system calls of one process.
"""

import argparse
import atexit
import ctypes
import errno
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from anyecg.loaders.progress import Progress
from anyecg.slurm.launch import find_mpirun
from tests.conftest import DEMO, anyecg, write_small_config

HERE = Path(__file__).parent
# A full disk stays full; a bad sector fails once, as does a signal.
ERRORS = {"ENOSPC": True, "EIO": False, "EDQUOT": True, "EINTR": False}
OPTIONS = ("shard.fs=125", "shard.preset=none", "shard.windows_per_shard=8", "shard.ranks=1")
HARMLESS = ("no lock on", "lines are missing there")


def overlay(folder):
    """Compile the library; return its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("cc is missing: this check lays a small C library over the system calls; install gcc or clang")
    library = folder / "fail.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "fail.c", "-ldl"], check=True)
    return library


def warm():
    """Load modules and kernels once; the forked stages start from here. No thread may run yet."""
    import h5py  # noqa: F401

    from anyecg.app import stages  # noqa: F401
    from anyecg.kernels.checksum import fletcher32
    from anyecg.loaders import shards  # noqa: F401
    from anyecg.loaders.records import open_record
    from anyecg.loaders.windows import find_windows, store_windows

    record = find_windows(open_record(DEMO / "records/A00009"), pad_short=True)
    store_windows(record, (record.flags_W & 0) == 0, fs=125, preset="none")
    fletcher32(b"1234")


class Stage:
    """The shard stage on one run folder, in a process forked for each run."""

    def __init__(self, config):
        self.config, self.run = config, config.parent / "run"
        self.shards, self.said = self.run / "shards", config.parent / "said.txt"

    def fork(self, *options, k=-1, error=0, stays=False):
        """Run it; the k-th change fails. Return (exit code, number of changes, lines on standard error)."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            code = 99
            try:
                said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(said, 2)
                from anyecg.app.cli import main

                ctypes.CDLL(None).fail_at(k, error, stays)
                code = main(["shard", str(self.config), *OPTIONS, *options])
                what = ctypes.CDLL(None).fail_what
                what.restype = ctypes.c_char_p
                os.write(writer, f"{ctypes.CDLL(None).fail_calls()} {os.fsdecode(what())}".encode())
                atexit._run_exitfuncs()
                sys.stdout.flush()
            finally:
                # The C library's own end of the process, where HDF5 closes what is open.
                ctypes.CDLL(None).exit(code)
        os.close(writer)
        n_calls, _, self.what = os.read(reader, 5000).decode().partition(" ")
        os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, int(n_calls or 0), self.said.read_text().splitlines()

    def files(self):
        """Return every file of the folder by name."""
        return {path.name: path.read_bytes() for path in self.shards.glob("*")} if self.shards.is_dir() else {}

    def lay(self, files):
        """Make the folder hold just these files."""
        shutil.rmtree(self.shards, ignore_errors=True)
        for name, data in files.items():
            self.shards.mkdir(exist_ok=True)
            (self.shards / name).write_bytes(data)


def check(found, stage, name, before, wanted):
    """Refuse any outcome but one line and exit code 2, or a finished run; return which of the two."""
    code, _, lines = found
    said = [line for line in lines if " INFO " not in line and not any(word in line for word in HARMLESS)]
    now = stage.files()
    half = [file for file, data in now.items() if file[0] != "." and data not in (before.get(file), wanted.get(file))]
    # The resolved config is laid before the index.
    if half:
        raise SystemExit(f"half-written: {half}; {lines}")
    if "index.json" in now and now not in (before, wanted):
        raise SystemExit(f"an index beside files that are not its own: {sorted(now)}; {lines}")
    if code == 0:
        if now != wanted:
            raise SystemExit(f"exit code 0 but other files: {sorted(now)}; {lines}")
        return "completed"
    if name == "EINTR":
        raise SystemExit(f"EINTR was not retried: {lines}")
    if code != 2 or len(said) != 1 or not said[0].startswith("anyecg shard: "):
        raise SystemExit(f"exit code {code}, wanted 2 and one line: {lines}")
    return "exit code 2, one line"


def every_call(stage, states, wanted, every, counts):
    """Let each call fail in each way, from each state; check what it leaves and that a restart completes."""
    for what, before in states.items():
        stage.lay(before)
        code, n_calls, lines = stage.fork()
        if code or stage.files() != wanted:
            raise SystemExit(f"not disturbed, but {code}: {lines}")
        counts[f"calls {what}"] = n_calls
        with Progress(what, n_calls // every, " calls") as progress:
            for number, k in enumerate(range(0, n_calls, every)):
                names = list(ERRORS) if every == 1 else [list(ERRORS)[number % 3], "EINTR"]
                for name in names:
                    stage.lay(before)
                    found = stage.fork(k=k, error=getattr(errno, name), stays=ERRORS[name])
                    try:
                        counts[f"{name}: {check(found, stage, name, before, wanted)}"] += 1
                    except SystemExit as cause:
                        raise SystemExit(f"{what}, call {k}, {stage.what}: {name}: {cause}") from None
                    if found[0]:
                        again = stage.fork()
                        if again[0] or stage.files() != wanted:
                            raise SystemExit(f"{what}, call {k}, {name}: restart gave {again} {sorted(stage.files())}")
                        counts["restarts to the same bytes"] += 1
                progress.advance(1, str(dict(counts)))


def on_ranks(stage, library, wanted, n_points, n_calls, rng, counts):
    """Let a random call of a random rank of two fail under a real mpirun."""
    for _ in range(n_points):
        name = rng.choice(list(ERRORS))
        stage.lay({})
        command = [find_mpirun(), "-n", "2", sys.executable, "-m", "anyecg.app.cli", "shard", stage.config, *OPTIONS]
        rank, k = rng.randrange(2), rng.randrange(n_calls // 2)
        environment = {
            **os.environ, "LD_PRELOAD": str(library), "ANYECG_FAIL_AT": str(k), "ANYECG_FAIL_RANK": str(rank),
            "ANYECG_FAIL_ERRNO": str(getattr(errno, name)), "ANYECG_FAIL_STAYS": str(int(ERRORS[name])),
        }  # fmt: skip
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300
        )
        # What MPI itself says when one rank ends the job is not ours.
        lines = [line for line in done.stderr.splitlines() if "anyecg" in line or "Traceback" in line]
        try:
            said = check((done.returncode, 0, lines), stage, name, {}, wanted)
        except SystemExit as cause:
            raise SystemExit(f"rank {rank} of 2, call {k}, {name}: {cause}; {done.stderr}") from None
        counts[f"2 ranks, {name}: {said}"] += 1
        if done.returncode:
            again = stage.fork()
            if again[0] or stage.files() != wanted:
                raise SystemExit(f"rank {rank} of 2, call {k}, {name}: restart gave {again}")
            counts["restarts to the same bytes"] += 1


def main():
    """Print the number of each outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each so many-th call, then one error and EINTR")
    parser.add_argument("--on-ranks", type=int, default=20, help="faults under mpirun with two ranks")
    arguments = parser.parse_args()
    if "ANYECG_FAIL_UNDER" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ, "LD_PRELOAD": str(overlay(Path(folder))), "ANYECG_FAIL_UNDER": f"{folder}/run/",
                "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.fail_shards", *sys.argv[1:]]
            raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
    folder = Path(os.environ["ANYECG_FAIL_UNDER"]).parent
    library = os.environ.pop("LD_PRELOAD")
    config = write_small_config(folder, 8)
    done = anyecg("cohort", config)
    if done.returncode:
        raise SystemExit(done.stderr)
    warm()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    stage = Stage(config)
    counts: Counter = Counter()
    states: dict[str, dict] = {}
    # Of a folder cohort each window has a draw, so that the second option gives other files of the same sizes.
    for option in ("shard.before_only=true", "shard.before_only=false"):
        stage.lay({})
        code, n_calls, lines = stage.fork(option)
        if code:
            raise SystemExit(f"{code}: {lines}")
        states[option] = stage.files()
    other, wanted = states.values()
    every_call(stage, {"into an empty folder": {}, "over another run": other}, wanted, arguments.every, counts)
    on_ranks(stage, library, wanted, arguments.on_ranks, n_calls, random.Random(0), counts)
    print("\n".join(f"{what}: {n}" for what, n in counts.items()))


if __name__ == "__main__":
    main()
