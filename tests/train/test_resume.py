"""Stopped, killed and resumed trainings, short forms; the long forms are in benchmarks/."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from anyecg.train.checkpoint import Checkpoint

from ..conftest import REPOSITORY, anyecg, write_small_config
from . import job

REQUEUE = 75


def benchmark(*arguments):
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr


def test_resumed_losses_are_bit_equal_and_near_on_other_numbers_of_ranks():
    """With average, plateau, validation within epochs, accumulation and ZeRO 1; then on 1, 2, 1, 4 ranks."""
    benchmark("benchmarks.resume_steps", "--steps", "24", "--stride", "11", "--other-ranks", "4", "--zero", "1")


def test_a_training_that_is_killed_while_it_saves_ends_as_undisturbed():
    benchmark("benchmarks.kill_checkpoints", "--kills", "3")


def test_under_zero_a_killed_and_resumed_training_is_bit_equal(tiny_set, tmp_path):
    options = {"finetune": job.SHORT | {"zero": 2, "epochs": 1}}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert job.train(tiny_set[0], whole, options, 2)[0] == 0
    code, said = job.train(tiny_set[0], resumed, options | {"fault": [1, "batch", 5, "kill"]}, 2)
    assert code not in (0, REQUEUE), said
    assert step_of(resumed) in (2, 4)
    assert job.train(tiny_set[0], resumed, options, 2)[0] == 0
    assert job.losses(resumed) == job.losses(whole)
    assert job.weights(resumed) == job.weights(whole)


def step_of(folder):
    found = Checkpoint(folder / "checkpoint/hash").load()
    return found and found[1]["step"]


def test_a_training_stops_early_when_nothing_gets_better(tiny_set, tmp_path):
    options = {"finetune": job.SHORT | {"epochs": 50, "patience": 2, "learning_rate": 0.1, "validate_every": 1}}
    code, said = job.train(tiny_set[0], tmp_path / "a", options)
    assert code == 0, said
    rows = [float(row["val_loss"]) for row in job.curve(tmp_path / "a")]
    assert len(rows) < 300
    best = min(range(len(rows)), key=rows.__getitem__)
    assert len(rows) == best + 3
    card = json.loads((tmp_path / "a/model/card.json").read_text())
    assert card["step"] == best + 1


@pytest.fixture(scope="module")
def shards_only(small_run, tmp_path_factory):
    """Return a function that lays the small run's cohort and shards into a fresh run folder."""

    def make():
        folder = tmp_path_factory.mktemp("resume")
        for name in ("cohort", "shards"):
            shutil.copytree(small_run / name, folder / "run" / name)
        config = write_small_config(folder)
        assert anyecg("cohort", config).returncode == 0
        return config, folder / "run"

    return make


def command_line(config):
    """Start the command line as a user does; return its Popen."""
    command = [sys.executable, "-m", "anyecg.app.cli", "finetune", str(config), "finetune.log_every=1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(run, process, step):
    """Wait until a training has logged a step."""
    deadline = time.monotonic() + 240
    while max(job.losses(run), default=0) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_signal_to_the_command_or_to_one_rank_saves_and_asks_for_a_requeue(small_run, shards_only):
    config, run = shards_only()
    for victim, number, step in (("command", signal.SIGTERM, 1), ("rank", signal.SIGUSR1, 4)):
        with command_line(config) as process:
            wait_for_step(run, process, step)
            mpirun = psutil.Process(process.pid).children()[0]
            ranks = [child for child in mpirun.children(recursive=True) if "anyecg.app.cli" in child.cmdline()]
            os.kill(process.pid if victim == "command" else ranks[-1].pid, number)
            _, said = process.communicate(timeout=240)
        assert process.returncode == REQUEUE, said
        assert f"asked to stop by signal {int(number)}; saved at step" in said
        assert not any(rank.is_running() and rank.status() != "zombie" for rank in ranks)
        (folder,) = run.glob("checkpoint/*")
        assert Checkpoint(folder).load()[1]["step"] == max(job.losses(run))
        assert not (run / "model/card.json").exists()
    done = anyecg("finetune", config, "finetune.log_every=1")
    assert done.returncode == 0, done.stderr
    assert job.weights(run) == job.weights(small_run)
    assert job.curve(run) == job.curve(small_run)


def test_a_signal_to_mpirun_saves_and_a_kill_soon_after_loses_at_most_one_save(tiny_set, tmp_path):
    options = {"finetune": job.SHORT | {"save_every": 1, "epochs": 30}}
    with job.start(tiny_set[0], tmp_path, options, 2) as process:
        wait_for_step(tmp_path, process, 3)
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=240)
    assert process.returncode == REQUEUE, said
    assert step_of(tmp_path) == max(job.losses(tmp_path))
    with job.start(tiny_set[0], tmp_path, options, 2) as process:
        wait_for_step(tmp_path, process, step_of(tmp_path) + 2)
        process.terminate()
        time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)
    last = max(job.losses(tmp_path))
    assert last - 1 <= step_of(tmp_path) <= last
