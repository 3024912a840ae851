"""Tasks of an evaluation shared by MPI ranks, kept as they are finished, so that a killed run goes on."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from anyecg.kernels.weights import LANES
from anyecg.loaders.errors import AnyECGError, ModelError
from anyecg.loaders.files import digest, replacing
from anyecg.loaders.progress import SharedProgress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.stop import Asked, share_stop

# A task of more units is cut into pieces of so many replicates: a target that few ranks would wait for.
_BIG, _PIECE = 200_000, 4 * LANES
_SECONDS_BETWEEN_FILES = 20.0


@dataclass(frozen=True)
class Measured:
    """What a task gives.

    Attributes
    ----------
    facts : dict
        JSON-like: counts and what else the tables need.
    value : float array, shape (...)
    replicates : function of (first, last)
        To a float array (last - first, ...).
    """

    facts: dict
    value: Any
    replicates: Callable


@dataclass(frozen=True)
class Task:
    """One part of the evaluation that is worked out alone.

    Attributes
    ----------
    key : tuple
        JSON-like, unique; says what it is.
    n_units, n_read : int
        Units that count, and those that are read to find them: what it costs.
    build : function of nothing to Measured
    """

    key: tuple
    n_units: int
    n_read: int
    build: Callable[[], Measured]


@dataclass(frozen=True)
class Done:
    """A finished task."""

    key: tuple
    facts: dict
    value: np.ndarray
    replicates: np.ndarray


def pieces_of(tasks, n_replicates):
    """Return (number of the task, first replicate, last, cost) of each piece, a function of the tasks alone."""
    pieces = []
    for number, task in enumerate(tasks):
        size = _PIECE if task.n_units > _BIG else n_replicates
        for first in range(0, n_replicates, size):
            last = min(first + size, n_replicates)
            # In steps of 0.2 ns, as measured: sorting and fitting cost about as much as 1,250 replicates.
            cost = (task.n_units + 2_000) * (last - first + 1_250) + 50 * task.n_read
            pieces.append((number, first, last, cost))
    return pieces


def share_of(pieces, rank, n_ranks):
    """Return a rank's pieces: neighbours, of about the same cost for each rank, so that few tasks are built twice."""
    cost = np.array([piece[3] for piece in pieces], float)
    middle = np.cumsum(cost) - cost / 2
    return [pieces[n] for n in np.flatnonzero((middle * n_ranks / max(cost.sum(), 1)).astype(int) == rank)]


class _Store:
    """Finished pieces in files of many, written by any rank, read by all.

    Parameters
    ----------
    folder : path
        Of this very evaluation: another config has another one.
    """

    def __init__(self, folder):
        self._folder = Path(folder)
        self._unsaved: dict[str, np.ndarray] = {}
        self.written: list[str] = []
        self._saved_at = time.monotonic()

    def add(self, piece, measured, replicates):
        """Keep a piece; now and then write a file."""
        name = f"{piece[0]}:{piece[1]}"
        self._unsaved |= {
            f"{name}/facts": np.array(json.dumps(measured.facts)), f"{name}/value": np.asarray(measured.value),
            f"{name}/replicates": replicates,
        }  # fmt: skip
        if time.monotonic() - self._saved_at > _SECONDS_BETWEEN_FILES:
            self.save()

    def save(self):
        """Write what is not written yet."""
        if self._unsaved:
            path = self._folder / f"{digest(sorted(self._unsaved))}.npz"
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._unsaved)
            self.written.append(path.name)
        self._unsaved, self._saved_at = {}, time.monotonic()

    def files(self, also=()) -> Iterator[dict]:
        """Read the whole files there are; what a crash left unreadable does not count.

        ``also`` names files of other ranks, which on a shared file system a list of the folder may not show yet.
        """
        for path in sorted({*self._folder.glob("*.npz"), *(self._folder / name for name in also)}):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                    pieces = {name: found[name] for name in found.files}
            except (OSError, ValueError, EOFError, KeyError, BadZipFile):
                continue
            yield pieces

    def names(self):
        """Return which pieces are there."""
        return {name.split("/")[0] for file in self.files() for name in file}

    def remove(self):
        """Remove all of it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def run_tasks(tasks, folder, *, n_replicates, comm, progress=None):
    """Work out tasks on all ranks.

    Parameters
    ----------
    tasks : list of Task
        The same on every rank.
    folder : path
        Where finished pieces are kept until ``Store.remove``; what is there already is not made again.
    comm : MPI communicator
    progress : optional
        What is told instead of a ``SharedProgress``; with its ``advance`` and ``finish``.

    Returns
    -------
    (list of Done on rank 0 and None elsewhere, function that removes the finished pieces)

    Raises
    ------
    Stopped
        A signal asked for it; every rank has finished and kept the piece that it was at.
    """
    store = _Store(folder)
    there = comm.bcast(store.names() if comm.rank == 0 else None)
    pieces = pieces_of(tasks, n_replicates)
    left = [piece for piece in pieces if f"{piece[0]}:{piece[1]}" not in there]
    n_all = sum(piece[3] for piece in pieces) // 1_000_000
    progress = progress or SharedProgress(
        "evaluate", n_all, " M units x replicates", comm, lambda counts, _: f"{counts['rows']} rows"
    )
    progress.advance(n_all - sum(piece[3] for piece in left) // 1_000_000, {})
    error, left_by = None, 0
    with Asked().listening() as asked:
        try:
            number, measured = -1, None
            for piece in share_of(left, comm.rank, comm.size):
                if left_by := asked.number:
                    break
                if piece[0] != number or measured is None:
                    number, measured = piece[0], tasks[piece[0]].build()
                store.add(piece, measured, measured.replicates(piece[1], piece[2]))
                progress.advance(piece[3] // 1_000_000, {"rows": int(piece[1] == 0)})
        except AnyECGError as cause:
            error = cause
        finally:
            store.save()
        progress.finish()
        share_error(comm, error)
        share_stop(comm, left_by, "finished results are kept")
    written = comm.gather(store.written)
    done = None
    if comm.rank == 0:
        done = _collected(tasks, pieces, store.files([name for names in written for name in names]))
    return done, store.remove


def _collected(tasks, pieces, files):
    """Return every task with all its replicates."""
    found = {name: array for file in files for name, array in file.items()}
    if lost := sum(f"{number}:{first}/replicates" not in found for number, first, *_ in pieces):
        raise ModelError(f"{lost} of {len(pieces)} finished pieces cannot be read back; run 'anyecg evaluate' again")
    parts: dict[int, list] = {}
    for number, first, *_ in pieces:
        parts.setdefault(number, []).append(found[f"{number}:{first}/replicates"])
    return [
        Done(
            task.key, json.loads(str(found[f"{number}:0/facts"])), found[f"{number}:0/value"],
            np.concatenate(parts[number]),
        )
        for number, task in enumerate(tasks)
    ]  # fmt: skip
