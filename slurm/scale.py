"""What the ranks of one job of a scaling experiment do: measure each part in both kinds of scaling, and stop early.

The rule: blocks of equal work of about a twentieth of the seconds given. Calls that warm up, and those that tell how
many calls a block needs, do not count. A part ends when the 95 % CI of its rate is within 3 % of it, after five blocks
or more, or when the seconds are over, after two blocks or more; the ranks decide from the same numbers.
"""

import logging
import math
import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from anyecg.loaders.errors import AnyECGError, CohortError
from anyecg.loaders.index_form import CHUNK_COLUMNS
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.shard_parse import CHUNK_WINDOWS
from anyecg.slurm.limits import repeat
from anyecg.slurm.scale_numbers import KINDS, PARTS, is_precise, overlap_of_draws, ratio_of
from anyecg.slurm.scale_parts import BatchPart, EvaluatePart, ShardPart, remove_folder, samples_of

MAX_SECONDS = 3600
BLOCKS_IN_TIME, LEAST_BLOCKS, MOST_CALLS = 20, 2, 1_000_000
# Pairs that use a stored window where draws have no times, as in a folder of labelled records: measured on a simulated
# MC-MED of 5.8 draws a visit (docs/scale.md).
OVERLAP = {"cap binds": (1.79, 0.0), "cap does not bind": (2.4, 0.0)}


def check_request(parts, seconds):
    """Refuse parts that do not exist and a time out of range.

    Raises
    ------
    AnyECGError
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts or len(set(parts)) < len(parts):
        raise AnyECGError(f"--parts {','.join(parts)}; wanted some of {','.join(PARTS)}, each once")
    if not 0 < seconds <= MAX_SECONDS:
        raise AnyECGError(f"--seconds {seconds:g}; wanted more than 0 and at most {MAX_SECONDS}")


def hold_to_cores(rank, n_ranks):
    """Hold this process to its share of this machine's cores, shared as if ``n_ranks`` ran; to be called first of all.

    So a rank has the same cores whether one or all of them run. More ranks than cores are left where they are.
    """
    cores = sorted(os.sched_getaffinity(0))
    n_each = len(cores) // n_ranks
    if n_each:
        os.sched_setaffinity(0, cores[rank * n_each : (rank + 1) * n_each])


def measure(config, comm, *, parts, seconds, folder, largest=None):
    """Measure parts of a run on the ranks of this job.

    Parameters
    ----------
    config : Config
        Of a run whose cohort and shards are there.
    comm : MPI communicator
        Every rank calls this.
    parts : list of str
        Of ``PARTS``.
    seconds : float
        At most so long for each part and kind of scaling, without warm-up.
    folder : Path
        Of this job alone, for what is written for a while; on the file system of the run's shards.
    largest : int, optional
        Ranks of the largest job of the experiment, which decide how much work a block of strong scaling is; this job's.

    Returns
    -------
    dict on rank 0, else None
        The document ("anyecg-scale") that ``anyecg.slurm.scale_numbers`` reads.

    Raises
    ------
    AnyECGError
        No whole shards or no training pairs; no room; a part that cannot run.
    """
    from anyecg.loaders.cohort import open_cohort
    from anyecg.loaders.index import open_index
    from anyecg.slurm.profile import check_shards, counted, machine_of, setting_of, versions
    from anyecg.train.distributed import device_of, join, leave
    from anyecg.train.shared import Node

    check_request(parts, seconds)
    shards = Path(config.folder) / "shards"
    check_shards(shards, config, 1.0)
    index = open_index(shards)
    cohort = open_cohort(Path(config.folder) / "cohort")
    if cohort.hash != index.head["cohort_hash"]:
        raise CohortError(f"{config.folder}: the shards are of another cohort; run 'anyecg shard' with the same config")
    _empty(comm, folder)
    # A line for every shard of every block says nothing here.
    logging.getLogger("anyecg.loaders.shards").setLevel(logging.WARNING)
    largest = max(largest or comm.size, comm.size)
    device = join(comm, folder) if "finetune" in parts else device_of(comm)

    def part_of(part, kind, node):
        if part == "shard":
            return ShardPart(config, cohort, comm, folder / "shards", kind=kind, largest=largest)
        if part == "evaluate":
            return EvaluatePart(
                index, config, cohort, comm, folder / "tasks", scores=Path(config.folder) / "scores.h5", node=node,
                kind=kind, largest=largest,
            )  # fmt: skip
        return BatchPart(index, scaled(config, kind, comm.size), comm, device=device, with_model=part == "finetune")

    measured: list[dict] = []
    try:
        with Progress("scale", 2 * len(parts) * seconds, " s", shown=comm.rank == 0) as progress:
            for part in parts:
                for kind in KINDS:
                    if kind == "weak" and comm.size == 1 and part != "shard":
                        # On one rank both kinds are the same work.
                        measured.append({**measured[-1], "kind": kind})
                        progress.advance(seconds, part)
                        continue
                    with ExitStack() as stack:
                        node = stack.enter_context(Node(comm))
                        work = stack.enter_context(closing(part_of(part, kind, node)))
                        found = _measure(work, comm, seconds, progress, f"{part} {kind}")
                        scaling = _scaling(part, kind, index, config, comm.size, work)
                        measured.append({"part": part, "kind": kind, "note": work.note, **scaling, **found})
        if "finetune" in parts:
            leave(comm, folder)
    finally:
        if comm.rank == 0:
            remove_folder(folder / "shards")
            remove_folder(folder / "tasks")
    machines = comm.gather(machine_of(device))
    cores, gpus = _cores(comm), comm.allreduce(int(device.type == "cuda"))
    nodes = _n_nodes(comm)
    if comm.rank:
        return None
    return {
        "nodes": nodes, "ranks": comm.size, "cores": cores, "gpus": gpus, "largest": largest, "seconds": seconds,
        "setting": setting_of(index, config), "machine": counted(machines), "versions": versions(),
        "data": _data(index, cohort, config), "measured": measured,
    }  # fmt: skip


def _empty(comm, folder):
    """Make an empty folder for this job: what a killed one has left there is removed."""
    error = None
    if comm.rank == 0:
        try:
            for name in ("shards", "tasks"):
                remove_folder(folder / name)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            error = AnyECGError(f"{folder}: {cause.strerror}; mend the disk or the path, then run it again")
    share_error(comm, error)


def scaled(config, kind, n_ranks):
    """Return the config of a kind of scaling: weak has the config's batch a rank, and a learning rate to match.

    Notes
    -----
    The rate grows with the square root of the batch: AdamW divides a gradient by its own size, so that its noise, which
    falls with the square root, decides the step (Malladi et al. 2022); the linear rule belongs to plain SGD.
    """
    if kind == "strong":
        return config
    finetune = config.finetune
    changed = {
        "batch_size": finetune.batch_size * n_ranks, "learning_rate": finetune.learning_rate * math.sqrt(n_ranks)
    }  # fmt: skip
    return config.model_copy(update={"finetune": finetune.model_copy(update=changed)})


def _scaling(part, kind, index, config, n_ranks, work):
    """Return what grows with the job, and what it asks of training; None where a part has no such thing."""
    found: dict[str, Any] = dict.fromkeys(("batch", "learning_rate", "warmup_steps", "replicates", "steps_per_window"))
    if part in ("stream", "finetune"):
        finetune = scaled(config, kind, n_ranks).finetune
        found["batch"] = finetune.batch_size
        if part == "finetune":
            # The same share of the training, so the same samples: fewer steps of a larger batch.
            n_steps = finetune.epochs * -(-samples_of(index, config) // finetune.batch_size)
            warmup_steps = max(1, round(finetune.warmup_fraction * n_steps))
            found |= {"learning_rate": finetune.learning_rate, "warmup_steps": warmup_steps}
    if part == "evaluate":
        found |= {"replicates": work.n_replicates, "steps_per_window": work.steps_a_window}
    return found


def _measure(work, comm, seconds, progress, name):
    """Return {"blocks", "stopped"} of one part; every rank is given the same."""
    for _ in range(work.n_warm):
        work.block(1)
    length = seconds / BLOCKS_IN_TIME
    n_calls = comm.bcast(repeat(lambda: int(bool(work.block(1))), length, comm=comm)[0])
    n_calls = min(MOST_CALLS, n_calls)
    blocks: list[dict] = []
    took, stopped = 0.0, ""
    while not stopped:
        did = work.block(n_calls)
        block = dict(zip(did._fields, comm.allreduce(np.array(did, float)).tolist(), strict=True))
        # Those of rank 0; the others' differ by the time of a message.
        block |= {"rank_seconds": block["seconds"], "seconds": comm.bcast(did.seconds)}
        blocks.append(block)
        progress.advance(max(0.0, min(block["seconds"], seconds - took)), name)
        took += block["seconds"]
        stopped = _stopped(blocks, took >= seconds)
    progress.advance(max(0.0, seconds - took), name)
    return {"blocks": blocks, "stopped": stopped, "calls_a_block": n_calls}


def _stopped(blocks, is_over):
    """Return why to stop, or nothing; a function of what all ranks know."""
    if is_precise(blocks):
        return "precise"
    return "time" if is_over and len(blocks) >= LEAST_BLOCKS else ""


def _node_comm(comm):
    from mpi4py import MPI

    return comm.Split_type(MPI.COMM_TYPE_SHARED)


def _n_nodes(comm):
    """Return the nodes of this job, as Slurm counts them; without Slurm the machines that its ranks run on."""
    node = _node_comm(comm)
    n_nodes = comm.allreduce(int(node.rank == 0))
    node.Free()
    return int(os.environ.get("SLURM_STEP_NUM_NODES", n_nodes))


def _cores(comm):
    """Return the cores of this job: those its ranks may run on, but without Slurm no more than their threads."""
    node = _node_comm(comm)
    mine = os.sched_getaffinity(0)
    held = set.union(*node.allgather(mine))
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(mine))
    n_cores = len(held) if "SLURM_JOB_ID" in os.environ else min(len(held), threads * node.size)
    total = comm.allreduce(n_cores if node.rank == 0 else 0)
    node.Free()
    return total


def _data(index, cohort, config):
    """Return what the forecast takes from the shards: size of a window, and how many draws use it."""
    counts = index.head["counts"]
    n_bytes = sum(path.stat().st_size for path in index.folder.iterdir() if path.is_file())
    overlap, where = OVERLAP, "a simulated MC-MED: these draws have no times"
    if cohort.pairing == "horizon":
        overlap, where = _overlap(index, config.finetune.horizon_min), "the draws of these shards"
    return {
        "index_hash": index.hash, "windows": counts["windows"], "pairs": counts["pairs"], "n_bytes": n_bytes,
        "bytes_a_window": _bytes_a_window(index), "pairs_a_window": {k: list(v) for k, v in overlap.items()},
        "overlap_from": where, "windows_per_shard": config.shard.windows_per_shard,
    }  # fmt: skip


def _bytes_a_window(index):
    """Return the bytes of a stored window and its share of the tables, as in shards whose chunks are all full."""
    n_bytes, lengths = CHUNK_COLUMNS.index("n_bytes"), index.head["counts"]
    # Every chunk is stored whole, the last one of a shard too, with room for CHUNK_WINDOWS windows.
    signal = float(np.mean(index.tables["chunks"][:, n_bytes])) / CHUNK_WINDOWS
    rows = {"windows": 17, "pairs": 13, "draws": 12 + len(index.targets) + 4 * len(index.components), "visits": 25}
    # They stand in the shards, and most of them once more in the index.
    return signal + 2 * sum(lengths[name] * size for name, size in rows.items()) / lengths["windows"]


def _overlap(index, half_min):
    """Return case -> (pairs a stored window, its relative standard error): as sampled here, and with all windows."""
    visit_D = np.asarray(index.tables["draw_visit"])
    pairs = index.pairs_of("train", half_min)
    windows = np.unique(np.asarray(index.tables["pair_window"])[pairs])
    n_pairs_V, n_windows_V = np.zeros((2, len(index.tables["visit_split"])))
    np.add.at(n_pairs_V, visit_D[np.asarray(index.tables["pair_draw"])[pairs]], 1)
    np.add.at(n_windows_V, np.asarray(index.tables["window_visit"])[windows], 1)
    there = n_windows_V > 0
    return {
        "cap binds": ratio_of(n_pairs_V[there], n_windows_V[there]),
        "cap does not bind": overlap_of_draws(visit_D, np.asarray(index.tables["draw_time"]), half_min=half_min),
    }
