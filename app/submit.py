"""``anyecg submit``: check a config, make its scripts, hand them to Slurm as a chain."""

import itertools
import re
from pathlib import Path

import tomli_w

from anyecg.app.config import load_config, render_config
from anyecg.loaders.errors import ConfigError, SlurmError
from anyecg.loaders.files import digest, make_folder
from anyecg.slurm import queue
from anyecg.slurm.chain import Chain, plan

SWEEP = "sweep"
LINKED = ("cohort", "shards")


def cells(config, path, overrides):
    """Return {name: Config} of the runs of a sweep, every combination of the values; empty without one.

    Raises
    ------
    ConfigError
        A key or a value that the config refuses.
    """
    sweep = config.slurm.sweep
    found = {}
    for number, values in enumerate(itertools.product(*sweep.values()) if sweep else ()):
        chosen = dict(zip(sweep, values, strict=True))
        said = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())
        name = f"{number:03d}-{re.sub('[^A-Za-z0-9._=-]', '_', said)[:80]}"
        changes = [f"{key}={tomli_w.dumps({'v': value}).partition('=')[2].strip()}" for key, value in chosen.items()]
        folder = Path(config.folder) / SWEEP / name
        found[name] = load_config(path, [*overrides, *changes, f"folder={folder}", "slurm.sweep={}"])
    return found


def check_paths(config):
    """Refuse a config whose inputs are not there, before anything waits in a queue for them."""
    wanted = {
        "cohort.path": config.cohort.path, "finetune.weights": config.finetune.weights,
        "predict.model": config.predict.model, "evaluate.internal": config.evaluate.internal,
        "slurm.container": config.slurm.container, "slurm.scratch": config.slurm.scratch,
    }  # fmt: skip
    if config.cohort.kind == "folder":
        wanted["cohort.labels"] = config.cohort.labels
    for key, path in wanted.items():
        if path and not Path(path).exists():
            raise ConfigError(f"{key} = {path}: no such file or folder; mend the config")


def submit(path, overrides, *, dry_run):
    """Submit a config as a chain, or print what would be submitted; return the exit code."""
    config = load_config(path, overrides)
    check_paths(config)
    runs = cells(config, path, overrides)
    chain = Chain(config.folder)
    links = plan(config, chain.folder, n_cells=len(runs))
    files = {"config.toml": render_config(config)}
    if runs:
        files["runs.txt"] = "".join(f"{run.folder}\n" for run in runs.values())
    for link in links:
        try:
            queue.check(link.script)
        except SlurmError as cause:
            raise SlurmError(f"{link.name}: {cause}; see [slurm] of the config") from None
    if dry_run:
        for link in links:
            print(f"# {chain.folder}/{link.name}.sbatch\n{link.script}")
            print(f"# {chain.folder}/mend-{link.name}.sbatch\n{link.mend}")
        print(chain_in_words(links))
        return 0
    make_folder(config.folder)
    _shards_on_scratch(config)
    for run in runs.values():
        _lay_run(config, run)
    document, submitted = chain.submit(links, files)
    for name in submitted:
        entry = document["stages"][name]
        print(
            f"{name}: job {', '.join(entry['jobs'])}; log {chain.folder / name}{'-*' if entry['n_tasks'] else ''}.log",
            flush=True,
        )
    print(f"see how far it is: anyecg status {config.folder}", flush=True)
    return 0


def chain_in_words(links):
    """Return how the jobs of a chain hang together, a line a job."""
    lines, before = [], None
    for link in links:
        after = (
            f" --dependency={'aftercorr' if before.n_tasks and link.n_tasks else 'afterok'}:{before.name}"
            if before
            else ""
        )
        lines.append(f"sbatch --kill-on-invalid-dep=no{after} {link.name}.sbatch")
        lines.append(f"sbatch --kill-on-invalid-dep=yes --dependency=afternotok:{link.name} mend-{link.name}.sbatch")
        before = link
    return "\n".join(lines)


def _shards_on_scratch(config):
    """Let the run folder's shards lie on the scratch disk, behind a link."""
    link = Path(config.folder) / "shards"
    if not config.slurm.scratch or link.is_symlink():
        return
    if link.exists():
        raise ConfigError(
            f"{link}: there already, not on slurm.scratch; move it there and link it, or leave scratch empty"
        )
    target = Path(config.slurm.scratch) / f"anyecg-{digest(config.folder)}"
    make_folder(target)
    link.symlink_to(target)


def _lay_run(config, run):
    """Make the folder of one run of a sweep: its config, and links to what all runs share."""
    from anyecg.app.config import write_config

    folder = Path(run.folder)
    make_folder(folder)
    for name in LINKED:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path(config.folder) / name)
    write_config(folder, run)


def text_status(found):
    """Return where a chain is as lines for a terminal."""
    from anyecg.app.report_text import aligned

    lines, notes = [("stage", "job", "state", "for", "again", "progress", "log")], []
    for job in found["jobs"]:
        state = job["state"] + (f" ({job['reason']})" if job["reason"] else "")
        lines.append(
            (job["stage"], job["job"], state, job["elapsed"], str(job["restarts"]), job["progress"], job["log"])
        )  # fmt: skip
        if job["given_up"] and f"{job['stage']}: {job['given_up']}" not in notes:
            notes.append(f"{job['stage']}: {job['given_up']}")
    stopped = "; stopped, 'anyecg submit' goes on" if found["stopped"] else ""
    return "\n".join([f"submitted {found['submitted']}{stopped}", aligned(lines), *notes])
