"""R1, long form: kill -9 at 200 random moments of sharding on 1, 2 and 4 ranks, then the same command again."""

import argparse
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

from anyecg.loaders.progress import Progress
from anyecg.slurm.launch import find_mpirun
from tests.conftest import anyecg, write_small_config

WAIT_S = 60.0


def processes(mark):
    """Return {process id: environment} of the living processes that carry the mark."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (environment := (entry / "environ").read_bytes()):
                found[int(entry.name)] = environment
    return found


def wait_for(what, condition):
    """Wait until ``condition`` holds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > WAIT_S:
            raise SystemExit(f"{what}: not within {WAIT_S:.0f} s")
        time.sleep(0.002)


class Sharding:
    """One real `mpirun anyecg shard` after the other on one run folder.

    Attributes
    ----------
    seconds : float
        From the lock to the index, of a run that nobody disturbed.
    """

    def __init__(self, config, n_ranks):
        self.config, self.n_ranks, self.seconds = config, n_ranks, 0.0
        self.run = config.parent / "run"
        self.shards = self.run / "shards"

    def start(self):
        """Start it and wait until its first rank has the lock: modules are loaded, the work begins."""
        (self.run / ".lock").unlink(missing_ok=True)
        self.mark = f"ANYECG_MARK={uuid.uuid4().hex}".encode()
        name, value = self.mark.decode().split("=")
        command = [find_mpirun(), "-n", str(self.n_ranks), sys.executable, "-m", "anyecg.app.cli", "shard", self.config]
        self.log = (self.config.parent / "out.txt").open("wb")
        self.mpirun = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, "OMP_NUM_THREADS": "1", name: value},
        )  # fmt: skip
        wait_for("start", lambda: (self.run / ".lock").exists() or self.mpirun.poll() is not None)
        self.began = time.monotonic()

    def finish(self):
        """Wait for the end; return the exit code. Nothing that it started is left."""
        self.mpirun.wait(WAIT_S)
        wait_for("orphans end", lambda: not processes(self.mark))
        self.log.close()
        return self.mpirun.returncode

    def kill(self, rng):
        """Kill a random rank, or mpirun itself; return which."""
        ranks = [process for process, text in processes(self.mark).items() if b"\0PMI_RANK=" in text]
        victim = rng.choice([*ranks, self.mpirun.pid])
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        return "mpirun" if victim == self.mpirun.pid else "a rank"

    def finished(self):
        """Return {name: (inode, time)} of the finished shards."""
        shards = self.shards.glob("shard-*.h5")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}

    def files(self):
        """Return every file of the folder."""
        return {path.name: path.read_bytes() for path in self.shards.iterdir()}


def phase(sharding):
    """Say how far a killed run had come, by what it left."""
    left = " ".join(path.name for path in sharding.shards.glob(".*.tmp")) if sharding.shards.is_dir() else ""
    if (sharding.shards / "index.json").exists():
        return "after the index"
    if "index" in left or any(sharding.shards.glob("index-*")):
        return "writing the index"
    if "shard-" in left:
        return "writing a shard"
    return "between shards" if sharding.finished() else "before the first shard"


def until_whole(sharding, rng, wanted, n_kills, counts):
    """Kill, and restart, and kill again until a run ends by itself or no kills are left; check each step."""
    shutil.rmtree(sharding.shards, ignore_errors=True)
    kept: dict = {}
    for number in range(10_000):
        sharding.start()
        # What is there is not made again: such a run has less to do.
        n_shards = sum(name.endswith(".h5") for name in wanted)
        longest = sharding.seconds * (0.2 + 0.8 * (1 - len(kept) / n_shards))
        moment = sharding.began + rng.uniform(0, longest) if number < n_kills else float("inf")
        while time.monotonic() < moment and sharding.mpirun.poll() is None:
            time.sleep(0.001)
        killed = sharding.mpirun.poll() is None and sharding.kill(rng)
        code = sharding.finish()
        now = sharding.finished()
        if {name: now.get(name) for name in kept} != kept:
            raise SystemExit(f"finished shards were made again: {kept} {now}")
        kept = now
        if code == 0:
            break
        if not killed:
            raise SystemExit(f"exit code {code}: {(sharding.config.parent / 'out.txt').read_text()}")
        counts[f"killed {killed}"] += 1
        counts[phase(sharding)] += 1
        if len(list(sharding.shards.glob(".shard-*.h5.*.tmp"))) > sharding.n_ranks:
            raise SystemExit("more than one unfinished shard a rank")
    if sharding.files() != wanted:
        names = {name for name, _ in sharding.files().items() ^ wanted.items()}
        raise SystemExit(f"other files than of an undisturbed run: {sorted(names)}")
    counts["restarts to the same bytes"] += 1
    return number


def main():
    """Print what was killed when, and that every restart gave the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--records", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rng = random.Random(arguments.seed)
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as folder, Progress("kills", arguments.kills, " kills") as progress:
        config = write_small_config(Path(folder), arguments.records)
        config.write_text(config.read_text().replace("windows_per_shard = 40", "windows_per_shard = 12"))
        done = anyecg("cohort", config)
        if done.returncode:
            raise SystemExit(done.stderr)
        # Compiled kernels are there before any time is taken.
        done = anyecg("shard", config, "shard.ranks=1")
        if done.returncode:
            raise SystemExit(done.stderr)
        shutil.rmtree(config.parent / "run/shards")
        wanted, left = None, arguments.kills
        shardings = [Sharding(config, n_ranks) for n_ranks in arguments.ranks]
        for sharding in shardings:
            sharding.start()
            index = sharding.shards / "index.json"
            wait_for("index", lambda path=index, mpirun=sharding.mpirun: path.exists() or mpirun.poll() is not None)
            sharding.seconds = time.monotonic() - sharding.began
            if sharding.finish():
                raise SystemExit((config.parent / "out.txt").read_text())
            if wanted not in (None, sharding.files()):
                raise SystemExit(f"other files on {sharding.n_ranks} ranks")
            wanted = sharding.files()
            shutil.rmtree(sharding.shards)
        while left > 0:
            for sharding in shardings:
                n_kills = until_whole(sharding, rng, wanted, min(left, 3), counts)
                counts[f"on {sharding.n_ranks} ranks"] += n_kills
                left -= n_kills
                progress.advance(n_kills, str(dict(sorted(counts.items()))))
    n_shards = sum(name.endswith(".h5") for name in wanted)
    print(
        f"{arguments.kills - left} kills among {n_shards} shards: every restart gave the bytes of an undisturbed run,"
    )
    print("finished shards were kept, no temporary, no process left;")
    print(", ".join(f"{what} {n}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
