"""A simulated double of MC-MED: its exact layout, ECGs from a dynamical model, and a known best AUROC."""

import json
import shutil
from pathlib import Path

import numpy as np

from anyecg.loaders.errors import CohortError
from anyecg.loaders.files import replacing, write_document
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.records import find_records
from anyecg.loaders.sim_law import BLOCK, visit_block
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
DONE = "simulation.json"
PARTS = ".parts"


def simulate(folder, *, n_visits, hours, seed, comm, replay=None):
    """Write a simulated double of MC-MED and its truth; memory does not grow with its size.

    Parameters
    ----------
    folder : path
        New or empty, or what a stopped run of this left, which starts anew.
    n_visits : int
        1 to 10 million.
    hours : float
        Length of a visit, above 0.
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
        A number out of range, or a folder that holds something else.
    """
    folder = Path(folder)
    wanted = {"n_visits": n_visits, "hours": hours, "seed": seed, "replayed": find_records(replay) if replay else []}
    error, is_done = None, False
    sources: list = []
    try:
        sources = read_sources(replay) if replay else []
        is_done = comm.rank == 0 and _make_ready(folder, wanted)
    except (CohortError, OSError) as cause:
        error = CohortError(str(cause))
    share_error(comm, error)
    if comm.bcast(is_done):
        return False
    with Progress("simulate", n_visits + N_BATCHES, " visits", shown=comm.rank == 0) as progress:
        _write_blocks(folder, wanted, sources, comm, progress)
        batches = {}
        for batch in range(comm.rank, N_BATCHES, comm.size):
            batches[batch] = batch_truth(batch, hours)
            progress.advance(min(comm.size, progress.total - progress.done), "truth")
        batches = comm.gather(batches)
    if comm.rank == 0:
        found = {batch: truth for of_rank in batches for batch, truth in of_rank.items()}
        _finish(folder, wanted, [found[batch] for batch in range(N_BATCHES)])
    comm.barrier()
    return True


def _make_ready(folder, wanted):
    """Make an empty folder; return whether it already holds just this simulation."""
    if not (1 <= wanted["n_visits"] <= N_NAMES and 0 < wanted["hours"] <= 1000 and 0 <= wanted["seed"] < 2**63):
        raise CohortError(f"{wanted}; wanted 1 to {N_NAMES} visits, more than 0 and at most 1000 hours, a seed from 0")
    if (folder / DONE).is_file():
        found = json.loads((folder / DONE).read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return True
        raise CohortError(f"{folder}: holds another simulation; give another folder with --out")
    if folder.exists() and any(folder.iterdir()) and not (folder / PARTS).is_dir():
        raise CohortError(f"{folder}: not empty; give another folder with --out")
    for name in ("waveforms", PARTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / PARTS).mkdir(parents=True)
    return False


def _write_blocks(folder, wanted, sources, comm, progress):
    """Write this rank's visits, and the rows of its blocks as parts of the tables."""
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
    blocks = [visit_block(wanted["seed"], part, wanted["hours"]) for part in range(n_blocks)]
    patient, arrival, number = (
        np.concatenate([getattr(block, name) for block in blocks])[: wanted["n_visits"]]
        for name in ("patient", "arrival", "number")
    )
    for name, csns in official_lists(wanted["seed"], patient, arrival, number).items():
        (folder / name).write_text("".join(f"{csn}\n" for csn in csns))
    with replacing(folder / "truth.csv") as temporary:
        combine(batches, read_targets()).write_csv(temporary)
    shutil.rmtree(folder / PARTS)
    write_document(folder / DONE, "anyecg-simulation", wanted)
