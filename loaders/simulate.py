"""A simulated double of MC-MED: its exact layout, ECGs from a dynamical model or real beats, and a known best AUROC."""

import fcntl
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from anyecg.loaders.errors import CohortError
from anyecg.loaders.files import code_version, digest, read_document, replacing, write_document
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.sim_law import (
    BLOCK,
    LAW,
    LEVEL_CORRELATION,
    PATIENT_SHARE,
    PLANTED_ABNORMAL,
    WINDOW_SHARE,
    visit_block,
)
from anyecg.loaders.sim_replay import read_sources
from anyecg.loaders.sim_tables import (
    N_NAMES,
    lab_table,
    name_visits,
    numeric_table,
    official_lists,
    summary_table,
    visit_table,
)
from anyecg.loaders.sim_truth import N_BATCHES, batch_truth, combine
from anyecg.loaders.sim_waveforms import write_waveforms
from anyecg.loaders.targets import read_targets

TABLES = ("visits", "labs", "numerics", "waveform_summary")
LISTS = tuple(f"split_{kind}_{name}" for kind in ("random", "chrono") for name in ("train", "val", "test"))
# Written first, and locked while a run writes: the folder is ours and not finished. Written last: it is whole.
STARTED, DONE, PARTS = ".simulation-started", "simulation.json", ".simulation-parts"
SHORTEST_H, LONGEST_H = 0.05, 48.0


def simulate(folder, *, n_visits, hours, seed, comm, replay=None):
    """Write a simulated double of MC-MED and its truth; memory does not grow with the number of visits.

    Parameters
    ----------
    folder : path
        New or empty, or what a stopped run of this left, which starts anew.
    n_visits : int
        1 to 10 million.
    hours : float
        Length of a visit, 0.05 to 48.
    seed : int
    comm : MPI communicator
        Every rank calls this; the bytes are the same on any number of ranks.
    replay : path, optional
        Folder of WFDB records with beat annotations, whose beats are replayed and altered instead of the model's.

    Returns
    -------
    bool
        False when the folder already held just this simulation.

    Raises
    ------
    CohortError
        A number out of range, a folder that holds something else or that another run writes, a disk that refuses.
    """
    folder = Path(folder)
    check_numbers(n_visits, hours, seed)
    error, lock, wanted = None, None, {}
    sources: list = []
    try:
        sources = read_sources(replay) if replay else []
        wanted = {
            "n_visits": n_visits, "hours": hours, "seed": seed,
            "law": digest([repr(LAW), LEVEL_CORRELATION, WINDOW_SHARE, PATIENT_SHARE, PLANTED_ABNORMAL]),
            "replayed": [source.digest for source in sources], "code_version": code_version(),
        }  # fmt: skip
        lock = _make_ready(folder, wanted) if comm.rank == 0 else None
    except CohortError as cause:
        error = cause
    except OSError as cause:
        error = CohortError(f"{folder}: {cause}; give another folder with --out")
    share_error(comm, error)
    if comm.bcast(comm.rank == 0 and lock is None):
        return False
    with lock or nullcontext():
        found = _write_share(folder, wanted, sources, comm)
        try:
            if comm.rank == 0:
                _finish(folder, wanted, found)
        except OSError as cause:
            error = _disk_error(folder, cause)
        share_error(comm, error)
    return True


def check_numbers(n_visits, hours, seed):
    """Refuse numbers out of range."""
    if not 1 <= n_visits <= N_NAMES:
        raise CohortError(f"--visits {n_visits}; wanted 1 to {N_NAMES}")
    if not SHORTEST_H <= hours <= LONGEST_H:
        raise CohortError(f"--hours {hours}; wanted {SHORTEST_H} to {LONGEST_H:g}")
    if not 0 <= seed < 2**63:
        raise CohortError(f"--seed {seed}; wanted 0 to 2**63 - 1")


def _disk_error(folder, cause):
    return CohortError(f"{folder}: {cause}; free space or mend the disk, then run the same command again")


def _make_ready(folder, wanted):
    """Claim a folder and return the file that locks it; None when it already holds just this simulation.

    Only what an unfinished run of this code left is removed, and only under the names that it writes.
    """
    if folder.exists() and not folder.is_dir():
        raise CohortError(f"{folder}: not a folder; give another one with --out")
    done, started = folder / DONE, folder / STARTED
    if done.is_file():
        found = read_document(done, "anyecg-simulation", missing="", error=CohortError)
        sizes = {name: (folder / name).stat().st_size for name in found["n_bytes"] if (folder / name).is_file()}
        if {key: found.get(key) for key in wanted} != wanted or sizes != found["n_bytes"]:
            raise CohortError(f"{folder}: holds another simulation, or a damaged one; give another folder with --out")
        _remove(folder, (PARTS, STARTED))
        return None
    if folder.exists() and any(folder.iterdir()) and not started.is_file():
        raise CohortError(f"{folder}: not empty; give another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = started.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CohortError(f"{folder}: another anyecg simulates there; wait for it, or give another folder") from None
    names = [*(f"{name}.csv" for name in (*TABLES, *LISTS, "truth")), DONE]
    temporaries = [path.name for name in names for path in folder.glob(f".{name}.*.tmp")]
    _remove(folder, ("waveforms", PARTS, *names, *temporaries))
    (folder / PARTS).mkdir()
    return lock


def _remove(folder, names):
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_share(folder, wanted, sources, comm):
    """Write this rank's visits and parts of tables; return the truth of all batches, on every rank."""
    error, batches = None, {}
    with Progress("simulate", wanted["n_visits"] + N_BATCHES, " visits", shown=comm.rank == 0) as progress:
        try:
            _write_blocks(folder, wanted, sources, comm, progress)
            for batch in range(comm.rank, N_BATCHES, comm.size):
                batches[batch] = batch_truth(batch, wanted["hours"])
                progress.advance(min(comm.size, progress.total - progress.done), "truth")
        except OSError as cause:
            error = _disk_error(folder, cause)
        share_error(comm, error)
    found = {batch: truth for of_rank in comm.allgather(batches) for batch, truth in of_rank.items()}
    return [found[batch] for batch in range(N_BATCHES)]


def _write_blocks(folder, wanted, sources, comm, progress):
    seed, hours, n_visits = wanted["seed"], wanted["hours"], wanted["n_visits"]
    for number in range(-(-n_visits // BLOCK)):
        block = visit_block(seed, number, hours)
        n_here = min(BLOCK, n_visits - number * BLOCK)
        names = name_visits(seed, block.number)
        for row in range(comm.rank, n_here, comm.size):
            if block.has_waveforms[row]:
                write_waveforms(folder, str(names[row]), seed, block, row, sources)
            progress.advance(min(comm.size, n_here - row))
        if number % comm.size == comm.rank:
            tables = (
                visit_table(seed, block)[:n_here], lab_table(seed, block, n_here),
                numeric_table(seed, block, n_here, hours), summary_table(seed, block, n_here),
            )  # fmt: skip
            for name, table in zip(TABLES, tables, strict=True):
                table.write_csv(folder / PARTS / f"{name}-{number}.csv", include_header=number == 0)


def _finish(folder, wanted, batches):
    """Join the tables, write the official lists and the truth, and say that the simulation is whole."""
    n_blocks = -(-wanted["n_visits"] // BLOCK)
    for name in TABLES:
        with replacing(folder / f"{name}.csv") as temporary, temporary.open("wb") as table:
            for part in range(n_blocks):
                table.write((folder / PARTS / f"{name}-{part}.csv").read_bytes())
    who = []
    for part in range(n_blocks):
        block = visit_block(wanted["seed"], part, wanted["hours"])
        who.append(np.stack([block.patient, block.arrival, block.number]))
    patient, arrival, number = np.concatenate(who, axis=1)[:, : wanted["n_visits"]]
    for name, csns in official_lists(wanted["seed"], patient, arrival, number).items():
        with replacing(folder / name) as temporary:
            temporary.write_text("".join(f"{csn}\n" for csn in csns))
    with replacing(folder / "truth.csv") as temporary:
        combine(batches, read_targets()).write_csv(temporary)
    sizes = {f"{name}.csv": (folder / f"{name}.csv").stat().st_size for name in (*TABLES, *LISTS, "truth")}
    write_document(folder / DONE, "anyecg-simulation", {**wanted, "n_bytes": sizes})
    _remove(folder, (PARTS, STARTED))
