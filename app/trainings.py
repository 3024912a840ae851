"""Trainings from the page: their data looked at, their config made; the process that runs one is its own and stays."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import tomli_w

from anyecg.app.config import load_config
from anyecg.app.run import CHAIN
from anyecg.loaders.errors import AnyECGError, CohortError, ConfigError
from anyecg.loaders.files import write_text
from anyecg.loaders.lead_names import find_lead
from anyecg.loaders.records import find_files, open_record
from anyecg.loaders.splits import SPLITS
from anyecg.slurm.status import figures

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# What a stage leaves behind when it is done.
_OUTPUTS = dict(zip(CHAIN, (
    "cohort/cohort.json", "shards/index.json", "model/card.json", "scores.h5", "results.json", "report.html",
), strict=True))  # fmt: skip
_STARTED = b"started by the page\n"
_MOST_LINES, _MOST_TAIL, _MOST_OPENED = 2 << 20, 64 << 10, 200
RECORDINGS, LABELS, START = "recordings", "labels.csv", "start.safetensors"


def cohort_of(said):
    """Return what is said of a folder's files of plain numbers as keys of [cohort]."""
    keys = {("lead_names" if name == "leads" else name): value for name, value in said.items()}
    return keys | ({"header": "yes" if keys["header"] else "no"} if "header" in keys else {})


def look(path, labels, *, seed, val_fraction, test_fraction, said, leads=()):
    """Say what recordings and labels would make: the cohort stage's own counts.

    Parameters
    ----------
    path, labels : path
        Folder of recordings, CSV of labels.
    seed : int
    val_fraction, test_fraction : float
    said : dict
        What files of plain numbers do not say: options of ``open_record``.
    leads : sequence of str
        That the training takes; none for the first one.

    Returns
    -------
    dict
        ``flow`` (what, count), ``left_out`` (record, reason; at most 100), ``splits`` (recordings and patients of
        each), ``patients_with_several`` recordings, ``patients_in_two_splits``, ``targets`` (by split: positive,
        negative, not measured), ``values`` (by split: measured), ``head`` (which suits the labels), ``lacking``: what
        the recordings lack of the leads, or empty.

    Raises
    ------
    AnyECGError
        No such folder or CSV, shares that leave nobody to train on, labels of which none is of a recording there.
    """
    from anyecg.loaders.cohort import build_cohort, describe_flow

    cohort_config = _checked({
        "cohort": {
            "path": str(path), "labels": str(labels), "val_fraction": val_fraction, "test_fraction": test_fraction,
            **cohort_of(said),
        },
        "seed": seed,
    }).cohort  # fmt: skip
    cohort = build_cohort(cohort_config, seed=seed)
    if not cohort.records.height:
        raise CohortError(f"no recording with a label: {describe_flow(cohort.flow)}{_names(cohort)}")
    split_V = cohort.visits["split"].to_numpy()
    patients = cohort.visits["patient"]
    split_D = split_V[cohort.draws["visit_row"].to_numpy()]

    def by_split(column, test):
        found = test(cohort.draws[column]).to_numpy()
        return [int((found & (split_D == number)).sum()) for number in range(len(SPLITS))]

    label_DC = cohort.draws.select(cohort.targets).to_numpy()
    exclusive = len(cohort.targets) > 1 and ((label_DC == 1).sum(1) == 1).all() and (label_DC >= 0).all()
    return {
        "flow": cohort.flow,
        "left_out": list(cohort.quarantine.head(100).iter_rows()),
        "splits": {
            name: {"recordings": int((split_V == n).sum()), "patients": patients.filter(split_V == n).n_unique()}
            for n, name in enumerate(SPLITS)
        },
        "patients_with_several": int((patients.value_counts()["count"] > 1).sum()),
        "patients_in_two_splits": cohort.n_overlapping,
        "targets": [
            {
                "name": name, "positive": by_split(name, lambda c: c == 1),
                "negative": by_split(name, lambda c: c == 0), "missing": by_split(name, lambda c: c == -1),
            }
            for name in cohort.targets
        ],
        "values": [
            {"name": name, "measured": by_split(f"value:{name}", lambda c: c.is_not_nan())}
            for name in cohort.components
        ],
        "head": "exclusive" if exclusive else "multilabel" if cohort.targets else "regression",
        "lacking": _lacking(cohort, leads),
    }  # fmt: skip


def _names(cohort):
    """Return, of labels that name no recording, one that they name and some that the folder holds."""
    asked = next((name for name, reason in cohort.quarantine.iter_rows() if reason == "no such record"), None)
    held = list(islice(find_files(cohort.root), 3))
    return f" (asked for {asked!r}; there are {', '.join(map(repr, held))})" if asked is not None and held else ""


def _lacking(cohort, leads):
    """Return what the first recordings lack of some leads, as text."""
    files = cohort.records["path"].head(_MOST_OPENED)
    if not leads:
        return ""
    without = []
    for file in files:
        held = open_record(cohort.root / file, root=cohort.root, **cohort.options).leads
        without += [held] if any(not find_lead(lead, held) for lead in leads) else []
    if not without:
        return ""
    wanted, held = ", ".join(leads), ", ".join(without[0])
    return f"{len(without)} of the first {len(files)} recordings lack a lead of {wanted}: one holds {held}"


def config_text(wish, card=None, weights=""):
    """Return the config that the choices of the page make, as TOML; what it does not name has its default.

    Parameters
    ----------
    wish : dict
        ``path``, ``labels``, ``seed``, ``val_fraction``, ``test_fraction``, ``model``, ``train`` (scratch, head, all),
        ``head``, ``lead``, ``epochs``, ``batch_size``, ``learning_rate``, ``said`` (as for ``look``).
    card : dict, optional
        Of the model to start from, which decides network, rate, filters, leads and windows of a sample.
    weights : str
        Where that model lies.

    Raises
    ------
    ConfigError
        A choice that no config can have.
    """
    fresh = card is None
    if not fresh and wish["train"] == "scratch":
        raise ConfigError("a model to start from was chosen, and training from scratch; choose one of them")
    if fresh and wish["train"] != "scratch":
        raise ConfigError(f"train = {wish['train']!r} wants a model to start from; choose one, or train from scratch")
    n_cores, leads = len(os.sched_getaffinity(0)), leads_of(wish["lead"])
    tree = {
        "folder": ".",
        "seed": wish["seed"],
        "cohort": {"path": wish["path"], "labels": wish["labels"],
                   "val_fraction": wish["val_fraction"], "test_fraction": wish["test_fraction"],
                   **cohort_of(wish["said"])},
        "shard": {"lead": leads if len(leads) > 1 else "".join(leads), "pad_short": True, "ranks": min(2, n_cores)},
        "stream": {"pool_runs": 64},
        "finetune": {
            "model": wish["model"], "head": wish["head"], "epochs": wish["epochs"], "batch_size": wish["batch_size"],
            "learning_rate": wish["learning_rate"], "best_by": "score", "ranks": 1,
        },
        "evaluate": {"ranks": min(2, n_cores)},
    }  # fmt: skip
    if not fresh:
        tree["shard"] |= {"fs": card["fs"], "preset": card["preset"]}
        if card["leads"] != ["first"]:
            tree["shard"]["lead"] = card["leads"][0] if len(card["leads"]) == 1 else card["leads"]
        tree["stream"]["windows_per_sample"] = card["windows_per_sample"]
        tree["finetune"] |= {"model": card["model"], "weights": weights, "train": wish["train"], "join": card["join"]}
    _checked(tree)
    said = "# Made by the page; every key that does not stand here has its default ('anyecg config' lists them all).\n"
    return said + tomli_w.dumps(tree)


def leads_of(text):
    """Return the names of leads that commas part."""
    return [name for part in text.split(",") if (name := part.strip())]


def _checked(tree):
    """Return the config of a tree of keys; its errors as those of a file."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(tomli_w.dumps(tree))
        file.flush()
        try:
            return load_config(Path(file.name))
        except ConfigError as cause:
            raise ConfigError(str(cause).replace(file.name, "config")) from None


class Trainings:
    """The run folders below one folder, and the processes that write in them.

    A run is running while a process holds the lock of its folder, whoever started it; nothing about it is kept here.

    Parameters
    ----------
    runs : Path
    """

    def __init__(self, runs):
        self.runs = runs
        self._started: dict[str, subprocess.Popen] = {}

    def folder(self, name):
        """Return the folder of a run.

        Raises
        ------
        AnyECGError
            No such run.
        """
        folder = self.runs / name
        if not _NAME.fullmatch(name) or not (folder / "config.toml").is_file():
            raise AnyECGError("no such run; look at the list again")
        return folder

    def start(self, name, text, uploads):
        """Make a run folder of a config and start ``anyecg run`` in it.

        Parameters
        ----------
        name : str
        text : str
            The config; its run folder is this one, whatever it says.
        uploads : dict of str to Path
            What is copied beside the config: ``recordings`` (a folder), ``labels.csv``, ``start.safetensors``.

        Raises
        ------
        AnyECGError
            A name that is taken or no name; a config that is none; nothing is left behind.
        """
        if not _NAME.fullmatch(name):
            raise AnyECGError(f"{name[:80]!r}: a run's name is letters, digits, '-', '_' and '.', at most 64")
        folder = self.runs / name
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            raise AnyECGError(f"{name}: there is a run of that name already; give another one") from None
        except OSError as cause:
            raise AnyECGError(f"{folder}: {cause.strerror}; start 'anyecg serve' with another --runs") from None
        try:
            for beside, source in uploads.items():
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / beside)
            write_text(folder / "config.toml", text)
            config = load_config(folder / "config.toml")
            if Path(config.folder).resolve() != folder.resolve():
                raise ConfigError("config: folder: a run of the page writes beside its config; set folder = '.'")
            from anyecg.app.stages import check_inputs

            check_inputs(config)
        except BaseException as cause:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(cause, AnyECGError):
                raise type(cause)(str(cause).replace(f"{folder}/config.toml", "config")) from None
            raise
        self._launch(folder)

    def resume(self, name):
        """Start the same command again; what is done is kept."""
        folder = self.folder(name)
        if self._holder(folder) is not None:
            raise AnyECGError(f"{name}: is running")
        self._launch(folder)

    def _launch(self, folder):
        (folder / "log").mkdir(exist_ok=True)
        with (folder / "log" / "run.log").open("ab") as log:
            log.write(_STARTED)
            log.flush()
            # A session of its own: it goes on when the page and its server end.
            self._started[folder.name] = subprocess.Popen(
                [sys.executable, "-P", "-m", "anyecg.app.cli", "run", str(folder / "config.toml")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def stop(self, name):
        """Ask a run to save and end."""
        holder = self._holder(self.folder(name))
        if holder is None:
            raise AnyECGError(f"{name}: is not running")
        os.kill(holder, signal.SIGTERM)

    def _holder(self, folder):
        """Return the process that writes in a run folder, None where none does."""
        started = self._started.get(folder.name)
        if started is not None:
            if started.poll() is None:
                return started.pid
            del self._started[folder.name]
        return lock_holder(folder / ".lock")

    def listed(self):
        """Return the states of all runs, the newest first."""
        folders = [path.parent for path in self.runs.glob("*/config.toml") if _NAME.fullmatch(path.parent.name)]
        folders.sort(key=lambda folder: (-(folder / "config.toml").stat().st_mtime, folder.name))
        return [self.state(folder.name) for folder in folders]

    def state(self, name):
        """Return where a run is.

        Returns
        -------
        dict
            ``name``; ``state``: running, done, stopped or failed; ``stages``: name and whether its output is there;
            ``stage`` that is under way; ``progress`` of it (``anyecg.slurm.status.figures``); ``said``: the last line
            of a run that ended early; ``has_model``, ``has_report``.
        """
        folder = self.folder(name)
        # In this order: a run that ends in between has its output.
        runs = self._holder(folder) is not None
        there = {stage: (folder / output).is_file() for stage, output in _OUTPUTS.items()}
        stage = next((stage for stage, is_there in there.items() if not is_there), None)
        state, said = ("running", "") if runs else ("done", "") if stage is None else _ending(folder)
        return {
            "name": name, "state": state, "said": said, "stage": stage,
            "stages": [{"name": stage, "done": is_there} for stage, is_there in there.items()],
            "progress": figures(folder / "log" / f"{stage}.log") if runs and stage else None,
            "has_model": there["finetune"], "has_report": there["report"],
        }  # fmt: skip

    def details(self, name, after):
        """Return the state of a run, its config, its results, and what its training wrote since byte ``after``.

        Returns
        -------
        dict
            As ``state``; ``config``; ``results``: rows of results.csv of recordings; ``lines`` of
            ``log/finetune.jsonl``, and ``next``, the byte behind them.
        """
        folder = self.folder(name)
        lines, following = _lines_after(folder / "log" / "finetune.jsonl", after)
        return {
            **self.state(name), "config": (folder / "config.toml").read_text(encoding="utf-8"),
            "results": _results(folder / "results.csv"), "lines": lines, "next": following,
        }  # fmt: skip

    def report(self, name):
        """Return the report of a finished run, as it lies on the disk."""
        path = self.folder(name) / "report.html"
        if not path.is_file():
            raise AnyECGError(f"{name}: has no report yet")
        return path.read_bytes()

    def compared(self, names, out):
        """Lay finished runs side by side, as ``anyecg compare`` does.

        Parameters
        ----------
        names : list of str
            The first one is what the others are compared with.
        out : Path
            Where the tables of the command go; removed again.

        Returns
        -------
        dict
            Of ``anyecg-comparison``.
        """
        from anyecg.app.compare import compare_runs

        folders = [self.folder(name) for name in names]
        try:
            compare_runs([str(folder) for folder in folders], level="draw", horizon_min=60, out=out)
            found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        finally:
            for path in (out, out.with_suffix(".json")):
                path.unlink(missing_ok=True)
        for model, name in zip(found["models"], names, strict=True):
            model["name"] = name
        return found


def lock_holder(path):
    """Return the process of this machine that holds the flock of a file, None where none does."""
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode) and _has_open(int(fields[4]), path):
            return int(fields[4])
    return None


def _has_open(pid, path):
    """Say whether a process has a file open; inodes alone are not unique over file systems."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if link.samefile(path):
                return True
        except OSError:
            continue
    return False


def _ending(folder):
    """Return how a run ended early: stopped or failed, and its last line."""
    try:
        with (folder / "log" / "run.log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_TAIL))
            text = file.read().rpartition(_STARTED)[2].decode(errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("anyecg ")), "")
    if said:
        said = said.replace("run the same command again", "press Resume")
        return "stopped" if "asked to stop by signal" in said or "ended by signal" in said else "failed", said
    if "Traceback (most recent call last)" in text:
        return "failed", f"a fault of AnyECG-Lab, not of yours: {lines[-1]} ({folder}/log/run.log)"
    return "stopped", "ended without a word; resume goes on"


def _lines_after(path, after):
    """Return the JSON objects of a journal that lie whole behind a byte, and the byte behind them."""
    try:
        with path.open("rb") as file:
            file.seek(after)
            data = file.read(_MOST_LINES)
    except OSError:
        return [], 0
    data = data[: data.rfind(b"\n") + 1]
    found = []
    for line in data.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found, after + len(data)


def _results(path):
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error):
        return []
    # A recording's own row, in the widest horizon, where there is one.
    rows.sort(key=lambda row: (row["level"] != "draw", -int(row["horizon_min"])))
    return [row for row in rows if (row["level"], row["horizon_min"]) == (rows[0]["level"], rows[0]["horizon_min"])]
