"""The command line as a user meets it: help, bad input, locks, log files."""

import csv
import json
import os
import shutil
import stat

import h5py
import pytest

from anyecg.app.cli import EPILOG
from anyecg.app.config import load_config
from anyecg.app.run import CHAIN
from anyecg.app.stages import STAGES
from anyecg.loaders.cohort import open_cohort

from ..conftest import DEMO, anyecg, write_small_config


def test_help_shows_every_stage_in_order_with_an_example():
    done = anyecg("--help")
    assert done.returncode == 0
    assert "SUPPRESS" not in done.stdout
    places = [done.stdout.index(f"anyecg {name} ") for name in CHAIN]
    assert places == sorted(places)
    for name in ("demo", "run", "compare", "verify", "targets", "profile", "doctor", "config"):
        assert f"anyecg {name}" in EPILOG
    for name in (*CHAIN, "demo", "run", "compare", "verify", "targets", "profile", "doctor", "config"):
        assert anyecg(name, "--help").returncode == 0


def labels_without(tmp_path, column):
    with (DEMO / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != column], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "absent.toml"], "absent.toml: No such file or directory"),
        (["run", "config.toml", "cohort.labels=absent.csv"], "absent.csv: no such file"),
        (["run", "config.toml", "evaluate.internal=absent.json"], "absent.json: no such file"),
        (["run", "config.toml", "cohort.path=absent"], "absent: no such folder"),
        (["run", "config.toml", "finetune.epoch=3"], "nearest known key: 'finetune.epochs'"),
        (["shard", "config.toml"], "holds no cohort; run 'anyecg cohort'"),
        (["finetune", "config.toml"], "has no index: sharding did not finish"),
        (["predict", "config.toml"], "has no index"),
        (["evaluate", "config.toml"], "holds no finished model; run 'anyecg finetune'"),
        (["report", "config.toml"], "cohort is not done for this config"),
        (["cohort", "config.toml", "folder=labels.csv"], "labels.csv: not a folder"),
        (["verify", "config.toml"], "has no index"),
        (["predict"], "either a config, or all of --model, --input and --out"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_leaves_nothing(tmp_path, arguments, said):
    write_small_config(tmp_path)
    done = anyecg(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left <= {"config.toml", "labels.csv", ".lock", "cohort.log"}


def test_a_missing_column_is_named(tmp_path):
    config = write_small_config(tmp_path)
    labels_without(tmp_path, "patient")
    done = anyecg("run", config)
    assert done.returncode == 2
    assert "column 'patient' is missing; found record, atrial_fibrillation, other_rhythm, noise" in done.stderr


def test_a_second_run_keeps_what_has_not_changed_and_remakes_what_has(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    done = anyecg("run", run / "config.toml", f"folder={run}", "evaluate.n_replicates=50")
    assert done.returncode == 0, done.stderr
    kept = [line.split(":")[0] for line in done.stdout.splitlines() if "kept, nothing it depends on" in line]
    assert kept == ["cohort", "shard", "finetune", "predict"]
    assert (run / "results.csv").read_bytes() != (small_run / "results.csv").read_bytes()
    assert (run / "cohort/cohort.json").read_bytes() == (small_run / "cohort/cohort.json").read_bytes()


@pytest.mark.parametrize(("job", "code"), [({}, 2), ({"SLURM_JOB_ID": "17"}, 75)], ids=["by hand", "job"])
def test_a_second_writer_is_kept_out(tmp_path, job, code):
    import fcntl

    config = write_small_config(tmp_path)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = anyecg("run", config, env={**os.environ, **job})
    assert done.returncode == code
    assert "another anyecg is writing there" in done.stderr


def test_demo_refuses_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "config.toml").touch()
    done = anyecg("demo", "--out", tmp_path)
    assert done.returncode == 2
    assert "not empty and not a run of the demo" in done.stderr
    assert (tmp_path / "config.toml").exists()


def test_outputs_are_readable_by_their_owner_only(small_run):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in small_run.rglob("*")}
    assert modes <= {0o600, 0o700}


def test_every_stage_leaves_its_config_and_a_plain_log(small_run):
    for name in ("", "cohort", "shards", "model"):
        assert (small_run / name / "config.toml").is_file()
    for name in CHAIN[:-1]:
        text = (small_run / "log" / f"{name}.log").read_text()
        assert "_per_s=" in text
        assert "seconds_left=" in text
        assert "\r" not in text


def test_logs_and_results_name_no_record(small_run):
    names = open_cohort(small_run / "cohort").records["path"].to_list()
    logs = [path for path in small_run.glob("log/**/*") if path.is_file()]
    assert any(path.parent.name == "tensorboard" for path in logs)
    for path in [*logs, *small_run.glob("results.*"), small_run / "report.html"]:
        text = path.read_text(errors="replace")
        assert not [name for name in names if name in text], path


OUTPUTS = (
    ("cohort/draws.parquet", "cohort"), ("shards/index-pair_draw.npy", "shard"), ("shards/shard-00001.h5", "shard"),
    ("model/model.safetensors", "finetune"), ("model/curve.csv", "finetune"), ("scores.h5", "predict"),
    ("results.csv", "evaluate"),
)  # fmt: skip


@pytest.mark.parametrize(("lost", "stage"), OUTPUTS)
def test_a_stage_that_lost_a_file_is_not_done_and_those_before_it_are(small_run, tmp_path, lost, stage):
    run = shutil.copytree(small_run, tmp_path / "run")
    config = load_config(run / "config.toml", [f"folder={run}"])
    assert all(STAGES[name].is_done(config) for name in CHAIN[:-1])
    (run / lost).unlink()
    assert all(STAGES[name].is_done(config) for name in CHAIN[: CHAIN.index(stage)])
    assert not STAGES[stage].is_done(config)


def test_lost_outputs_of_all_stages_are_made_again_and_are_the_same(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    for lost, _ in OUTPUTS:
        (run / lost).unlink()
    done = anyecg("run", run / "config.toml", f"folder={run}")
    assert done.returncode == 0, done.stderr
    assert all(f"{stage}: done in" in done.stdout for stage in CHAIN[:-1])
    for lost, _ in OUTPUTS:
        # Beside numbers these hold when and how fast they were made.
        if lost not in ("scores.h5", "model/curve.csv"):
            assert (run / lost).read_bytes() == (small_run / lost).read_bytes(), lost


def test_a_stage_refuses_to_build_on_another_config(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    done = anyecg("evaluate", run / "config.toml", f"folder={run}", "finetune.epochs=7")
    assert done.returncode == 2
    assert "finetune is not done for this config" in done.stderr


@pytest.mark.parametrize("name", ["cohort/cohort.json", "shards/index.json", "model/card.json"])
def test_output_of_another_version_is_named_not_overwritten(small_run, tmp_path, name):
    run = shutil.copytree(small_run, tmp_path / "run")
    document = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**document, "version": 99}))
    done = anyecg("run", run / "config.toml", f"folder={run}")
    assert done.returncode == 2
    assert f"upgrade needed: {document['format']} version 99" in done.stderr
    assert json.loads((run / name).read_text())["version"] == 99


def test_a_shard_of_another_version_is_named_not_overwritten(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "shards/index.json").unlink()
    with h5py.File(run / "shards/shard-00000.h5", "r+") as file:
        file.attrs["version"] = 99
    done = anyecg("shard", run / "config.toml", f"folder={run}")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("anyecg shard: "))
    assert "shard-00000.h5: upgrade needed: anyecg-shard version 99, this code reads version 2; remove it" in line
    assert "Abort" not in done.stderr


def test_verify_passes_whole_shards_and_names_damaged_ones(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    arguments = ("verify", run / "config.toml", f"folder={run}")
    assert anyecg(*arguments).returncode == 0
    with (run / "shards/shard-00002.h5").open("r+b") as file:
        file.seek(5000)
        file.write(b"\1")
    done = anyecg(*arguments)
    assert done.returncode == 2
    assert "shard-00002.h5: changed since it was written" in done.stderr


def test_doctor_finds_everything_here():
    done = anyecg("doctor")
    assert done.returncode == 0, done.stdout
    for part in ("MPI", "GPU", "DALI", "DeepSpeed", "HDF5", "file locks", "/dev/shm", "disk"):
        assert part in done.stdout
    assert "2 ranks met" in done.stdout


def test_doctor_names_what_is_missing_with_the_remedy(monkeypatch, capsys):
    from anyecg.app import doctor

    monkeypatch.setattr(doctor, "find_mpirun", lambda: None)
    assert doctor.examine() == 2
    assert "MISSING  MPI         mpirun is missing; pip install mpich" in capsys.readouterr().out
