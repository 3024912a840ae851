"""Trainings on a tiny set in processes of their own, which can be stopped, killed, or made to misbehave."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from anyecg.slurm.launch import find_mpirun

REPOSITORY = Path(__file__).parent.parent.parent
# Of one training: short, with all that a state can hold.
SHORT = {
    "epochs": 3, "batch_size": 64, "learning_rate": 0.003, "log_every": 1, "save_every": 2, "hang_seconds": 0,
}  # fmt: skip
EVERYTHING = SHORT | {
    "weight_average": 0.9, "schedule": "plateau", "plateau_patience": 0, "validate_every": 3, "accumulation": 2
}  # fmt: skip


def run_here(shards, folder, options):
    """Train as one rank of a job, or alone; return the exit code.

    ``options`` are "finetune" and "stream", keys of the config; "steps", after which it asks itself to stop;
    "fault", (rank, point, call, what): the rank does it in its so many-th call of a point of the training.
    """
    import logging

    from anyecg.app.run import as_rank
    from anyecg.loaders.ranks import world
    from anyecg.loaders.stream import open_index
    from anyecg.loaders.stream_config import StreamConfig
    from anyecg.train.finetune import finetune
    from anyecg.train.finetune_config import FinetuneConfig

    comm = world()
    logging.basicConfig(level=logging.ERROR)
    _lay_faults(comm.rank, options)
    return as_rank("finetune", comm, lambda: finetune(
        folder / "checkpoint", folder / "model", open_index(shards), FinetuneConfig(**options["finetune"]),
        StreamConfig(**options.get("stream", {"loader": "torch", "workers": 0})), raw={}, seed=5, comm=comm,
        stage_hash="hash", log_folder=folder / "log",
    ))  # fmt: skip


def _lay_faults(rank, options):
    from anyecg.train.batches import PairBatches
    from anyecg.train.checkpoint import Checkpoint
    from anyecg.train.engine import Engine
    from anyecg.train.validation import Validation

    points = {
        "batch": (PairBatches, "next"), "step": (Engine, "train_step"), "validation": (Validation, "measure"),
        "saving": (Checkpoint, "save"), "state": (Engine, "state"),
    }  # fmt: skip
    if "steps" in options:
        _before(*points["batch"], options["steps"], lambda: os.kill(os.getpid(), signal.SIGUSR1))
    faulty, point, call, what = options.get("fault", (None, None, None, None))
    if rank == faulty:
        _before(*points[point], call, {"raise": _raise, "hang": _hang, "stop": _stop, "kill": _kill}[what])


def _before(owner, name, call, work):
    """Do some work before the so many-th call of a method, counted from 1."""
    method, n_calls = getattr(owner, name), 0

    def counted(*arguments, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            work()
        return method(*arguments, **options)

    setattr(owner, name, counted)


def _raise():
    raise RuntimeError("a fault of this rank")


def _hang():
    time.sleep(3600)


def _stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def command(shards, folder, options, n_ranks):
    """Return the command line of a training on MPI ranks."""
    mine = [sys.executable, "-m", "tests.train.job", str(shards), str(folder), json.dumps(options)]
    return [find_mpirun(), "-n", str(n_ranks), *mine]


def start(shards, folder, options, n_ranks=1, **environment):
    """Start a training on MPI ranks; return the Popen of mpirun, what all say on its standard output."""
    return subprocess.Popen(
        command(shards, folder, options, n_ranks), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment},
    )  # fmt: skip


def train(shards, folder, options, n_ranks=1, **environment):
    """Run a training on MPI ranks; return (exit code, what was said)."""
    with start(shards, folder, options, n_ranks, **environment) as process:
        said, _ = process.communicate(timeout=300)
    return process.returncode, said


class Warm:
    """Trainings of one rank, each forked from this process, which has loaded the modules and runs no thread."""

    def __init__(self, shards):
        import deepspeed  # noqa: F401
        import tensorboardX  # noqa: F401
        import torch

        from anyecg.app import run  # noqa: F401
        from anyecg.loaders.stream import n_units, open_index
        from anyecg.loaders.stream_config import StreamConfig
        from anyecg.train import finetune  # noqa: F401

        # Loads torch's compiler and compiled kernels.
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
        n_units(open_index(shards), epoch=0, choice=StreamConfig(), seed=0, split="train", horizon_min=60)
        self.shards = shards

    def start(self, folder, options, prepare=lambda: None):
        """Fork a training, which calls ``prepare`` first; return its process id."""
        child = os.fork()
        if child:
            return child
        code = 99
        try:
            said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            prepare()
            code = run_here(self.shards, folder, options)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def train(self, folder, options, prepare=lambda: None):
        """Run a training; return its exit code, negative if a signal ended it."""
        return wait(self.start(folder, options, prepare))


def wait(child):
    """Wait for a forked training; return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def losses(folder):
    """Return {step: set of the losses that the journal holds for it}, as they stand there."""
    found: dict = {}
    for line in journal(folder):
        if line["event"] == "step":
            found.setdefault(line["step"], set()).add(line["loss"])
    return found


def journal(folder):
    """Return the lines of the journal."""
    path = folder / "log/finetune.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(folder):
    """Return the rows of the curve, as text, without what depends on the clock."""
    with (folder / "model/curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: text for key, text in row.items() if key not in ("windows_per_s", "waiting_share")} for row in rows]


def weights(folder):
    """Return the bytes of the published weights."""
    return (folder / "model/model.safetensors").read_bytes()


if __name__ == "__main__":
    sys.exit(run_here(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
