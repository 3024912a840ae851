"""Run the stages of a config: alone or as a rank of a job, locked, logged, kept where nothing has changed."""

import logging
import os
import sys
import time
from pathlib import Path

from anyecg.loaders.errors import AnyECGError, Stopped
from anyecg.loaders.stop import Ended

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
        error = AnyECGError(f"{folder}: another anyecg is writing there; wait for it, or give another folder")
        # Of a job that was lost the last rank may still be ending, so a job tries again later.
        error.code = Stopped.code if "SLURM_JOB_ID" in os.environ else error.code
        raise error from None
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
        if isinstance(cause, Ended) or (isinstance(cause, KeyboardInterrupt) and comm.size == 1):
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


def on_ranks(name, folder, check, work):
    """Run ``work(comm, check())`` on this rank of a job; return the exit code.

    Rank 0 locks ``folder`` and checks for all: a thousand ranks would hash the same files a thousand times.
    """
    from anyecg.loaders.ranks import on_first, share_error, world

    comm = world()

    def of_rank():
        locks = []

        def first():
            if not started_by_us():
                locks.append(lock_folder(folder))
            return check()

        error = None
        try:
            _mended(lambda: _log_of_rank(folder, name, comm.rank))
        except AnyECGError as cause:
            error = cause
        share_error(comm, error)
        work(comm, on_first(comm, lambda: _mended(first)))
        for lock in locks:
            lock.close()

    return as_rank(name, comm, of_rank)


def _log_of_rank(folder, name, rank):
    log_to(folder, name)
    # A warning of a library says the same on every rank; other ranks speak only of errors.
    logging.getLogger().setLevel(logging.INFO if rank == 0 else logging.ERROR)


def _mended(work):
    """Return what ``work`` returns; a disk that fails is an AnyECGError too."""
    try:
        return work()
    except OSError as cause:
        raise AnyECGError(mend(cause)) from None


def started_by_us():
    """Say whether another anyecg holds the lock, has checked the stage, and started this one as a rank."""
    return "ANYECG_LOCKED" in os.environ


def run_stage_on_ranks(name, config):
    """Run one stage on this rank of a job that mpirun or srun started; return the exit code."""
    start = time.monotonic()

    def work(comm, wanted):
        if wanted is None:
            return
        if name == "report":
            if comm.rank == 0:
                _report(config)
            return
        from anyecg.app.stages import STAGES

        STAGES[name].run(config, comm, wanted)
        if comm.rank == 0 and not started_by_us():
            _say_done(name, start, comm.size)

    return on_ranks(name, config.folder, lambda: _to_do(name, config), work)


def _to_do(name, config):
    """Return the hash of what a stage is to make, None where just that is there already.

    Raises
    ------
    AnyECGError
        A stage before it is not done.
    """
    from anyecg.app.config import render_config
    from anyecg.app.stages import STAGES
    from anyecg.loaders.files import write_text

    wanted = STAGES[name].wanted(config) if name in STAGES else ""
    if started_by_us():
        return wanted
    for stage in STAGES.values() if name == "report" else (STAGES[before] for before in CHAIN[: CHAIN.index(name)]):
        if not stage.is_done(config):
            raise AnyECGError(
                f"{stage.name} is not done for this config, or its output is gone; "
                f"run 'anyecg run' with the same config, or 'anyecg {stage.name}' first"
            )
    if name == "report":
        return wanted
    if STAGES[name].is_done(config, wanted):
        print(f"{name}: kept, nothing it depends on has changed", flush=True)
        return None
    write_text(_resolved(config), render_config(config))
    return wanted


def _resolved(config):
    return Path(config.folder) / "config.toml"


def _say_done(name, start, n_ranks):
    print(f"{name}: done in {time.monotonic() - start:.0f} s on {n_ranks} rank{'s' * (n_ranks > 1)}", flush=True)


def run_stage(name, config):
    """Run one stage here: nothing when it is done, alone or on ranks of its own; return the exit code."""
    from anyecg.app.stages import STAGES
    from anyecg.slurm.launch import ranks_wanted, start_ranks

    start = time.monotonic()
    wanted = _to_do(name, config)
    if name == "report":
        return _report(config)
    if wanted is None:
        return 0
    log_to(config.folder, name)
    n_ranks = ranks_wanted(STAGES[name].n_ranks(config))
    if n_ranks > 1:
        code = start_ranks([name, str(_resolved(config))], n_ranks)
        if code:
            return code
    else:
        from anyecg.loaders.ranks import world

        STAGES[name].run(config, world(), wanted)
    _say_done(name, start, n_ranks)
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
    from anyecg.slurm.launch import ranks_wanted, start_ranks
    from anyecg.slurm.profile import check_shards, profile

    out, shards = Path(out or Path(config.folder) / "profile"), Path(config.folder) / "shards"

    def check():
        if with_model:
            check_inputs(config)
        check_shards(shards, config, seconds)

    def work(comm, _):
        from anyecg.app.profile_page import text_profile, write_profile
        from anyecg.loaders.index import open_index

        index = open_index(shards)
        found, traces = profile(index, config, comm, seconds=seconds, with_model=with_model, folder=out)
        if comm.rank == 0:
            path = write_profile(out, found, traces)
            print(f"{text_profile(found)}\nprofile: {path}", flush=True)

    if not under_launcher():
        check()
        n_ranks = ranks_wanted(STAGES["finetune"].n_ranks(config))
        if n_ranks > 1:
            with lock_folder(out):
                return start_ranks(arguments, n_ranks)
    return on_ranks("profile", out, check, work)
