"""Time the whole evaluation at the paper's size on MPI ranks of one machine, beside independent copies.

    python -m benchmarks.evaluate_set --out FOLDER
    python -m benchmarks.evaluate_ranks --set FOLDER
    python -m benchmarks.evaluate_ranks --set FOLDER --full      # three horizons, three levels, two ranks

In each round: a loop of plain arithmetic alone and twice at once (what the second core is worth: under 1.8 the
round is void); the evaluation of one horizon at the window level on one rank, twice at once on one rank each, and on
two ranks. Each time is that of the whole process, from its start to its end. The efficiency of two ranks is their
rate over that of the two copies. From the parts that ranks do not share follows what 128 ranks would take.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from anyecg.loaders.ranks import world
from anyecg.loaders.stream import open_index
from anyecg.slurm.launch import find_mpirun
from anyecg.train.evaluate import Evaluation, evaluate, tasks_of
from anyecg.train.evaluate_config import EvaluateConfig
from anyecg.train.scores import read_scores
from anyecg.train.shared import Node
from anyecg.train.work import pieces_of, share_of
from benchmarks.evaluate_set import cohort_of
from benchmarks.kernels import processor

CONTROL = "total = 0\nfor number in range(60_000_000):\n    total += number & 3\n"
ONE = {"horizons_min": [60], "levels": ["window"]}
FULL = {"horizons_min": [60, 30, 15], "levels": ["window", "draw", "visit"]}


def config_of(is_full):
    """Return what is evaluated."""
    return EvaluateConfig(**(FULL if is_full else ONE), subgroups=[], baselines=False)


def job(folder, out, is_full):
    """Be one rank."""
    comm, start = world(), time.perf_counter()
    index = open_index(folder / "shards")
    with Node(comm) as node:
        scores = read_scores(folder / "scores.h5", index, node=node)
        read = time.perf_counter() - start
        evaluate(out, index, scores, config_of(is_full), cohort_of(index), seed=1, comm=comm, stage_hash="0")
    if comm.rank == 0:
        print(f"read {read:.2f}", flush=True)


def together(*commands):
    """Return the seconds until all of some commands have ended, and what the first one said."""
    start = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"a job failed: {said}")
    return time.perf_counter() - start, said[0]


def command_of(folder, n_ranks, out, *, is_full=False):
    """Return the command of a job."""
    options = ["--set", str(folder), "--job", str(out), *(["--full"] if is_full else [])]
    return [find_mpirun(), "-n", str(n_ranks), sys.executable, "-m", "benchmarks.evaluate_ranks", *options]


def a_round(folder, room):
    """Return the seconds of each part of a round."""
    control = [sys.executable, "-c", CONTROL]
    outs = [Path(tempfile.mkdtemp(dir=room)) for _ in range(4)]
    (alone, _), (both, _) = together(control), together(control, control)
    one, said = together(command_of(folder, 1, outs[0]))
    copies, _ = together(*(command_of(folder, 1, out) for out in outs[1:3]))
    two, _ = together(command_of(folder, 2, outs[3]))
    if (outs[0] / "results.csv").read_bytes() != (outs[3] / "results.csv").read_bytes():
        raise SystemExit("tables of one and two ranks differ")
    return {"second core": 2 * alone / both, "one": one, "copies": copies, "two": two, "read": float(said.split()[1])}


def forecast(folder, one, read, start_s):
    """Print what more ranks would take: what is shared by cost, and what every job does once."""
    index = open_index(folder / "shards")
    evaluation = Evaluation(index, read_scores(folder / "scores.h5", index), config_of(True), cohort_of(index), seed=1)
    pieces = pieces_of(tasks_of(evaluation), 1000)
    cost = sum(piece[3] for piece in pieces)
    of_one = sum(piece[3] for piece in pieces_of(tasks_of(Evaluation(
        index, evaluation.scores, config_of(False), cohort_of(index), seed=1)), 1000))  # fmt: skip
    rate = of_one / (one - read - start_s)
    print(f"\nthe full table, forecast: start {start_s:.1f} s + reading {read:.1f} s + the slowest rank's pieces")
    for n_ranks in (1, 2, 4, 8, 16, 32, 64, 128):
        slowest = max(sum(piece[3] for piece in share_of(pieces, rank, n_ranks)) for rank in range(n_ranks))
        seconds = start_s + read + slowest / rate
        ideal = (start_s + read + cost / rate) / n_ranks
        print(
            f"{n_ranks:4d} ranks {seconds:8.1f} s, speed-up {(start_s + read + cost / rate) / seconds:6.1f}; "
            f"slowest rank {slowest * n_ranks / cost:.2f} of the mean; efficiency {ideal / seconds:.2f}"
        )


def main():
    """Print the rounds, their medians, and the forecast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, required=True, help="folder of benchmarks.evaluate_set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="time the full table on two ranks")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.set, arguments.job, arguments.full)
        return
    print(processor())
    with tempfile.TemporaryDirectory() as room:
        if arguments.full:
            seconds, _ = together(command_of(arguments.set, 2, Path(room), is_full=True))
            print(f"full table (3 horizons, 3 levels, all metrics, 1,000 replicates) on two ranks: {seconds:.0f} s")
            return
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append(a_round(arguments.set, room))
            print(", ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items()), flush=True)
    of = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    efficiency = statistics.median(each["copies"] / each["two"] / 2 for each in rounds)
    print(f"medians: second core {of['second core']:.2f}; two ranks reach {efficiency:.2f} of two copies")
    start_s, _ = together([sys.executable, "-c", "import anyecg.train.evaluate, anyecg.train.predict"])
    forecast(arguments.set, of["one"], of["read"], start_s)


if __name__ == "__main__":
    main()
