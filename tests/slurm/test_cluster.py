"""Whole chains on the real Slurm, over two nodes with MPI and gloo, side by side, each but one disturbed once."""

import csv
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from anyecg.loaders.errors import SlurmError
from anyecg.loaders.simulate import simulate
from anyecg.slurm import queue

from ..conftest import lacking
from . import chains, cluster
from .chains import Run, write_config

FEATURES = ("calm", "calm", "calm", "calm", "busy", "busy", "frail", "frail")
# The jobs of the requeued chain's predict stage fail, as for a reason that their user must mend, until a file is there.
GATE = "case $SLURM_JOB_NAME in anyecg-predict) [[ -e {file} ]] || exit 2;; esac"
SWEEP = """\
[slurm.sweep]
"finetune.seed" = [1, 2]
"""
MINUTES = 9


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Return a running cluster; its nodes are named by what happens to them."""
    if why := cluster.missing():
        lacking(why)
    with cluster.running(tmp_path_factory.mktemp("slurm") / "root", FEATURES) as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a small simulated MC-MED, and a node-local folder with this suite's compiled kernels."""
    from mpi4py import MPI

    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyecg.loaders.sim_truth.VISITS_A_BATCH", 3000)
        simulate(folder / "sim", n_visits=24, hours=0.5, seed=3, comm=MPI.COMM_WORLD)
    return folder / "sim", chains.own_kernels(folder)


@pytest.fixture(scope="module")
def runs(slurm, data, tmp_path_factory):
    """Return the chains by what has disturbed them, all at their end."""
    folder = tmp_path_factory.mktemp("chains")

    def run(name, disturb=None, *, feature="calm", nodes=1, more="", replace=()):
        config = write_config(folder / name, *data, feature=feature, nodes=nodes, more=more)
        for old, new in replace:
            assert old in config.read_text()
            config.write_text(config.read_text().replace(old, new))
        return Run(slurm, config, disturb)

    gate = GATE.format(file=folder / "mended")
    limit = (
        ("[slurm.finetune]\n", '[slurm.finetune]\ntime = "00:02:00"\n'),
        ("signal_seconds = 90", "signal_seconds = 100"),
    )
    found = SimpleNamespace(
        calm=run("calm", nodes=2),
        requeue=run("requeue", chains.requeue, replace=[("[slurm]\n", f"[slurm]\nsetup = ['''{gate}''']\n")]),
        scancel=run("scancel", chains.cancel, replace=[("[slurm]\n", f'[slurm]\nscratch = "{folder}"\n')]),
        preempt=run(
            "preempt", chains.preempt, feature="busy", replace=[("[slurm]\n", "[slurm]\nstage_shards = true\n")]
        ),
        node=run("node", chains.lose_node, feature="frail"),
        limit=run("limit", replace=limit),
        sweep=run("sweep", more=SWEEP),
    )
    everything = list(vars(found).values())
    for one in everything:
        one.submit()
    left = chains.finish(everything, MINUTES * 60)
    assert not left, left[0].logs()
    found.given_up = {job["stage"]: job for job in found.requeue.status() if job["given_up"]}
    (folder / "mended").touch()
    found.again = found.requeue.anyecg("submit", found.requeue.config)
    assert not chains.finish([found.requeue], 180), found.requeue.logs()
    return found


@pytest.mark.parametrize("what", ["calm", "requeue", "scancel", "preempt", "node", "limit", "sweep"])
def test_a_chain_ends_unattended(runs, what):
    assert {job["state"] for job in getattr(runs, what).status()} == {"COMPLETED"}


@pytest.mark.parametrize("what", ["requeue", "scancel", "preempt", "node", "limit"])
def test_a_disturbed_chain_has_the_results_of_the_undisturbed_one(runs, what):
    run = getattr(runs, what)
    n_starts, n_repeated = run.repeated()
    assert n_starts >= 2, run.logs()
    assert n_repeated <= chains.SAVE_EVERY
    assert run.results() == runs.calm.results()


def test_shards_lie_on_the_scratch_disk_behind_a_link(runs):
    shards = runs.scancel.folder / "shards"
    assert shards.is_symlink()
    assert shards.resolve().parent == runs.scancel.config.parent.parent
    assert (shards / "index.json").exists()


def test_staged_shards_were_read_and_are_gone(runs, data):
    said = (runs.preempt.folder / "log/finetune.log").read_text()
    assert "stage done=" in said
    assert not list((data[1] / f"anyecg-{os.getuid()}").glob("stage-*"))


def test_tasks_that_do_not_meet_are_one_line(runs):
    done = subprocess.run(
        ["srun", "--mpi=none", "--nodes=2", "--ntasks=3", "--mem=2000", "--constraint=calm", sys.executable, "-m",
         "anyecg.app.cli", "shard", runs.calm.config], env=runs.calm.cluster.environment, capture_output=True,
        text=True, check=False, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("anyecg")]
    assert len(lines) == 1, done.stderr
    assert "Slurm started 3 tasks but MPI sees 1" in lines[0]


def test_a_script_without_srun_starts_ranks_of_its_own(runs, tmp_path):
    script = tmp_path / "script"
    command = f"{sys.executable} -m anyecg.app.cli profile {runs.calm.config} --seconds 1 --out {tmp_path}/profile"
    script.write_text(f"#!/bin/bash\n{command}\n")
    cluster = runs.calm.cluster
    job = cluster.said(
        "sbatch", "--parsable", "--mem=3000", "--constraint=calm", f"--output={tmp_path}/log", str(script)
    ).strip()  # fmt: skip
    cluster.wait(lambda: cluster.said("squeue", "-h", "-j", job, "-t", "CD,F,TO,CA,NF,OOM"), "its end", seconds=200)
    assert "COMPLETED" in cluster.said("scontrol", "show", "job", job), (tmp_path / "log").read_text()
    machines = json.loads((tmp_path / "profile/profile.json").read_text())["machine"]
    assert sum(machine["ranks"] for machine in machines) == 2


def test_a_chain_of_jobs_has_the_results_of_one_command_on_this_machine(runs, data, tmp_path):
    config = write_config(tmp_path / "plain", *data, feature="calm")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "anyecg.app.cli", "run", config], env=environment, check=True, capture_output=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (tmp_path / "plain/run/results.csv").read_bytes() == runs.calm.results()


def test_status_shows_each_job_how_far_it_is_and_its_log(runs):
    said = runs.scancel.anyecg("status", runs.scancel.folder)
    assert said.returncode == 0, said.stderr
    rows = {line.split()[0]: line for line in said.stdout.splitlines()[3:]}
    assert list(rows) == ["cohort", "shard", "finetune", "predict", "evaluate", "report"]
    assert "COMPLETED" in rows["finetune"]
    assert "finetune: " in rows["finetune"]
    assert rows["finetune"].endswith(f"{runs.scancel.folder}/slurm/finetune.log")
    found = json.loads(runs.scancel.anyecg("status", runs.scancel.config, "--json").stdout)
    assert found["jobs"] == runs.scancel.status()
    assert sum(job["restarts"] for job in found["jobs"]) == 1


def test_ranks_of_two_nodes_took_part(runs):
    for stage in ("shard", "finetune", "predict", "evaluate"):
        (job,) = (job for job in runs.calm.status() if job["stage"] == stage)
        assert job["nodes"].count("-") + job["nodes"].count(",") == 1, job


def test_an_exit_code_2_waits_for_its_user_and_then_that_stage_alone_is_submitted_again(runs):
    assert list(runs.given_up) == ["predict"]
    assert runs.given_up["predict"]["exit_code"] == 2
    assert "run 'anyecg submit' again" in runs.given_up["predict"]["given_up"]
    assert runs.again.returncode == 0, runs.again.stderr
    assert [line.split(":")[0] for line in runs.again.stdout.splitlines()[:-1]] == ["predict"]


def test_a_sweep_is_arrays_whose_results_stand_in_one_table(runs):
    by_stage = {}
    for job in runs.sweep.status():
        by_stage.setdefault(job["stage"], []).append(job["job"])
    assert [len(jobs) for jobs in by_stage.values()] == [1, 1, 2, 2, 2, 1]
    assert all(job.partition("_")[2] == str(n) for n, job in enumerate(by_stage["finetune"]))
    found = chains.rows(runs.sweep.folder / "sweep.csv")
    assert {row["finetune.seed"] for row in found} == {"1", "2"}
    for name in {row["run"] for row in found}:
        with (runs.sweep.folder / "sweep" / name / "results.csv").open(newline="") as file:
            own = list(csv.DictReader(file))
        mine = [{key: row[key] for key in own[0]} for row in found if row["run"] == name]
        assert mine == own
    runs_apart = [(runs.sweep.folder / "sweep" / name / "results.csv").read_bytes() for name in sorted(
        {row["run"] for row in found}
    )]  # fmt: skip
    assert runs_apart[0] != runs_apart[1]


def test_cancelling_what_has_ended_is_no_error(slurm, tmp_path, monkeypatch):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\ntrue\n")
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    job = queue.submit(script, "--mem=10", "--output=/dev/null")
    slurm.wait(lambda: queue.states([job])[str(job)].state == "COMPLETED", "the job's end")
    queue.cancel(job, waiting=True)
    queue.cancel(job, job + 1000)
    with pytest.raises(SlurmError, match=r"scancel refuses: .*nonsense"):
        queue.call("scancel", "--nonsense", quiet=True)


def test_a_stopped_chain_stays_stopped(slurm, data, tmp_path):
    run = Run(slurm, write_config(tmp_path / "stopped", *data, feature="calm"))
    run.submit()
    again = run.anyecg("submit", run.config)
    assert again.returncode == 2
    assert "its chain is under way; see 'anyecg status'" in again.stderr
    stopped = run.anyecg("submit", run.config, "--stop")
    assert stopped.returncode == 0, stopped.stderr
    chain = run.chain.read()
    slurm.wait(lambda: not slurm.said("squeue", "-h", "-j", ",".join(
        str(job) for entry in chain["stages"].values() for job in (*entry["jobs"], entry["mend"])
    )), "jobs cancelled")  # fmt: skip
    assert run.anyecg("submit", run.config, "--mend", "cohort").stdout == "cohort: nothing to mend\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("[slurm]\n", '[slurm]\npartition = "nowhere"\n'),
            "cohort: sbatch refuses: invalid partition specified: nowhere",
        ),
        (('constraint = "calm"', 'constraint = "sunny"'), "cohort: sbatch refuses"),
        (("[slurm.shard]\nnodes = 1", "[slurm.shard]\nnodes = 9"), "shard: sbatch refuses"),
        (("epochs = 6", "epochs = 0"), "finetune.epochs"),
        (('path = "', 'path = "/nowhere'), "no such file or folder"),
    ],
)
def test_what_cannot_run_is_one_line_and_nothing_is_submitted(slurm, data, tmp_path, change, said):
    run = Run(slurm, write_config(tmp_path / "wrong", *data, feature="calm"))
    before = slurm.said("squeue", "-h", "-t", "all", "-o", "%i")
    assert change[0] in run.config.read_text()
    run.config.write_text(run.config.read_text().replace(*change))
    for arguments in ([], ["--dry-run"]):
        done = run.anyecg("submit", run.config, *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert slurm.said("squeue", "-h", "-t", "all", "-o", "%i") == before
    assert not run.folder.exists()


def test_a_full_disk_is_one_line_and_nothing_is_submitted(slurm, data, tmp_path):
    run = Run(slurm, write_config(tmp_path / "full", *data, feature="calm"))
    run.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", run.folder], check=True)
    try:
        before = slurm.said("squeue", "-h", "-t", "all", "-o", "%i")
        done = run.anyecg("submit", run.config)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert done.stderr.count("\n") == 1
        assert slurm.said("squeue", "-h", "-t", "all", "-o", "%i") == before
    finally:
        subprocess.run(["umount", run.folder], check=True)


def test_a_dry_run_prints_what_is_submitted_and_leaves_nothing(slurm, data, tmp_path):
    run = Run(slurm, write_config(tmp_path / "dry", *data, feature="calm"))
    dry = run.anyecg("submit", run.config, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not run.folder.exists()
    run.submit()
    run.anyecg("submit", run.config, "--stop")
    for stage in run.chain.read()["stages"]:
        for name in (stage, f"mend-{stage}"):
            assert (run.folder / f"slurm/{name}.sbatch").read_text() in dry.stdout


def test_without_slurm_it_is_one_line(data, tmp_path):
    config = write_config(tmp_path / "none", *data, feature="calm")
    done = subprocess.run(
        [sys.executable, "-m", "anyecg.app.cli", "submit", config], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": "/nowhere"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "sbatch is not on this machine" in done.stderr
    assert done.stderr.count("\n") == 1


def test_scaling_over_nodes_runs_as_jobs_and_ends_in_a_table(runs):
    run = runs.calm
    before = run.results()
    done = run.anyecg("scale", run.config, "--nodes", "1,2", "--parts", "stream,evaluate", "--seconds", "3")
    assert done.returncode == 0, done.stderr
    table = run.folder / "scale/scale.csv"
    run.cluster.wait(table.exists, "the table", seconds=240)
    rows = chains.rows(table)
    assert {(row["part"], row["kind"], row["nodes"]) for row in rows} == {
        (part, kind, n) for part in ("stream", "evaluate") for kind in ("strong", "weak") for n in ("1", "2")
    }
    assert all(float(row["windows_per_s"]) > 0 for row in rows)
    assert run.results() == before
