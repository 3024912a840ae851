"""What a chain of jobs costs by itself, and what a second node is worth, on a real Slurm of this machine (root).

    python -m benchmarks.slurm_jobs overhead
    python -m benchmarks.slurm_jobs nodes --set FOLDER        # of benchmarks.evaluate_set

overhead: the demo's stages (600 real recordings) by hand, each started by mpirun, and as a chain of jobs; CPU seconds
of all our processes, ``anyecg submit``, batch shells and srun included. Also the seconds of ``anyecg submit`` alone.

nodes: a two-node job beside two one-node jobs at one time: shard on simulated visits, twice as many for the two nodes;
evaluate, the whole table in each. Before each round the machine's second core is tried by a loop of plain arithmetic.
"""

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path

from anyecg.app.config import load_config
from anyecg.slurm.launch import find_mpirun
from benchmarks.evaluate_ranks import CONTROL, together
from benchmarks.kernels import processor
from tests.slurm import chains, cluster

SHIM = """\
#!{python}
import fcntl, resource, subprocess, sys
code = subprocess.call(["{real}", *sys.argv[1:]], close_fds=False)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open("{out}", "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(f"{{sys.argv[1]}} {{used.ru_utime + used.ru_stime}}\\n")
sys.exit(code if code >= 0 else 128 - code)
"""
SITE = """\
[slurm]
node_local = "{local}"
setup = ["export PATH={shim}:$PATH", "trap 'times >> {times}' EXIT"]
"""
RANKS = {"cohort": 1, "shard": 2, "finetune": 2, "predict": 2, "evaluate": 2, "report": 1}
JOBS = "".join(
    f'[slurm.{name}]\nnodes = {n}\ntasks = 1\ncpus = 1\ngpus = 0\nmemory = "2G"\n' for name, n in RANKS.items()
)
SHARD = """\
folder = "run"
[cohort]
kind = "mcmed"
path = "{data}"
[shard]
lead = "II"
windows_per_shard = 10000
[slurm]
node_local = "{local}"
setup = ["date +%s.%N >> {times}", "trap 'date +%s.%N >> {times}' EXIT"]
[slurm.shard]
nodes = {nodes}
tasks = 1
memory = "4G"
"""
WRAPPED = """\
#!/usr/bin/env bash
#SBATCH --nodes={nodes} --ntasks-per-node=1 --mem=8G --output={folder}/log
set -e
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
date +%s.%N >> {folder}/times
srun --mpi=pmi2 {python} -m benchmarks.evaluate_ranks --set {set} --job {folder}
date +%s.%N >> {folder}/times
"""


def cpu_of_children(work):
    """Return the CPU seconds of the processes that ``work`` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def used(path):
    """Return the CPU seconds that the shim noted, and forget them."""
    found = sum(float(line.split()[1]) for line in path.read_text().splitlines())
    path.unlink()
    return found


def shell_seconds(path):
    """Return the CPU seconds that bash's ``times`` noted for the shells and for srun."""
    found = re.findall(r"(\d+)m([\d.]+)s", path.read_text())
    path.unlink()
    return sum(60 * int(minutes) + float(seconds) for minutes, seconds in found)


def overhead(found, folder, local, rounds):
    """Print the CPU seconds by hand and as a chain, their ratio, and the seconds of submit."""
    shim, out, times = folder / "shim", folder / "used", folder / "times"
    shim.mkdir()
    real = Path(sys.executable).with_name("anyecg")
    (shim / "anyecg").write_text(SHIM.format(python=sys.executable, real=real, out=out))
    (shim / "anyecg").chmod(0o755)
    with as_file(files("anyecg.app") / "demo") as demo:
        text = (demo / "config.toml").read_text()
        text = re.sub(r'(path|labels) = "(\w)', rf'\1 = "{demo}/\2', text)
    text += SITE.format(local=local, shim=shim, times=times) + JOBS
    # The shells of the jobs have one thread a task; the ranks by hand shall have no more.
    threads = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    ratios, submits = [], []
    for number in range(rounds):
        hand, chain = folder / f"hand{number}", folder / f"chain{number}"
        for where in (hand, chain):
            where.mkdir()
            (where / "config.toml").write_text(f'folder = "run"\n{text}')
        for name, n_ranks in RANKS.items():
            command = [find_mpirun(), "-n", str(n_ranks), shim / "anyecg"] if n_ranks > 1 else [shim / "anyecg"]
            subprocess.run(
                [*command, name, hand / "config.toml"], env=threads, check=True, capture_output=True,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        by_hand = used(out)
        run = chains.Run(found, chain / "config.toml")
        start = time.perf_counter()
        submits.append((cpu_of_children(run.submit), time.perf_counter() - start))
        while not all(job["state"] == "COMPLETED" for job in run.status()):
            time.sleep(2)
        if run.results() != (hand / "run/results.csv").read_bytes():
            raise SystemExit("the chain's table is another one")
        shells = shell_seconds(times)
        by_chain = used(out) + shells + submits[-1][0]
        ratios.append(by_chain / by_hand)
        print(
            f"by hand {by_hand:.1f} CPU s, chain {by_chain:.1f} CPU s (shells and srun {shells:.2f}, submit "
            f"{submits[-1][0]:.2f}): {ratios[-1]:.3f}", flush=True,
        )  # fmt: skip
    cpu, wall = (statistics.median(each[n] for each in submits) for n in (0, 1))
    print(f"medians: chain / by hand {statistics.median(ratios):.3f}; submit {cpu:.2f} CPU s, {wall:.2f} s")


def second_core():
    """Return what the second core is worth: 2 where it is free."""
    control = [sys.executable, "-c", CONTROL]
    (alone, _), (both, _) = together(control), together(control, control)
    return 2 * alone / both


def seconds_of(found, scripts):
    """Submit scripts at one time, wait for them, and return the seconds each took by its own file of times."""
    jobs = [found.said("sbatch", "--parsable", str(script)).strip() for script, _ in scripts]
    while True:
        states = found.said("squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-o", "%T").split()
        if set(states) == {"COMPLETED"}:
            break
        if set(states) - {"COMPLETED", "RUNNING", "PENDING", "COMPLETING"}:
            raise SystemExit(f"jobs {jobs} ended as {states}")
        time.sleep(0.5)
    spans = [[float(line) for line in times.read_text().split()] for _, times in scripts]
    for _, times in scripts:
        times.unlink()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def shard_run(folder, data, local, nodes):
    """Make cohort and scripts of a run; return its shard script, its file of times, and its windows to come."""
    from anyecg.slurm.chain import plan

    folder.mkdir()
    path = folder / "config.toml"
    path.write_text(SHARD.format(data=data, local=local, times=folder / "times", nodes=nodes))
    subprocess.run(
        [sys.executable, "-m", "anyecg.app.cli", "cohort", path], check=True, capture_output=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    config = load_config(path)
    (script,) = (link.script for link in plan(config, folder) if link.name == "shard")
    (folder / "shard.sbatch").write_text(script)
    return folder / "shard.sbatch", folder / "times"


def shard_nodes(found, folder, local, visits):
    """Return the rates of a two-node job and of two one-node jobs, in windows a second."""
    runs = {}
    for name, nodes, share, seed in (("a", 1, 1, 1), ("b", 1, 1, 2), ("both", 2, 2, 3)):
        data = folder / f"sim-{name}"
        if not data.exists():
            subprocess.run(
                [sys.executable, "-m", "anyecg.app.cli", "simulate", "--out", data, "--visits", str(visits * share),
                 "--hours", "2", "--seed", str(seed)], check=True, capture_output=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        shutil.rmtree(folder / name, ignore_errors=True)
        runs[name] = shard_run(folder / name, data, local, nodes)

    def windows(name):
        from anyecg.loaders.index import open_index

        return open_index(folder / name / "run/shards").head["counts"]["windows"]

    copies = seconds_of(found, [runs["a"], runs["b"]])
    two = seconds_of(found, [runs["both"]])
    return windows("both") / two, (windows("a") + windows("b")) / copies


def evaluate_nodes(found, folder, evaluation):
    """Return the rates of a two-node job and of two one-node jobs, each the whole table, in tables an hour."""
    scripts = {}
    for name, nodes in (("ea", 1), ("eb", 1), ("both", 2)):
        where = folder / f"evaluate-{name}"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        (where / "job").write_text(WRAPPED.format(
            nodes=nodes, folder=where, python=sys.executable, set=evaluation
        ))  # fmt: skip
        scripts[name] = where / "job", where / "times"
    copies = seconds_of(found, [scripts["ea"], scripts["eb"]])
    return 3600 / seconds_of(found, [scripts["both"]]), 2 * 3600 / copies


def main(argv=None):
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "nodes"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--visits", type=int, default=300, help="nodes: visits of 2 h of each half (300); 0: no shard")
    parser.add_argument("--set", type=Path, help="nodes: folder of benchmarks.evaluate_set; without it shard alone")
    arguments = parser.parse_args(argv)
    if why := cluster.missing():
        raise SystemExit(why)
    print(processor())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        local = chains.own_kernels(folder)
        with cluster.running(folder / "slurm", ["calm", "calm"]) as found:
            if arguments.what == "overhead":
                overhead(found, folder, local, arguments.rounds)
                return
            ratios = {"shard": [], "evaluate": []}
            for _ in range(arguments.rounds):
                free = second_core()
                rates = {"shard": shard_nodes(found, folder, local, arguments.visits)} if arguments.visits else {}
                if arguments.set:
                    rates["evaluate"] = evaluate_nodes(found, folder, arguments.set.resolve())
                for what, (two, copies) in rates.items():
                    ratios[what].append(two / copies)
                    print(f"{what}: two nodes {two:.1f}/s, two copies {copies:.1f}/s, {two / copies:.3f}; "
                          f"second core {free:.2f}", flush=True)  # fmt: skip
            for what, of in ratios.items():
                if of:
                    print(f"median {what}: two nodes reach {statistics.median(of):.2f} of two copies")


if __name__ == "__main__":
    main()
