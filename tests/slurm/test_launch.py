import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from anyecg.app.cli import main
from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.ranks import by_srun, under_launcher, world
from anyecg.slurm.launch import find_mpirun, rank_environment, ranks_wanted, start_ranks

from ..conftest import on_ranks, write_small_config


def test_mpirun_is_the_one_pip_installed():
    assert find_mpirun()


def test_a_command_runs_on_ranks_and_its_exit_code_comes_back(tmp_path, capfd):
    config = write_small_config(tmp_path)
    assert start_ranks(["shard", str(config)], 2) == 2
    # Every rank fails for the same reason; one line says it.
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("anyecg")]
    assert len(lines) == 1
    assert "holds no cohort; run 'anyecg cohort' with the same config first" in lines[0]


def test_cores_are_shared_out(monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    n_cores = len(os.sched_getaffinity(0))
    assert int(rank_environment(n_cores)["OMP_NUM_THREADS"]) == 1
    assert int(rank_environment(1)["OMP_NUM_THREADS"]) == n_cores
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert rank_environment(1)["OMP_NUM_THREADS"] == "7"


KEPT = (".json", ".h5", ".npy", ".csv", ".safetensors", ".toml")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "RANK": "0"}


@pytest.fixture
def torchrun(monkeypatch):
    """Lay the variables of torchrun with two processes on one machine."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_torchrun_gives_the_number_of_ranks_and_its_variables_stay_behind(torchrun):
    assert ranks_wanted(8) == 2
    assert not {name for name in rank_environment(2) if name in TORCHRUN}
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert ranks_wanted(8) == 8
    assert rank_environment(2)["RANK"] == "0"


def test_torchrun_on_several_machines_is_refused(torchrun, capsys):
    torchrun.setenv("WORLD_SIZE", "4")
    assert main(["shard", "none.toml"]) == 2
    said = capsys.readouterr().err
    assert "torchrun started 4 processes, 2 of them on this machine" in said
    assert "start the stage with srun --mpi=pmi2" in said


def test_processes_of_torchrun_beside_the_first_have_nothing_to_do(torchrun, tmp_path):
    torchrun.setenv("LOCAL_RANK", "1")
    assert main(["shard", str(tmp_path / "none.toml")]) == 0
    torchrun.setenv("LOCAL_RANK", "0")
    assert main(["shard", str(tmp_path / "none.toml")]) == 2


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (False, False)),
        # A batch script, an interactive shell of salloc, a task of srun, mpirun within a Slurm job.
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (False, False)),
        ({"SLURM_STEP_ID": "4294967291"}, (False, False)),
        ({"SLURM_STEP_ID": "4294967290"}, (False, False)),
        ({"SLURM_STEP_ID": "0", "PMI_RANK": "1"}, (True, True)),
        ({"SLURM_STEP_ID": "0", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2"}, (True, False)),
        ({"PMI_RANK": "1", "MPI_LOCALNRANKS": "2"}, (True, False)),
    ],
)
def test_who_started_a_process_is_told_from_its_environment(monkeypatch, variables, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PMI", "MPI_", "OMPI_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (under_launcher(), by_srun()) == expected


def test_a_stage_that_is_done_is_kept_on_ranks_too(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.suffix in KEPT}
    for stage in ("shard", "predict"):
        done = on_ranks(2, stage, run / "config.toml", f"folder={run}")
        assert (done.returncode, done.stdout) == (0, f"{stage}: kept, nothing it depends on has changed\n"), done.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_stage_before_it_that_is_not_done_is_one_line_on_ranks_too(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "model/curve.csv").unlink()
    done = on_ranks(2, "predict", run / "config.toml", f"folder={run}")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("anyecg")] == [
        "anyecg predict: finetune is not done for this config, or its output is gone; run 'anyecg run' with the same "
        "config, or 'anyecg finetune' first"
    ]


def test_run_on_ranks_is_refused_in_one_line(small_run):
    done = on_ranks(2, "run", small_run / "config.toml")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("anyecg")] == [
        "anyecg run: run starts ranks of its own; start it once, or its stages with srun"
    ]


def test_shards_stop_by_a_signal_and_go_on(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("shards"))
    command = [sys.executable, "-m", "anyecg.app.cli", "shard", str(run / "config.toml"), f"folder={run}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list((run / "shards").glob("shard-*.h5")):
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=100)
    # The signal may come after the last shard was begun.
    assert process.returncode in (0, 75), said
    kept = {path: path.stat().st_mtime_ns for path in (run / "shards").glob("shard-*.h5")}
    if process.returncode == 75:
        assert "asked to stop by signal 10; finished shards are kept; run the same command again to go on" in said
        assert not (run / "shards/index.json").exists()
        assert not list((run / "shards").glob(".*.tmp"))
    done = on_ranks(3, "shard", run / "config.toml", f"folder={run}")
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert (run / "shards/index.json").read_bytes() == (small_run / "shards/index.json").read_bytes()


def test_a_world_size_that_disagrees_with_slurm_stops_at_once(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(AnyECGError, match="Slurm started 4 tasks but MPI sees 1"):
        world()


def test_a_rank_that_fails_alone_ends_the_job_with_its_reason(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    # Rank 1 of 2 makes the odd shards; a folder in the place of one cannot be replaced by a file.
    (run / "shards/shard-00001.h5").unlink()
    (run / "shards/shard-00001.h5").mkdir()
    (run / "shards/shard-00001.h5/x").touch()
    done = on_ranks(2, "shard", run / "config.toml", f"folder={run}")
    assert done.returncode != 0
    assert "(rank 1)" in done.stderr
    assert not (run / "shards/index.json").exists()
    assert not list((run / "shards").glob(".*.tmp"))
