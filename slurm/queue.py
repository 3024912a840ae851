"""What Slurm is told and asked: one function a command, its refusals as one line."""

import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from typing import NamedTuple

from anyecg.loaders.errors import AnyECGError, SlurmError

# Longer than slurmctld's own patience with a busy node.
SECONDS = 120
FOR_THE_USER = 2
ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
          "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "REQUEUE_FED")  # fmt: skip
_COLUMNS = {
    "JobArrayID": 40,
    "State": 24,
    "Reason": 64,
    "RestartCnt": 12,
    "exit_code": 12,
    "TimeUsed": 24,
    "NodeList": 200,
}


class Job(NamedTuple):
    """What Slurm says of a job: its state in words, why it waits, how often it was started again, how it ended."""

    state: str
    reason: str
    restarts: int
    exit_code: int
    elapsed: str
    nodes: str

    @property
    def is_active(self):
        """Say whether it waits or runs."""
        return self.state in ACTIVE

    @property
    def may_end_well(self):
        """Say whether it has, or still may."""
        return self.is_active or self.state == "COMPLETED"

    @property
    def needs_its_user(self):
        """Say whether it has told its user what to mend; started again, it would only say so again."""
        return self.state == "FAILED" and self.exit_code == FOR_THE_USER


def _environment():
    """Return the environment without the job that this process may run in: a new job shall not take its sizes."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def call(*command, text="", quiet=False):
    """Run a command of Slurm, with a text on its standard input, and return what it prints.

    A ``quiet`` one that ends with an error and says nothing has found nothing to do.

    Raises
    ------
    SlurmError
        It is not there, refuses, or gives no answer.
    """
    if shutil.which(command[0]) is None:
        raise SlurmError(
            f"{command[0]} is not on this machine; run this where jobs are submitted, as on a login node of the cluster"
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=_environment(), input=text
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} gave no answer in {SECONDS} s; ask again later") from None
    if done.returncode and (done.stderr or not quiet):
        said = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        raise SlurmError(f"{command[0]} refuses: {'; '.join(line for line in said if line) or 'no reason given'}")
    return done.stdout


def check(script):
    """Ask whether the text of a script could be submitted; nothing is."""
    call("sbatch", "--test-only", text=script)


def submit(script, *options):
    """Submit a script and return the number of its job."""
    found = call("sbatch", "--parsable", *options, str(script))
    return int(found.strip().splitlines()[-1].partition(";")[0])


@contextmanager
def all_or_none():
    """Give a ``submit`` whose jobs are all cancelled if anything fails on the way."""
    jobs: list[int] = []

    def submit_one(script, *options):
        jobs.append(submit(script, *options))
        return jobs[-1]

    try:
        yield submit_one
    except (AnyECGError, OSError):
        cancel(*jobs)
        raise


def cancel(*jobs, waiting=False):
    """Cancel jobs, those that have ended among them; only those that wait, by choice."""
    if jobs:
        call("scancel", "--quiet", *(["--state=PENDING"] if waiting else []), *map(str, jobs), quiet=True)


def depend(job, dependency):
    """Let a waiting job depend on others, or on none."""
    call("scontrol", "update", f"JobId={job}", f"Dependency={dependency}")


def states(jobs):
    """Return {number or "number_task": Job} of those of the jobs that Slurm still knows, tasks of arrays one by one."""
    fields = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    wanted = {int(job) for job in jobs}
    found = {}
    for line in call("squeue", "--me", "--noheader", "--states=all", "--array", f"--Format={fields}").splitlines():
        job, state, reason, restarts, code, elapsed, nodes = _cut(line)
        if int(job.partition("_")[0]) in wanted:
            found[job] = Job(state, reason, int(restarts), int(code) >> 8 or int(code) & 127, elapsed, nodes)
    lost = [job for job in sorted(wanted) if not any(int(name.partition("_")[0]) == job for name in found)]
    return found | (_accounted(lost) if lost else {})


def _cut(line):
    cells, place = [], 0
    for width in _COLUMNS.values():
        cells.append(line[place : place + width].strip())
        place += width
    return cells


def _accounted(jobs):
    """Return the jobs that only the accounting still knows; nothing at a site without it."""
    try:
        said = call(
            "sacct", "--noheader", "--parsable2", "--allocations", "--array", f"--jobs={','.join(map(str, jobs))}",
            "--format=JobID,State,Reason,ExitCode,Elapsed,NodeList",
        )  # fmt: skip
    except SlurmError:
        return {}
    found = {}
    for line in said.splitlines():
        job, state, reason, code, elapsed, nodes = line.split("|")
        if re.fullmatch(r"[0-9]+(_[0-9]+)?", job):
            exited, _, signal = code.partition(":")
            found[job] = Job(
                state.split()[0], reason, 0, int(exited) or int(signal or 0), elapsed, nodes
            )  # fmt: skip
    return found
