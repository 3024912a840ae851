import os

import pytest

from anyecg.loaders.errors import AnyECGError
from anyecg.loaders.ranks import world
from anyecg.slurm.launch import find_mpirun, rank_environment, start_ranks

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


def test_a_world_size_that_disagrees_with_slurm_stops_at_once(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(AnyECGError, match="Slurm started 4 tasks but MPI sees 1"):
        world()


def test_a_rank_that_fails_alone_ends_the_job_with_its_reason(small_run, tmp_path):
    import shutil

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
