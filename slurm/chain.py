"""A run as a chain of jobs: submitted with ``afterok``, mended when a job is lost, stopped, and known by one file."""

import fcntl
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from anyecg.loaders.errors import SlurmError
from anyecg.loaders.files import digest, make_folder, read_document, write_document, write_text
from anyecg.slurm import queue
from anyecg.slurm.scripts import in_shell, render
from anyecg.slurm.site import JobConfig

STAGES = ("cohort", "shard", "finetune", "predict", "evaluate", "report")
FOLDER, RECORD, FORM = "slurm", "chain.json", "anyecg-chain"
SECONDS_TO_END = 300
_GATHER, _MEND = JobConfig(memory="4G", time="00:30:00"), JobConfig(memory="1G", time="00:10:00")


class Link(NamedTuple):
    """One job of a chain, before it is submitted.

    Attributes
    ----------
    n_tasks : int
        Tasks of its array; 0 for a single job.
    """

    name: str
    n_tasks: int
    script: str
    mend: str


def plan(config, folder, *, n_cells=0):
    """Return the links of a chain, in order.

    Parameters
    ----------
    config : with slurm and predict
    folder : Path
        ``slurm`` in the run folder, where the scripts and the configs will lie.
    n_cells : int
        Runs of a sweep; 0 without one.
    """
    site, of_cells = config.slurm, ("finetune", "predict", "evaluate")
    names = [name for name in STAGES if not (name == "finetune" and config.predict.model)]
    if n_cells:
        names = [*(name for name in names if name != "report"), "gather"]
    whole = [f"config=${{1:-{in_shell(folder / 'config.toml')}}}"]
    of_task = [
        f"mapfile -t runs < {in_shell(folder / 'runs.txt')}",
        "config=${runs[$SLURM_ARRAY_TASK_ID]}/config.toml",
    ]
    array = f"0-{n_cells - 1}" + (f"%{site.array_limit}" if site.array_limit else "")
    links = []
    for name in names:
        is_array = bool(n_cells) and name in of_cells
        script = render(
            name, _GATHER if name == "gather" else getattr(site, name), site, arguments=f'{name} "$config"',
            body=of_task if is_array else whole, array=array if is_array else "",
            log=folder / f"{name}{'-%a' if is_array else ''}.log",
        )  # fmt: skip
        mend = render(
            f"mend-{name}", _MEND, site, arguments=f"submit {in_shell(folder / 'config.toml')} --mend {name}",
            log=folder / f"mend-{name}.log", kind="mend",
        )  # fmt: skip
        links.append(Link(name, n_cells if is_array else 0, script, mend))
    return links


class Chain:
    """The jobs of one run folder, as ``slurm/chain.json`` knows them.

    ``stages`` maps each stage, in order, to ``jobs`` (as "17", or "17_0", "17_1" of an array), ``mend`` (the job that
    waits for its failure), ``restarts`` and ``given_up`` (why nothing mends it any more).
    """

    def __init__(self, run_folder):
        self.folder = Path(run_folder) / FOLDER
        self.path = self.folder / RECORD

    @contextmanager
    def locked(self):
        """Keep others from changing the chain for a while."""
        make_folder(self.folder)
        with (self.folder / ".lock").open("w") as file:
            # There are file systems without locks.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self):
        """Return the document of the chain; None before the first one."""
        if not self.path.exists():
            return None
        return read_document(self.path, FORM, missing=f"{self.path}: no such file", error=SlurmError)

    def _write(self, document):
        write_document(self.path, FORM, document)

    def submit(self, links, files):
        """Submit a chain, or mend the one that is in the queue.

        Parameters
        ----------
        links : list of Link
        files : dict
            Name to text of what the scripts read, laid beside them.

        Returns
        -------
        (document, names of the stages that were submitted)

        Raises
        ------
        SlurmError
            Slurm is absent or refuses a job, or a chain without a failed job is under way; nothing is submitted then.
        """
        with self.locked():
            document, identity = self.read(), digest([links, files])
            known = self._states(document) if document else {}
            is_active = any(job.is_active for job in known.values())
            failed = is_active and self._failed_stage(document, identity, known)
            for name, text in files.items():
                write_text(self.folder / name, text)
            for link in links:
                write_text(self.folder / f"{link.name}.sbatch", link.script)
                write_text(self.folder / f"mend-{link.name}.sbatch", link.mend)
            if failed:
                document["stages"][failed] |= {"restarts": 0, "given_up": ""}
                return document, self._mend(document, failed, known)
            return self._submit_all(links, identity), [link.name for link in links]

    def _failed_stage(self, document, identity, known):
        """Return the first stage of the chain in the queue that has failed, which may be submitted again."""
        if document["stopped"]:
            raise SlurmError(f"{self.folder}: its jobs were stopped and are still ending; try again in a moment")
        if document["identity"] != identity:
            raise SlurmError(
                f"{self.folder}: jobs of another config are in the queue; let them end, or stop them with "
                "'anyecg submit CONFIG --stop'"
            )
        for name, entry in document["stages"].items():
            if _ended_badly(entry, known):
                return name
        raise SlurmError(f"{self.folder}: its chain is under way; see 'anyecg status'")

    def _submit_all(self, links, identity):
        document = {"submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "identity": identity, "stopped": False}
        document["stages"] = stages = {}
        # Refused here, where nothing is in the queue yet, if the disk is full.
        self._write(document)
        with queue.all_or_none() as submit:
            before = None
            for link in links:
                entry = {"n_tasks": link.n_tasks, "restarts": 0, "given_up": "", "jobs": [], "mend": 0, "earlier": []}
                number = submit(
                    self.folder / f"{link.name}.sbatch", "--kill-on-invalid-dep=no",
                    *([f"--dependency={_after(before, {}, link.n_tasks)}"] if before else []),
                )  # fmt: skip
                entry["jobs"] = [f"{number}_{task}" for task in range(link.n_tasks)] or [str(number)]
                stages[link.name] = before = entry
                entry["mend"] = self._submit_mend(submit, link.name, number)
            self._write(document)
        return document

    def _submit_mend(self, submit, name, number):
        return submit(
            self.folder / f"mend-{name}.sbatch", f"--dependency=afternotok:{number}", "--kill-on-invalid-dep=yes"
        )  # fmt: skip

    def _states(self, document):
        return queue.states(
            {job.partition("_")[0] for entry in document["stages"].values() for job in entry["jobs"]}
        )  # fmt: skip

    def states(self):
        """Return (document, {job: queue.Job}); (None, {}) before the first chain."""
        document = self.read()
        return (document, self._states(document)) if document else (None, {})

    def mend(self, name, *, max_restarts):
        """Start the jobs of a stage that were lost again, unless their user must mend something first.

        Called when Slurm says that one of them has failed.

        Returns
        -------
        str : what was done, and why
        """
        with self.locked():
            document = self.read()
            if document is None or name not in document["stages"]:
                raise SlurmError(f"{self.path}: knows no job of '{name}'; submit the chain with 'anyecg submit'")
            entry, known = document["stages"][name], self._settled(document, name)
            # One that Slurm no longer knows has failed, or else is done and will say so.
            failed = [job for job in entry["jobs"] if job not in known] + _ended_badly(entry, known)
            if document["stopped"] or not failed:
                return f"{name}: nothing to mend"
            said = f"{name}: job {failed[0]} {_how_ended(known.get(failed[0]))}"
            if all(job in known and known[job].needs_its_user for job in failed):
                entry["given_up"] = f"its log says what to mend; then run 'anyecg submit' again ({said})"
            elif entry["restarts"] >= max_restarts:
                entry["given_up"] = f"started again {entry['restarts']} times, slurm.max_restarts; see its log ({said})"
            else:
                self._mend(document, name, {job: known[job] for job in known if job not in failed})
                return f"{said}; submitted again as {', '.join(entry['jobs'])}"
            self._write(document)
            return f"{name}: given up: {entry['given_up']}"

    def _settled(self, document, name):
        """Return the states of the jobs once those of a stage are no longer about to end."""
        for _ in range(SECONDS_TO_END):
            known = self._states(document)
            if all(known[job].state != "COMPLETING" for job in document["stages"][name]["jobs"] if job in known):
                break
            time.sleep(1)
        return known

    def _mend(self, document, name, known):
        """Submit the failed jobs of a stage again and make what follows wait for them; return the stages submitted."""
        stages, submitted = document["stages"], []
        names = list(stages)
        before = None
        for following in names[names.index(name) :]:
            entry = stages[following]
            lost = [job for job in entry["jobs"] if job not in known or not known[job].may_end_well]
            if lost:
                self._submit_again(following, entry, lost, _after(before, known, entry["n_tasks"]))
                submitted.append(following)
            for place, job in enumerate(entry["jobs"]):
                if before and job in known and known[job].state == "PENDING":
                    queue.depend(job, _after(before, known, entry["n_tasks"], place))
            before = entry
            self._write(document)
        return submitted

    def _submit_again(self, name, entry, lost, dependency):
        places = [entry["jobs"].index(job) for job in lost]
        options = ["--kill-on-invalid-dep=no"]
        if entry["n_tasks"]:
            options.append(f"--array={','.join(map(str, places))}")
        if dependency:
            options.append(f"--dependency={dependency}")
        # The one that runs may be this process.
        queue.cancel(entry["mend"], waiting=True)
        number = queue.submit(self.folder / f"{name}.sbatch", *options)
        for place in places:
            entry["jobs"][place] = f"{number}_{place}" if entry["n_tasks"] else str(number)
        entry["earlier"] += lost
        entry["restarts"] += 1
        entry["mend"] = self._submit_mend(queue.submit, name, number)

    def stop(self):
        """Cancel all jobs of the chain, first those that would start others again; return how many there were."""
        with self.locked():
            document = self.read()
            if document is None:
                raise SlurmError(f"{self.path}: no chain was submitted from here")
            self._write(document | {"stopped": True})
            active = [job for job, found in self._states(document).items() if found.is_active]
            _cancel(document)
            return len(active)


def _cancel(document):
    stages = document["stages"].values()
    queue.cancel(*(entry["mend"] for entry in stages if entry["mend"]))
    queue.cancel(*dict.fromkeys(job.partition("_")[0] for entry in reversed(stages) for job in entry["jobs"]))


def _ended_badly(entry, known):
    """Return the jobs of a stage that have ended, and not well."""
    return [job for job in entry["jobs"] if job in known and not known[job].may_end_well]


def _how_ended(found):
    return f"ended as {found.state} with exit code {found.exit_code}" if found else "is no longer known to Slurm"


def _after(before, known, n_tasks, place=None):
    """Return what a job waits for: its own task of the array before it, or all jobs of the stage before it.

    What has ended well is left out: Slurm may have forgotten it. Empty without a stage before, or when all have.
    """
    if not before:
        return ""
    by_task = before["n_tasks"] and n_tasks
    waited = [before["jobs"][place]] if by_task and place is not None else before["jobs"]
    waited = [job for job in waited if job not in known or known[job].is_active]
    numbers = list(dict.fromkeys(job.partition("_")[0] for job in waited))
    if len(waited) == len(before["jobs"]) and len(numbers) == 1:
        return f"{'aftercorr' if by_task else 'afterok'}:{numbers[0]}"
    return f"afterok:{':'.join(waited)}" if waited else ""
