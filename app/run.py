"""Run the stages of a config: alone or as a rank of a job, locked, logged, kept where nothing has changed."""

import logging
import os
import sys
import time
from pathlib import Path

from anyecg.loaders.errors import AnyECGError

SECONDS_TO_PASS_ON = 0.3
CHAIN = ("cohort", "shard", "finetune", "predict", "evaluate", "report")


class LogFile(logging.FileHandler):
    """A log file whose disk may fail: that is said once, and does not stop the run."""

    _said = False

    def handleError(self, record):
        """Say why a line is missing."""
        cause = sys.exc_info()[1]
        if not isinstance(cause, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            print(f"anyecg: {self.baseFilename}: {cause.strerror}; lines are missing there", file=sys.stderr)


def log_to(folder, stage):
    """Send log lines to ``log/STAGE.log`` and, where no bar is shown, to standard error too."""
    from anyecg.loaders.progress import on_terminal

    path = Path(folder) / "log" / f"{stage}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING if on_terminal() else logging.INFO)
    logging.basicConfig(
        level=logging.INFO, handlers=[LogFile(path), console], force=True,
        format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S",
    )  # fmt: skip


def lock_folder(folder):
    """Keep a second run out of a run folder for as long as this process lives."""
    import fcntl

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise AnyECGError(f"{folder}: not a folder; give another one as 'folder'")
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AnyECGError(f"{folder}: another anyecg is writing there; wait for it, or give another folder") from None
    except OSError as cause:
        logging.getLogger(__name__).warning("no lock on %s: %s", folder, cause)
    return file


def as_rank(name, comm, work):
    """Run ``work`` as one rank of a job; return the exit code, and end all ranks where only this one fails."""
    try:
        work()
    except (AnyECGError, OSError) as found:
        cause = found if isinstance(found, AnyECGError) else AnyECGError(mend(found))
        if not cause.on_every_rank:
            print(f"anyecg {name}: {cause} (rank {comm.rank})", file=sys.stderr, flush=True)
            _end_job(comm, cause.code)
        if comm.rank == 0:
            print(f"anyecg {name}: {cause}", file=sys.stderr, flush=True)
        return cause.code
    except BaseException as cause:
        if isinstance(cause, KeyboardInterrupt) and comm.size == 1:
            raise
        logging.getLogger(__name__).exception("rank %d failed", comm.rank)
        _end_job(comm, 1)
    return 0


def _end_job(comm, code):
    """End all ranks of a job, after a moment for the launcher to pass on what was printed."""
    time.sleep(SECONDS_TO_PASS_ON)
    comm.Abort(code)


def mend(cause):
    """Return the line that a failing disk or path is reported with."""
    return f"{cause}; mend the disk or the path, then run it again"


def on_ranks(name, folder, prepare, work):
    """Run ``work(comm, prepare())`` on this rank of a job; lock and log in ``folder``; return the exit code."""
    from anyecg.loaders.ranks import share_error, world

    comm = world()

    def of_rank():
        error, lock, found = None, None, None
        try:
            log_to(folder, name)
            # A warning of a library says the same on every rank; other ranks speak only of errors.
            logging.getLogger().setLevel(logging.INFO if comm.rank == 0 else logging.ERROR)
            if comm.rank == 0 and "ANYECG_LOCKED" not in os.environ:
                lock = lock_folder(folder)
            found = prepare()
        except AnyECGError as cause:
            error = cause
        except OSError as cause:
            error = AnyECGError(mend(cause))
        share_error(comm, error)
        work(comm, found)
        if lock:
            lock.close()

    return as_rank(name, comm, of_rank)


def run_stage_on_ranks(name, config):
    """Run one stage on this rank of a job that mpirun or srun started; return the exit code."""
    from anyecg.app.stages import STAGES

    stage = STAGES[name]
    return on_ranks(
        name, config.folder, lambda: stage.wanted(config), lambda comm, wanted: stage.run(config, comm, wanted)
    )


def run_stage(name, config):
    """Run one stage here: nothing when it is done, alone or on ranks of its own; return the exit code."""
    from anyecg.app.config import render_config
    from anyecg.app.stages import STAGES
    from anyecg.loaders.files import write_text

    before = [stage for stage in STAGES.values() if name == "report" or stage.name in CHAIN[: CHAIN.index(name)]]
    wanted = STAGES[name].wanted(config) if name in STAGES else ""
    for stage in before:
        if not stage.is_done(config):
            raise AnyECGError(
                f"{stage.name} is not done for this config, or its output is gone; "
                f"run 'anyecg run' with the same config, or 'anyecg {stage.name}' first"
            )
    if name == "report":
        return _report(config)
    stage = STAGES[name]
    if stage.is_done(config):
        print(f"{name}: kept, nothing it depends on has changed", flush=True)
        return 0
    start = time.monotonic()
    log_to(config.folder, name)
    resolved = Path(config.folder) / "config.toml"
    write_text(resolved, render_config(config))
    n_ranks = stage.n_ranks(config)
    if n_ranks > 1:
        from anyecg.slurm.launch import start_ranks

        code = start_ranks([name, str(resolved)], n_ranks)
        if code:
            return code
    else:
        from anyecg.loaders.ranks import world

        stage.run(config, world(), wanted)
    print(f"{name}: done in {time.monotonic() - start:.0f} s on {n_ranks} rank{'s' * (n_ranks > 1)}", flush=True)
    return 0


def _report(config):
    from anyecg.app.report import write_report

    print(f"report: {write_report(config)}", flush=True)
    return 0


def run_chain(config):
    """Run all stages, print the results, write the report; return the exit code."""
    from anyecg.app.report_text import text_results
    from anyecg.app.stages import check_inputs

    check_inputs(config)
    for name in CHAIN[:-1]:
        code = run_stage(name, config)
        if code:
            return code
    print()
    print(text_results(Path(config.folder) / "results.json"))
    return _report(config)


def run_profile(config, *, seconds, with_model, out, arguments):
    """Profile the data path, on ranks as finetune has them; return the exit code.

    Parameters
    ----------
    out : Path or None
        Folder of the results; None is ``profile`` in the run folder.
    arguments : list of str
        Command line of the ranks to start, where none are running.
    """
    from anyecg.app.stages import STAGES, check_inputs
    from anyecg.loaders.ranks import under_launcher
    from anyecg.slurm.profile import profile, shards_to_profile

    out = Path(out or Path(config.folder) / "profile")

    def prepare():
        if with_model:
            check_inputs(config)
        return shards_to_profile(Path(config.folder) / "shards", config, seconds)

    def work(comm, index):
        from anyecg.app.profile_page import text_profile, write_profile

        found, traces = profile(index, config, comm, seconds=seconds, with_model=with_model, folder=out)
        if comm.rank == 0:
            path = write_profile(out, found, traces)
            print(f"{text_profile(found)}\nprofile: {path}", flush=True)

    if not under_launcher():
        prepare()
        n_ranks = STAGES["finetune"].n_ranks(config)
        if n_ranks > 1:
            from anyecg.slurm.launch import start_ranks

            with lock_folder(out):
                return start_ranks(arguments, n_ranks)
    return on_ranks("profile", out, prepare, work)
