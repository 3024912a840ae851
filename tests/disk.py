"""A disk that fails or loses power under a stage: every change of a file goes through these functions of os."""

import os
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from mpi4py import MPI

from anyecg.loaders.cohort import open_cohort
from anyecg.loaders.errors import ShardError
from anyecg.loaders.index import open_index
from anyecg.loaders.reader import WindowReader
from anyecg.loaders.shard_config import ShardConfig
from anyecg.loaders.shards import write_shards
from anyecg.loaders.verify import Problem, verify

CHANGES = ("open", "pwrite", "ftruncate", "fsync", "rename", "unlink", "mkdir")


class Job:
    """A small shard stage in this process: a few shards of one chunk each, of real recordings."""

    def __init__(self, cohort, folder):
        self.cohort, self.folder = open_cohort(cohort), Path(folder)
        self.config = ShardConfig(fs=125, preset="none", pad_short=True, windows_per_shard=8)

    def run(self, seed=1):
        """Make what is not there; another seed gives other files of the same sizes."""
        write_shards(self.folder, self.cohort, self.config, MPI.COMM_SELF, seed=seed, stage_hash=f"seed {seed}")

    def files(self):
        """Return the bytes of every file, by name."""
        return {path.name: path.read_bytes() for path in self.folder.glob("*")} if self.folder.is_dir() else {}


@contextmanager
def watched(folder, on_call):
    """Call ``on_call(name, path, descriptor, arguments, call)`` in place of each change below ``folder``."""
    real = {name: getattr(os, name) for name in CHANGES}
    paths: dict = {}

    def make(name):
        def call(target, *arguments, **options):
            path = paths.get(target) if isinstance(target, int) else str(Path(target).absolute())
            if path is None or not f"{path}/".startswith(f"{folder}/"):
                result = real[name](target, *arguments, **options)
                if name == "open":
                    paths.pop(result, None)
                return result
            number = target if isinstance(target, int) else None
            result = on_call(name, path, number, arguments, lambda: real[name](target, *arguments, **options))
            if name == "open":
                paths[result] = path
            return result

        return call

    try:
        for name in CHANGES:
            setattr(os, name, make(name))
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


class Failing:
    """Let the k-th change fail, counted from 0; none where ``k`` is None."""

    def __init__(self, k, number):
        self.k, self.number, self.n_calls, self.what = k, number, 0, ""

    def __call__(self, name, path, descriptor, arguments, call):
        self.n_calls += 1
        if self.n_calls - 1 == self.k:
            self.what = f"{name} {Path(path).name}"
            raise OSError(self.number, os.strerror(self.number), path)
        return call()


class Recording:
    """Keep every change in order, so that the states a disk may hold after a power loss can be made."""

    def __init__(self):
        self.steps: list[tuple] = []

    def __call__(self, name, path, descriptor, arguments, call):
        result = call()
        if name == "open":
            if arguments[0] & os.O_CREAT:
                self.steps.append(("create", path))
        elif name == "pwrite":
            self.steps.append(("write", path, arguments[1], bytes(arguments[0][:result])))
        elif name == "ftruncate":
            self.steps.append(("truncate", path, arguments[0]))
        else:
            self.steps.append((name, path, *(str(Path(other).absolute()) for other in arguments)))
        return result


def _folder(path):
    return str(Path(path).parent)


class _Inode:
    def __init__(self, data=b""):
        self.safe, self.pending = bytes(data), []

    def after(self, kept):
        """Return the content after those of the pending steps that are kept."""
        data = bytearray(self.safe)
        for (what, *details), keep in zip(self.pending, kept, strict=True):
            if keep and what == "write":
                place, new = details
                data.extend(bytes(max(0, place + len(new) - len(data))))
                data[place : place + len(new)] = new
            elif keep:
                data[details[0] :] = bytes(max(0, details[0] - len(data)))
        return bytes(data)


def lose_power(before, steps, root, variant, rng):
    """Return {path: content} that a disk may hold when power is lost after ``steps``.

    Parameters
    ----------
    before : dict
        Path to content at the start, all safe, as are their folders and ``root``.
    variant : str
        ``lost``: nothing is there that was not fsynced, neither content nor name. ``named``: every name is there, no
        content. ``torn``: some names, in order within a folder, and any of the writes.
    """
    now = {path: _Inode(data) for path, data in before.items()}
    folders, safe = {root, *map(_folder, before)}, dict(now)
    safe_folders = set(folders)
    pending: list[tuple] = []  # changes of names that no fsync of their folder has made safe

    def apply(names, known, step):
        what, path, *details = step
        if what == "mkdir":
            known.add(path)
        elif what == "create":
            names[path] = details[0]
        elif what == "unlink":
            names.pop(path, None)
        elif what == "rename" and path in known:
            known.remove(path)
            known.add(details[0])
            for name in [name for name in names if name.startswith(f"{path}/")]:
                names[details[0] + name.removeprefix(path)] = names.pop(name)
        elif what == "rename":
            inode = names.pop(path, None) or details[1]
            names[details[0]] = inode

    for what, path, *details in steps:
        if what in ("write", "truncate"):
            now[path].pending.append((what, *details))
        elif what == "fsync" and path in folders:
            for step in [step for step in pending if _folder(step[1]) == path]:
                apply(safe, safe_folders, step)
                pending.remove(step)
        elif what == "fsync":
            inode = now[path]
            inode.safe, inode.pending = inode.after([True] * len(inode.pending)), []
        else:
            step = (what, path, *details)
            if what == "create":
                step = (what, path, _Inode())
            elif what == "rename":
                step = (what, path, *details, now.get(path))
            apply(now, folders, step)
            pending.append(step)
    if variant != "lost":
        stop = {}
        for folder in {_folder(step[1]) for step in pending}:
            n_steps = sum(_folder(step[1]) == folder for step in pending)
            stop[folder] = n_steps if variant == "named" else rng.randint(0, n_steps)
        for step in pending:
            folder = _folder(step[1])
            if stop[folder]:
                stop[folder] -= 1
                apply(safe, safe_folders, step)
    there = {path: inode for path, inode in safe.items() if _folder(path) in safe_folders}
    return {
        path: inode.after([variant == "torn" and rng.random() < 0.5 for _ in inode.pending])
        for path, inode in there.items()
    }


def lay(state, folder):
    """Make ``folder`` hold just the files of a state."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, data in state.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)


def record(job, seed=1):
    """Run a job on its folder as it is; return (what was there before, the steps)."""
    before = {str(job.folder / name): data for name, data in job.files().items()}
    return before, record_changes(job.folder, lambda: job.run(seed))


def record_changes(folder, work):
    """Return the steps of some work below a folder."""
    recording = Recording()
    with watched(str(folder), recording):
        work()
    return recording.steps


def after_power_loss(job, state, whole):
    """Check one state: no index or a whole folder, then the same bytes; return which of the two it was.

    ``whole`` are the two folders that may be there: of the run that was interrupted, of the one before.
    """
    lay(state, job.folder)
    found = "no index"
    if (job.folder / "index.json").exists():
        found = "whole"
        assert verify(job.folder)[1] == []
        assert job.files() in whole
    job.run()
    assert job.files() == whole[0]
    return found


def power_losses(n_points, seed):
    """Yield (point from 0 to 1, variant, random numbers) of ``n_points`` losses of power."""
    rng = random.Random(seed)
    for number in range(n_points):
        yield rng.random(), ("lost", "named", "torn")[number % 3], random.Random(seed * 1_000_003 + number)


def harm(data, rng, places):
    """Flip a bit, or cut, or zero a page, at random; return (what, new bytes).

    Every second time that is at one of the places, (start, stop), where there are any.
    """
    start, stop = rng.choice(places) if places and rng.random() < 0.5 else (0, len(data))
    kind, first = rng.choice(["flip"] * 10 + ["cut", "zero"]), rng.randrange(start, stop)
    if kind == "flip":
        return kind, data[:first] + bytes([data[first] ^ 1 << rng.randrange(8)]) + data[first + 1 :]
    if kind == "cut":
        return kind, data[:first]
    first -= first % 4096
    page = data[first : first + 4096]
    return kind, data[:first] + bytes(len(page)) + data[first + 4096 :]


def found_harm(path, rng):
    """Harm a file of a whole folder, check that it is found, and mend it; return what was done.

    ``verify`` names the file, and the windows of a chunk of signal; a training read of them names them too.
    """
    folder, data = path.parent, path.read_bytes()
    chunks = open_index(folder).tables["chunks"].tolist() if path.suffix == ".h5" else []
    chunks = [chunk for chunk in chunks if chunk[0] == int(path.stem[6:])]
    kind, harmed = harm(data, rng, [(at, at + n_bytes) for *_, at, n_bytes, _ in chunks])
    if harmed == data:
        return "page was zero"
    hit = [
        (window, window + n - 1) for _, window, n, at, n_bytes, _ in chunks
        if harmed[at : at + n_bytes] != data[at : at + n_bytes]
    ]  # fmt: skip
    path.write_bytes(harmed)
    try:
        problems = verify(folder)[1]
    except ShardError as cause:
        problems = [Problem("index.json", str(cause))]
    assert [problem.file for problem in problems] == [path.name] * max(1, len(hit)), (kind, problems)
    if hit:
        base = chunks[0][1]
        assert [(p.first_window, p.last_window) for p in problems] == [(a - base, b - base) for a, b in hit]
        for window, stop in hit:
            reader = WindowReader(open_index(folder))
            with pytest.raises(ShardError, match=f"windows {window} to {stop} of the index are damaged"):
                reader.read([window])
            reader.close()
    path.write_bytes(data)
    return f"{kind} in a chunk" if hit else kind
