"""R8: whole chains on a real Slurm, each disturbed once, at a random moment of a random stage.

    python -m benchmarks.soak_chains --each 20 --beside 2

brings up Slurm's daemons on this machine (root; see ``make test-system``), runs one chain undisturbed and then, two at
a time, 20 of each kind: ``scontrol requeue``, preemption, the time limit with its signal, a node that goes away with
all that runs on it, ``scancel``. It prints for each kind how many ended unattended, how many have the undisturbed
results table byte for byte, and the most training steps that were done again. Exit code 1 if any chain fails.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from mpi4py import MPI

from anyecg.app.report_text import aligned
from anyecg.loaders.progress import Progress
from anyecg.loaders.simulate import simulate
from tests.slurm import chains, cluster

KINDS = {
    "requeue": chains.requeue, "preempt": chains.preempt, "limit": None, "node": chains.lose_node,
    "scancel": chains.cancel,
}  # fmt: skip
STAGES = ("shard", "finetune", "predict", "evaluate")
LONGEST_SECONDS = 900


class Disturbed(chains.Run):
    """A chain that is disturbed ``delay`` seconds after a stage of it was first seen running."""

    def __init__(self, cluster, config, disturb, stage, delay):
        super().__init__(cluster, config, disturb)
        self.stage, self.delay, self.seen, self.start = stage, delay, None, time.monotonic()

    def is_time(self):
        """Say whether to disturb it now."""
        running = any(job["stage"] == self.stage and job["state"] == "RUNNING" for job in self.status())
        if running and self.seen is None:
            self.seen = time.monotonic()
        return running and time.monotonic() - self.seen >= self.delay


def make(found, folder, data, local, kind, pair, rng):
    """Submit one chain on a pair of nodes of its own; return it."""
    config = chains.write_config(folder, data, local, feature=f"pair{pair}")
    if kind == "limit":
        text = config.read_text().replace("[slurm.finetune]\n", '[slurm.finetune]\ntime = "00:02:00"\n')
        config.write_text(text.replace("signal_seconds = 90", f"signal_seconds = {rng.randint(95, 112)}"))
    run = Disturbed(found, config, KINDS.get(kind), rng.choice(STAGES), rng.uniform(0, 8))
    run.kind, run.pair = kind, pair
    run.submit()
    return run


def table(ended, n_each):
    """Return the counts of each kind as lines for a terminal."""
    lines = [("kind", "chains", "unattended", "same table", "most steps again", "median seconds")]
    for kind in KINDS:
        rows = ended[kind]
        seconds = sorted(row["seconds"] for row in rows)
        lines.append((
            kind, f"{len(rows)} of {n_each}", str(sum(row["ended"] for row in rows)),
            str(sum(row["same"] for row in rows)), str(max((row["again"] for row in rows), default=0)),
            f"{seconds[len(seconds) // 2]:.0f}" if seconds else "–",
        ))  # fmt: skip
    return aligned(lines)


def main(argv=None):
    """Run the soak; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="chains of each kind (20)")
    parser.add_argument("--beside", type=int, default=2, help="chains at one time (2)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if why := cluster.missing():
        print(why, file=sys.stderr)
        return 2
    rng, folder = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="soak-"))
    simulate(folder / "sim", n_visits=24, hours=0.5, seed=3, comm=MPI.COMM_WORLD)
    data, local = folder / "sim", chains.own_kernels(folder)
    left = [kind for _ in range(arguments.each) for kind in KINDS]
    ended, running, free = defaultdict(list), [], list(range(arguments.beside))
    features = [f"pair{pair}" for pair in free for _ in range(2)]
    with cluster.running(folder / "slurm", features) as found, Progress("soak", len(left), " chains") as progress:
        calm = chains.Run(found, chains.write_config(folder / "calm", data, local, feature="pair0"))
        calm.submit()
        if chains.finish([calm], LONGEST_SECONDS):
            print(f"the undisturbed chain has not ended\n{calm.logs()}", file=sys.stderr)
            return 1
        while left or running:
            while left and free:
                number = arguments.each * len(KINDS) - len(left)
                running.append(make(found, folder / f"{number:03d}", data, local, left.pop(0), free.pop(0), rng))
            time.sleep(1)
            found.revive()
            for run in list(running):
                late = time.monotonic() - run.start > LONGEST_SECONDS
                if not (run.look() or late):
                    continue
                running.remove(run)
                free.append(run.pair)
                ended[run.kind].append({
                    "ended": all(job["state"] == "COMPLETED" for job in run.status()), "again": run.repeated()[1],
                    "same": (run.folder / "results.csv").exists() and run.results() == calm.results(),
                    "seconds": time.monotonic() - run.start,
                })  # fmt: skip
                last = ended[run.kind][-1]
                if not (last["ended"] and last["same"] and last["again"] <= chains.SAVE_EVERY):
                    print(f"{run.kind} in {run.stage} after {run.delay:.1f} s: {last}\n{run.logs()}", file=sys.stderr)
                    run.anyecg("submit", run.config, "--stop")
                else:
                    shutil.rmtree(run.config.parent)
                progress.advance(1, f"{run.kind} in {run.stage}")
    print(table(ended, arguments.each))
    rows = [row for kind in ended.values() for row in kind]
    good = all(row["ended"] and row["same"] and row["again"] <= chains.SAVE_EVERY for row in rows)
    if good:
        shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
