import subprocess

import pytest
from pydantic import ValidationError

from anyecg.app.config import load_config
from anyecg.loaders.errors import ConfigError, SlurmError
from anyecg.slurm.chain import plan
from anyecg.slurm.scripts import BY_HAND_STAGES, by_hand, render
from anyecg.slurm.site import JobConfig, SlurmConfig

from ..conftest import REPOSITORY

BATCH = REPOSITORY / "slurm/batch"
SITES = sorted((REPOSITORY / "slurm/sites").glob("*.toml"))
# What bash runs in the place of srun, in a job of two nodes.
FAKE_SRUN = """\
srun() {{ echo "$@" > {folder}/srun; {acts}; }}
scontrol() {{ echo "$@" > {folder}/scontrol; }}
module() {{ echo "$@" > {folder}/module; }}
anyecg() {{ :; }}
export SLURM_JOB_ID=17 SLURM_NNODES=2 SLURM_ARRAY_TASK_ID=1
"""


def run_script(script, folder, acts, *arguments):
    """Run a script with a function in the place of srun, the one thing of Slurm that it starts; return its end."""
    (folder / "script").write_text(FAKE_SRUN.format(folder=folder, acts=acts) + script)
    return subprocess.run(
        ["bash", str(folder / "script"), *arguments], capture_output=True, text=True, check=False, timeout=30
    )  # fmt: skip


def made(site=None, name="shard", **options):
    site = site or SlurmConfig()
    options = {"arguments": f'{name} "$config"', "body": ["config=/c.toml"], **options}
    return render(name, getattr(site, name), site, **options)


def test_the_scripts_edited_by_hand_are_those_of_the_default_site():
    assert {path.stem for path in BATCH.iterdir()} == set(BY_HAND_STAGES)
    for name in BY_HAND_STAGES:
        assert (BATCH / f"{name}.sbatch").read_text() == by_hand(name, SlurmConfig()), "run slurm/scripts.py"


def test_a_script_by_hand_wants_a_config(tmp_path):
    done = run_script((BATCH / "shard.sbatch").read_text(), tmp_path, ":")
    assert done.returncode != 0
    assert "give a config: sbatch shard.sbatch config.toml" in done.stderr


def test_a_script_by_hand_passes_config_and_overrides_on(tmp_path):
    done = run_script((BATCH / "shard.sbatch").read_text(), tmp_path, ":", "c.toml", "seed=3")
    assert done.returncode == 0
    assert (tmp_path / "srun").read_text().split("anyecg ")[1] == "shard c.toml seed=3\n"


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_a_script_ends_with_the_code_of_its_stage(tmp_path, code):
    assert run_script(made(), tmp_path, f"return {code}").returncode == code
    assert not (tmp_path / "scontrol").exists()


def test_a_script_that_is_told_tells_its_stage_and_is_queued_again(tmp_path):
    # A process of its own catches the signal, as srun does; it says so by its exit code.
    done = run_script(made(), tmp_path, "exec bash -c 'trap \"exit 75\" USR1; kill -USR1 '$$'; sleep 2; exit 0'")
    assert done.returncode == 75
    assert (tmp_path / "scontrol").read_text() == "requeue 17\n"


def test_a_script_that_is_told_when_its_stage_ends_well_is_done(tmp_path):
    done = run_script(made(), tmp_path, "trap '' USR1; sleep 0.3; kill -USR1 $$; sleep 0.3; return 0")
    assert done.returncode == 0
    assert not (tmp_path / "scontrol").exists()


def test_a_job_is_queued_again_only_so_often(tmp_path):
    script = "export SLURM_RESTART_COUNT=3\n" + made(SlurmConfig(max_restarts=3))
    run_script(script, tmp_path, "exec bash -c 'trap \"exit 75\" USR1; kill -USR1 '$$'; sleep 2; exit 0'")
    assert not (tmp_path / "scontrol").exists()


def test_staged_shards_are_removed_on_every_node(tmp_path):
    site = SlurmConfig(stage_shards=True, node_local=str(tmp_path))
    assert run_script(made(site, "finetune"), tmp_path, ":").returncode == 0
    assert (tmp_path / "srun").read_text().startswith("--ntasks=2 --ntasks-per-node=1 rm -rf ")
    assert "ANYECG_STAGE" not in made(site, "shard")


def test_a_site_stands_in_the_script():
    site = SlurmConfig(
        account="me", partition="cpu", gpu_partition="gpu", qos="long", constraint="ib", options=["--exclusive"],
        modules=["cuda/13.0"], setup=["ulimit -c 0"], container="/my image.sif", binds=["/data"],
    )  # fmt: skip
    lines = made(site, "finetune", array="0-3%2").splitlines()
    head = {"--account=me", "--partition=gpu", "--qos=long", "--constraint=ib", "--exclusive", "--gres=gpu:4",
            "--array=0-3%2", "--requeue", "--ntasks-per-node=4"}  # fmt: skip
    assert {f"#SBATCH {option}" for option in head} <= set(lines)
    assert {"module load cuda/13.0", "ulimit -c 0"} <= set(lines)
    assert "    apptainer exec" not in lines
    assert any("apptainer exec --nv --bind /data '/my image.sif' anyecg finetune" in line for line in lines)
    assert "#SBATCH --partition=cpu" in made(site, "shard").splitlines()


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_the_examples_of_sites_are_configs_whose_scripts_bash_reads(path, tmp_path):
    config = load_config(path, [f"folder={tmp_path}"])
    assert len(SITES) == 3
    for link in plan(config, tmp_path, n_cells=2):
        for script in (link.script, link.mend):
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_table_of_a_stage_changes_only_what_it_says():
    job = SlurmConfig(shard={"nodes": 9}).shard
    assert job == JobConfig(**{**SlurmConfig().shard.model_dump(), "nodes": 9})


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "a b"}, {"account": "x\n#SBATCH --y"}, {"qos": "$(id)"}, {"options": ["-p x"]},
        {"setup": ["a\nb"]}, {"shard": {"time": "1h"}}, {"shard": {"memory": "64 GB"}}, {"finetune": {"gpus": 3}},
        {"sweep": {"seed": [1]}}, {"sweep": {"shard.fs": [250]}}, {"sweep": {"finetune.seed": []}},
        {"sweep": {"finetune.seed": list(range(2000))}}, {"shards": {}},
    ],
)  # fmt: skip
def test_what_no_site_means_is_refused(wrong):
    with pytest.raises(ValidationError):
        SlurmConfig(**wrong)


def test_a_swept_key_that_does_not_exist_is_one_line(tmp_path):
    from anyecg.app.submit import cells

    config = tmp_path / "config.toml"
    config.write_text('[slurm.sweep]\n"finetune.seeed" = [1]\n')
    with pytest.raises(ConfigError, match=r"finetune\.seeed.*nearest known key: 'finetune\.seed'"):
        cells(load_config(config), config, [])


def test_a_run_folder_that_a_script_cannot_name_is_refused(tmp_path):
    with pytest.raises(SlurmError, match="give another run folder"):
        plan(load_config(None), tmp_path / "a$(id)")


def test_a_run_folder_with_marks_of_the_shell_is_quoted(tmp_path):
    (link, *_) = plan(load_config(None), tmp_path / "R&D;x")
    assert f'"{tmp_path}/R&D;x/config.toml" --mend' in link.mend


def test_a_run_folder_with_a_blank_is_quoted(tmp_path):
    (link, *_) = plan(load_config(None), tmp_path / "a b")
    assert f'config=${{1:-"{tmp_path}/a b/config.toml"}}' in link.script
    assert f'#SBATCH --output="{tmp_path}/a b/cohort.log"' in link.script
