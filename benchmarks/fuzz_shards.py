"""R12 for shards, long form: 100,000 mutated HDF5 files, each a readable shard or one typed error."""

import argparse
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from anyecg.loaders import apart
from anyecg.loaders.progress import Progress
from tests.loaders.hostile import STRACE, escapes
from tests.loaders.mutants import make_seeds, mutate, outcome


def spent():
    """Return the processor time of this process and of all its children so far; on a busy machine a clock says more."""
    of_ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    fields = [Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").split()[13:15] for child in apart._idle]
    of_waiting = sum(int(ticks) for pair in fields for ticks in pair) / os.sysconf("SC_CLK_TCK")
    return time.process_time() + of_ended.ru_utime + of_ended.ru_stime + of_waiting


def fuzz(home, n_files, first):
    """Try the mutants ``first`` .. ``first + n_files``; return counts, the slowest and the peak in MB."""
    seeds = make_seeds(home)
    folder = home / "set"
    folder.mkdir()
    path = folder / "shard-00000.h5"
    counts: Counter = Counter()
    slowest = 0.0
    (home / "begin").exists()
    with Progress("shards", n_files, " shards") as progress:
        for number in range(first, first + n_files):
            rng = np.random.default_rng([12, number])
            data = mutate(seeds[int(rng.integers(len(seeds)))], rng)
            path.write_bytes(data)
            start = spent()
            try:
                counts[outcome(path)] += 1
            except Exception as cause:
                raise SystemExit(f"mutant {number}: {cause!r}") from cause
            slowest = max(slowest, spent() - start)
            progress.advance(1, f"ended={counts['ended']} slowest={slowest:.2f}")
    (home / "end").exists()
    apart.end_children()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1e3
    return {"counts": counts, "slowest": slowest, "peak_mb": peak}


def main():
    """Print the count of each outcome, the slowest file and the memory; strace sees what is opened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        logging.basicConfig(level=logging.INFO)
        print(json.dumps(fuzz(Path(arguments.inside), arguments.files, arguments.first)))
        return
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        home = Path(folder).resolve()
        tracer = [*STRACE, str(home / "trace")] if shutil.which("strace") else []
        command = [*tracer, sys.executable, "-m", "benchmarks.fuzz_shards", "--inside", str(home)]
        command += ["--files", str(arguments.files), "--first", str(arguments.first)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        escaped = escapes((home / "trace").read_text(), home) if tracer else []
    found = json.loads(done.stdout)
    counts = found["counts"]
    if found["slowest"] > 2 or found["peak_mb"] > 512 or escaped:
        raise SystemExit(f"{found}, outside the root: {escaped[:9]}")
    print(f"{arguments.files} shards: {counts.get('shard', 0)} readable, {counts.get('typed error', 0)} typed errors,")
    print(f"{counts.get('ended', 0)} that HDF5 crashed or looped on, in the child, typed errors too; 0 others;")
    print("nothing opened outside the root, no socket;" if tracer else "opened files not watched: no strace;")
    print(f"slowest {found['slowest']:.2f} s of processor time; peak memory {found['peak_mb']:.0f} MB")


if __name__ == "__main__":
    main()
