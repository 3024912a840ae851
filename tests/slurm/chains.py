"""Chains of jobs on the real Slurm, for tests and soak: their config, what disturbs them, what they left."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anyecg.slurm.chain import Chain
from anyecg.slurm.status import status

SAVE_EVERY = 4
CONFIG = """\
folder = "run"
seed = 5
[cohort]
kind = "mcmed"
path = "{data}"
val_fraction = 0.2
test_fraction = 0.4
[shard]
windows_per_draw = 4
windows_per_shard = 120
[finetune]
epochs = 6
batch_size = 8
learning_rate = 2e-3
log_every = 1
save_every = {save_every}
hang_seconds = 120.0
ranks = 2
[evaluate]
horizons_min = [60]
levels = ["draw"]
n_replicates = 100
[slurm]
constraint = "{feature}"
node_local = "{local}"
signal_seconds = 90
[slurm.cohort]
cpus = 1
memory = "1G"
[slurm.shard]
nodes = {nodes}
tasks = 1
memory = "1G"
[slurm.finetune]
nodes = 2
tasks = 1
cpus = 1
gpus = 0
memory = "1G"
[slurm.predict]
nodes = {nodes}
tasks = 1
cpus = 1
gpus = 0
memory = "1G"
[slurm.evaluate]
nodes = {nodes}
tasks = 1
memory = "1G"
[slurm.report]
memory = "1G"
"""


def write_config(folder, data, local, *, feature, nodes=1, more=""):
    """Lay the config of one chain into a new folder; return its path."""
    folder.mkdir(parents=True)
    text = CONFIG.format(data=data, local=local, feature=feature, nodes=nodes, save_every=SAVE_EVERY)
    (folder / "config.toml").write_text(text + more)
    return folder / "config.toml"


def own_kernels(folder):
    """Return a node-local folder whose compiled kernels are those of this suite, so that no job compiles them again."""
    from numba.core.config import CACHE_DIR

    import anyecg.kernels._jit  # noqa: F401  it decides where they are

    local = folder / "local"
    (local / f"anyecg-{os.getuid()}").mkdir(parents=True, mode=0o700)
    (local / f"anyecg-{os.getuid()}" / "numba").symlink_to(Path(CACHE_DIR).parent)
    return local


class Run:
    """One chain, disturbed once or not, in one of its stages."""

    stage = "finetune"

    def __init__(self, cluster, config, disturb=None, *, at_step=10):
        self.cluster, self.config, self.disturb, self.at_step = cluster, config, disturb, at_step
        self.folder = config.parent / "run"
        self.chain = Chain(self.folder)

    def anyecg(self, *arguments):
        """Run the command line with the cluster's Slurm."""
        command = [sys.executable, "-m", "anyecg.app.cli", *map(str, arguments)]
        return subprocess.run(
            command, env=self.cluster.environment, capture_output=True, text=True, check=False, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def submit(self):
        """Hand the chain to Slurm."""
        done = self.anyecg("submit", self.config)
        assert done.returncode == 0, done.stderr

    def journal(self):
        """Return the lines of the training's journal."""
        path = self.folder / "log/finetune.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def job(self, stage):
        """Return the number of a stage's newest job."""
        return self.chain.read()["stages"][stage]["jobs"][0]

    def is_time(self):
        """Say whether its training is far enough to disturb it."""
        return any(line["event"] == "step" and line["step"] >= self.at_step for line in self.journal())

    def look(self):
        """Disturb the chain when it is time; say whether it has ended."""
        if self.disturb and self.is_time():
            self.disturb(self.cluster, self.job(self.stage))
            self.disturb = None
        found = self.status()
        return all(job["state"] == "COMPLETED" for job in found) or any(job["given_up"] for job in found)

    def status(self):
        """Return what ``anyecg status`` says of each job."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", self.cluster.environment["SLURM_CONF"])
            return status(self.folder)["jobs"]

    def repeated(self):
        """Return (times the training was started, the most steps that a start did again)."""
        starts, most, last = 0, 0, 0
        for line in self.journal():
            if line["event"] == "start":
                starts, most = starts + 1, max(most, last - line["step"])
            elif line["event"] == "step":
                last = line["step"]
        return starts, most

    def results(self):
        """Return the bytes of the results table."""
        return (self.folder / "results.csv").read_bytes()

    def logs(self):
        """Return the jobs' logs, for a message."""
        paths = sorted((self.folder / "slurm").glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in paths)


def finish(runs, seconds):
    """Wait for chains side by side, disturbing each at its time; return those that have not ended."""
    end, left = time.monotonic() + seconds, list(runs)
    while left and time.monotonic() < end:
        left = [run for run in left if not run.look()]
        runs[0].cluster.revive()
        time.sleep(1)
    return left


def requeue(cluster, job):
    """Let the job start anew, as an administrator does."""
    assert cluster.said("scontrol", "requeue", job) == ""


def cancel(cluster, job):
    """Cancel the job."""
    cluster.said("scancel", job)


def preempt(cluster, job):
    """Submit a job that is more urgent and takes the nodes of this one whole."""
    nodes = _field(cluster, job, "NodeList")
    cluster.said(
        "sbatch", "--partition=urgent", f"--nodelist={nodes}", "--nodes=2", "--exclusive", "--mem=0", "--time=1",
        "--output=/dev/null", "--wrap=srun --ntasks-per-node=1 sleep 2",
    )  # fmt: skip


def lose_node(cluster, job):
    """Let the last node of the job go away with all that runs on it; once Slurm has seen that, it comes back."""
    cluster.lose_node(cluster.said("scontrol", "show", "hostnames", _field(cluster, job, "NodeList")).split()[-1])


def _field(cluster, job, name):
    said = cluster.said("scontrol", "show", "job", "--oneliner", job)
    return next(word.partition("=")[2] for word in said.split() if word.startswith(f"{name}="))


def rows(text):
    """Return the rows of a CSV."""
    return list(csv.DictReader(Path(text).read_text().splitlines()))
