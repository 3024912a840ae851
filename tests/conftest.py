"""What several tests share: the command line as a user runs it, and one small finished run."""

import csv
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# As the command line does, before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A run's verdict is about the code, not the dice; 'pytest --hypothesis-profile=default' throws them anew.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

REPOSITORY = Path(__file__).parent.parent
DEMO = REPOSITORY / "app" / "demo"
SHARED = REPOSITORY.parent / "shared" / "data"
SMALL = """\
folder = "run"
seed = 3
[cohort]
kind = "folder"
path = "{records}"
labels = "labels.csv"
val_fraction = 0.2
test_fraction = 0.3
[shard]
pad_short = true
windows_per_shard = 40
[stream]
shift_seconds = 10.0
noise_mv = 0.05
mask_seconds = 1.0
[finetune]
epochs = 2
batch_size = 16
[evaluate]
levels = ["window", "draw", "visit"]
n_replicates = 200
"""

# The files that take longest, in this order, go first: at the end no worker waits for another one's minutes.
SLOWEST = (
    "kernels/test_same_bytes.py", "train/test_resume.py", "slurm/test_cluster.py", "train/test_watch.py",
    "app/test_demo.py", "app/test_simulated_chain.py", "train/test_finetune.py", "train/test_evaluate.py",
    "loaders/test_shards.py", "app/test_cli.py", "loaders/test_simulate.py", "train/test_engine.py",
    "train/test_finetune_heads.py", "app/test_profile.py", "train/test_export.py", "loaders/test_faults.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Sort the tests by their files' place in SLOWEST, all others behind them as they stand."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def anyecg(*arguments, **options):
    """Run the command line in a process of its own; return its CompletedProcess with text output."""
    command = [sys.executable, "-m", "anyecg.app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=560, **options)


def on_ranks(n_ranks, *arguments, **environment):
    """Run the command line on MPI ranks, with more variables in their environment."""
    from anyecg.slurm.launch import find_mpirun

    command = [find_mpirun(), "-n", str(n_ranks), sys.executable, "-m", "anyecg.app.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=560, env=environment, stdin=subprocess.DEVNULL
    )  # fmt: skip


def write_small_config(folder, n_records=60):
    """Lay a config of ``n_records`` real recordings into ``folder``; return its path."""
    with (DEMO / "labels.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows[:n_records]])
    (folder / "config.toml").write_text(SMALL.format(records=DEMO / "records"))
    return folder / "config.toml"


def lacking(what):
    """Skip a test for what this machine lacks; where ``make test-system`` has installed it, that is a failure."""
    if os.environ.get("ANYECG_SYSTEM"):
        pytest.fail(f"{what}; 'make test-system' wants every test of Slurm, MPI and the browser to run")
    pytest.skip(what)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, worker_id):
    """Return the folder of a finished run on 60 real recordings; tests read it and leave it as it is.

    The first worker that asks for it makes it, the others wait and share it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "small"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "run/report.html").exists():
            folder.mkdir()
            done = anyecg("run", write_small_config(folder))
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture(scope="session")
def small_index(small_run):
    """Return the index of the small run's shards."""
    from anyecg.loaders.stream import open_index

    return open_index(small_run / "shards")


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory):
    """Return the folder of four tiny shards and their index, and the signal of all windows; not to be changed."""
    from .loaders.tiny import write_tiny_set

    folder = tmp_path_factory.mktemp("tiny") / "shards"
    return folder, write_tiny_set(folder)


@pytest.fixture(scope="session")
def tiny_index(tiny_set):
    """Return the index of the tiny set."""
    from anyecg.loaders.stream import open_index

    return open_index(tiny_set[0])


@pytest.fixture
def tiny_copy(tiny_set, tmp_path):
    """Return a copy of the tiny set, to be damaged."""
    return shutil.copytree(tiny_set[0], tmp_path / "shards")
