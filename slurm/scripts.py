"""Batch scripts: what sbatch is given for each stage, for a chain of jobs and to be edited by hand.

``python -m anyecg.slurm.scripts`` writes those of ``slurm/batch`` anew.
"""

import shlex
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

from anyecg.loaders.errors import SlurmError

WHAT = {
    "cohort": "Records and labels become tables: one task.",
    "shard": "Recordings become HDF5 shards: MPI ranks on CPU nodes.",
    "finetune": "Shards become a model: one task a GPU, DALI and DeepSpeed.",
    "predict": "Model and shards become scores: one task a GPU.",
    "evaluate": "Scores become the results table: MPI ranks on CPU nodes.",
    "report": "All of it becomes report.html: one task.",
    "profile": "What limits the data path, stage by stage: one task a GPU, as finetune.",
    "scale": "Rates of shard, stream, finetune and evaluate on these nodes, for 'anyecg scale --gather'.",
    "gather": "The runs of a sweep become one table: one task.",
    "mend": "Runs only if a job of the chain has failed: submits it again and leads the chain on.",
}
BY_HAND_STAGES = ("cohort", "shard", "finetune", "predict", "evaluate", "report", "profile", "scale")
# What the scripts that are edited by hand say in the place of a site's own lines.
BY_HAND = ("# module load cuda", "# source /path/to/.venv/bin/activate")


@cache
def _template():
    from jinja2 import Environment, StrictUndefined

    text = files("anyecg.slurm").joinpath("job.sbatch.j2").read_text(encoding="utf-8")
    return Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)


def _options(name, job, site, *, array, log):
    """Return the options of sbatch, as they stand behind #SBATCH."""
    named = {
        "job-name": f"anyecg-{name}",
        "account": site.account,
        "partition": site.partition_of(job),
        "qos": site.qos,
        "constraint": site.constraint,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks,
        "cpus-per-task": job.cpus,
        "gres": f"gpu:{job.gpus}" if job.gpus else "",
        "mem": job.memory,
        "time": job.time,
        "signal": f"B:USR1@{site.signal_seconds}",
        "array": array,
        "output": log,
        "open-mode": "append",
    }
    return [f"--{key}={_quoted(value)}" for key, value in named.items() if value != ""] + ["--requeue", *site.options]


def _quoted(value):
    """Return a value as sbatch reads it behind #SBATCH: in quotes where it holds a blank."""
    text = str(value)
    return f'"{text}"' if " " in text else text


def in_shell(path):
    """Return a path that stands in a script, in double quotes where it is needed."""
    if any(mark in str(path) for mark in "\"'$`\\\n%"):
        raise SlurmError(f"{path}: batch scripts bear no quotes, $, % or \\ in a path; give another run folder")
    return str(path) if shlex.quote(str(path)) == str(path) else f'"{path}"'


def environment_lines(site):
    """Return the lines that make ``anyecg`` known on a node: the site's, then this process's own environment."""
    own = [f'export PATH={shlex.quote(str(Path(sys.prefix) / "bin"))}:"$PATH"']
    return [*(f"module load {shlex.quote(name)}" for name in site.modules), *own, *site.setup]


def render(name, job, site, *, arguments, body=(), setup=None, array="", log=None, kind=None):
    """Return the text of one batch script.

    Parameters
    ----------
    name : str
        Of the job: a stage, ``gather`` or ``mend-STAGE``.
    job : anyecg.slurm.site.JobConfig
    site : anyecg.slurm.site.SlurmConfig
    arguments : str
        Command line of ``anyecg`` as the shell of the job reads it.
    body : list of str
        Lines before the stage starts, as those that find the config.
    setup : list of str, optional
        Lines of the site; None takes ``environment_lines``.
    array : str
        Numbers of the tasks of an array, as "0-5%2"; empty for a single job.
    log : str, optional
        File of the log, with sbatch's placeholders; None is one a job in the working folder.
    kind : str, optional
        Key of ``WHAT``; None is ``name``.
    """
    kind = kind or name
    command = f"anyecg {arguments}"
    # Who mends asks Slurm, which a container does not see.
    if site.container and kind != "mend":
        binds = "".join(f" --bind {shlex.quote(path)}" for path in site.binds)
        nv = " --nv" if job.gpus else ""
        command = f"apptainer exec{nv}{binds} {shlex.quote(site.container)} {command}"
    return _template().render(
        what=WHAT[kind],
        how=f"Submit it with: sbatch {kind}.sbatch config.toml [key=value ...]"
        if setup
        else "Made by 'anyecg submit'.",
        options=_options(name, job, site, array=array, log=log or "%x-%j.log"),
        setup=environment_lines(site) if setup is None else setup,
        container=site.container,
        mends=kind == "mend",
        node_local=site.node_local,
        staged=site.stage_shards and kind in ("finetune", "predict"),
        body=body,
        mpi=site.mpi,
        command=command,
        max_restarts=site.max_restarts,
    )


def by_hand(name, site):
    """Return the script of a stage that stands in ``slurm/batch``: its user edits the head and gives the config."""
    body = [f"config=${{1:?give a config: sbatch {name}.sbatch config.toml}}", "shift"]
    more = {"profile": " --model"}.get(name, "")
    return render(
        name, getattr(site, name), site, arguments=f'{name} "$config" "$@"{more}', body=body, setup=list(BY_HAND)
    )  # fmt: skip


if __name__ == "__main__":
    from anyecg.slurm.site import SlurmConfig

    for stage in BY_HAND_STAGES:
        (Path(__file__).parent / "batch" / f"{stage}.sbatch").write_text(by_hand(stage, SlurmConfig()))
