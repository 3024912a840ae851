"""Write shards: windows, draws and pairs of whole visits in one HDF5 file each, by MPI ranks, restartable."""

import csv
import logging
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from anyecg.loaders.collect import Collector
from anyecg.loaders.errors import AnyECGError, ShardError
from anyecg.loaders.files import code_version, digest, make_folder, remove, replacing, write_quarantine, write_text
from anyecg.loaders.index import write_index
from anyecg.loaders.plan import deal, plan_shards
from anyecg.loaders.progress import SharedProgress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.shard_config import SECONDS
from anyecg.loaders.shard_file import ShardWriter, describe_shard, shard_attributes
from anyecg.loaders.shard_parse import load_filter, scale_columns
from anyecg.loaders.stop import Asked, share_stop

log = logging.getLogger(__name__)
_ANY_SHARD = f"shard-{'[0-9]' * 5}"


def write_shards(folder, cohort, config, comm, *, seed, stage_hash, beside=None):
    """Write every shard of the plan over the ranks of ``comm``, then the index.

    Finished shards of the same plan are kept, so the same command continues after a kill. Same cohort and config give
    the same bytes on any number of ranks.

    Parameters
    ----------
    beside : dict, optional
        Name to text of files to lay beside the index, before it.

    Raises
    ------
    ShardError
        More than ``max_bad_fraction`` of the records are bad, or the disk refuses a write.
    Stopped
        A signal asked for it; the shards under way were finished.
    """
    folder = Path(folder)
    plans = plan_shards(cohort, windows_per_shard=config.windows_per_shard)
    plan_hash = digest([cohort.hash, config.identity("ranks", "max_bad_fraction"), seed, code_version()])
    there = _together(comm, folder, lambda: _make_ready(folder, config, len(plans)) if comm.rank == 0 else None)
    there = comm.bcast(there)
    # Shards that are there are only read; dealt apart, so that what is left to make is spread evenly too.
    kept = deal([plan for plan in plans if plan.number in there], comm.size)[comm.rank]
    to_make = deal([plan for plan in plans if plan.number not in there], comm.size)[comm.rank]
    shards = ShardMaker(folder, cohort, config, seed, plan_hash)
    progress = SharedProgress(
        "shard", sum(plan.n_windows for plan in plans), " windows", comm,
        partial(_describe, 2 * config.n_leads * SECONDS * config.fs),
    )  # fmt: skip
    described, error = {}, None
    with Asked().listening() as asked:
        try:
            for plan in (*kept, *to_make):
                if asked.number:
                    break
                described[plan.number] = shards.keep_or_make(plan, progress)
        except AnyECGError as cause:
            error = cause
        except OSError as cause:
            error = _disk_error(folder, cause)
        progress.finish()
        share_error(comm, error)
        n_left = len(kept) + len(to_make) - len(described)
        share_stop(comm, asked.number if n_left else 0, "finished shards are kept")
    gathered = comm.gather(described)

    def finish():
        if comm.rank == 0:
            for name, text in (beside or {}).items():
                write_text(folder / name, text)
            _finish(folder, cohort, config, {n: d for part in gathered for n, d in part.items()}, stage_hash)

    _together(comm, folder, finish)


def _together(comm, folder, work):
    """Do ``work`` on each rank and return what it gives; where one rank fails, all raise its error."""
    result, error = None, None
    try:
        result = work()
    except AnyECGError as cause:
        error = cause
    except OSError as cause:
        error = _disk_error(folder, cause)
    share_error(comm, error)
    return result


def _disk_error(folder, cause):
    return ShardError(f"{folder}: {cause}; free space or mend the disk, then run again")


def _make_ready(folder, config, n_shards):
    """Remove what a killed run left and shards beyond the plan; return the numbers of the shards that are there.

    The run folder's lock keeps a second writer out.
    """
    load_filter(config.filter, folder)
    make_folder(folder)
    # First the index, so that a folder that was whole is never taken for whole while its shards change.
    remove(folder / "index.json")
    stale = [path for path in folder.glob(f"{_ANY_SHARD}.*") if int(path.name[6:11]) >= n_shards]
    remove(*folder.glob(".*.tmp"), *stale)
    return {int(path.stem[6:]) for path in folder.glob(f"{_ANY_SHARD}.h5")}


def _describe(window_bytes, counts, seconds):
    """Say the rates and the drops beside the progress."""
    rate = counts["windows kept"] / max(seconds, 1e-9)
    drops = [f"{what.split(' dropped: ')[1]} {n}" for what, n in counts.items() if " dropped: " in what and n]
    return f"kept_per_s={rate:.0f} MB_per_s={rate * window_bytes / 1e6:.1f} dropped: {', '.join(drops) or 'none'}"


class ShardMaker:
    """What every shard of this run has in common, and how one is made."""

    def __init__(self, folder, cohort, config, seed, plan_hash):
        self._folder, self._cohort, self._config = folder, cohort, config
        self._seed, self._plan_hash = seed, plan_hash

    def keep_or_make(self, plan, progress):
        """Describe a shard for the index: the one that is there, if it is whole and of this plan, else a new one."""
        path = self._folder / f"shard-{plan.number:05d}.h5"
        quarantine = path.with_suffix(".quarantine.csv")
        if path.exists() and quarantine.exists():
            try:
                kept = describe_shard(path)
                if kept["plan_hash"] == self._plan_hash:
                    log.info("kept shard=%d", plan.number)
                    progress.advance(plan.n_windows, {})
                    return kept
            except ShardError as cause:
                log.warning("made again shard=%d reason=%s", plan.number, cause)
        with replacing(path) as temporary:
            write_quarantine(quarantine, self._write(temporary, plan, progress))
            described = {**describe_shard(temporary), "name": path.name}
        log.info("wrote shard=%d windows=%d", plan.number, described["lengths"]["windows"])
        return described

    def _write(self, path, plan, progress):
        """Write one shard; return its quarantine rows."""
        visits = self._cohort.visits[plan.rows_V]
        of_shard = pl.col("visit_row").is_in(plan.rows_V.tolist())
        records = self._cohort.records.filter(of_shard).partition_by("visit_row", as_dict=True)
        draws, visit_D = _draws_in_order(self._cohort.draws.filter(of_shard), plan.rows_V)
        time_D = draws["time"].to_numpy()
        first_draw = np.searchsorted(visit_D, np.arange(len(plan.rows_V) + 1))
        collector = Collector(self._cohort, self._config, self._seed)
        counts: Counter = Counter({"records kept": 0, "windows cut": 0, "windows kept": 0})
        parts: dict[str, list] = defaultdict(list)
        attributes = shard_attributes(self._cohort, self._config, plan.split, self._plan_hash)
        with ShardWriter(path, attributes) as writer:
            for number, row in enumerate(plan.rows_V):
                here = slice(first_draw[number], first_draw[number + 1])
                rows, found = collector.visit(
                    visits.row(number, named=True), records[(row,)], time_D[here], writer.append
                )  # fmt: skip
                for name, values in _rows_in_shard(rows, number, counts["windows kept"], here.start, time_D).items():
                    parts[name].append(values)
                counts.update(found)
                progress.advance(int(plan.windows_V[number]), found)
            sets = {name: np.concatenate(arrays) for name, arrays in parts.items()}
            sets |= _tables(self._cohort, visits, draws, visit_D)
            lengths = {"windows": counts["windows kept"], "draws": draws.height, "visits": visits.height}
            writer.finish(sets, +(counts + Counter(lengths) + Counter(pairs=len(sets["pairs/window"]))))
        return collector.quarantine


def _draws_in_order(draws, rows_V):
    """Return the draws of a shard by visit and time, and the visit of each, counted within the shard."""
    local = {int(row): number for number, row in enumerate(rows_V)}
    visit_D = draws["visit_row"].replace_strict(local, return_dtype=pl.Int32).to_numpy()
    order = np.lexsort([draws["time"].to_numpy(), visit_D])
    return draws[order], visit_D[order]


def _rows_in_shard(rows, visit, first_window, first_draw, time_D):
    """Return the sets of one visit, its rows counted within the shard."""
    draw = first_draw + rows.draw
    return {
        "windows/scale": rows.scale_WL.reshape(len(rows.scale_WL), *scale_columns(rows.scale_WL.shape[1])),
        "windows/visit": np.full(len(rows.scale_WL), visit),
        "windows/start": rows.start_W,
        "windows/flags": rows.flags_W,
        "pairs/window": first_window + rows.window,
        "pairs/draw": draw,
        "pairs/offset": (rows.start_W[rows.window] - time_D[draw]) / 1e6,
        "pairs/horizons": rows.horizons,
    }


def _tables(cohort, visits, draws, visit_D):
    """Return the sets of a shard's draws and visits."""
    values = draws.select(f"value:{component}" for component in cohort.components).to_numpy()
    return {
        "draws/labels": draws.select(cohort.targets).to_numpy().reshape(draws.height, len(cohort.targets)),
        "draws/values": values.reshape(draws.height, len(cohort.components)),
        "draws/time": draws["time"].to_numpy(),
        "draws/visit": visit_D,
        **{f"visits/{name}": visits[name].to_numpy() for name in ("patient", "visit", "split", "age", "sex")},
    }


def _finish(folder, cohort, config, described, stage_hash):
    """Check that nothing was lost, write the quarantine table and the index."""
    # A rank of a killed run may have outlived the removal at the start.
    remove(*folder.glob(".*.tmp"))
    counts: Counter = Counter()
    lines = list(cohort.quarantine.iter_rows())
    for number in sorted(described):
        counts.update(described[number]["counts"])
        with (folder / f"shard-{number:05d}.quarantine.csv").open(newline="", encoding="utf-8") as file:
            lines += list(csv.reader(file))[1:]
    write_quarantine(folder / "quarantine.csv", lines)
    n_bad = counts["records dropped: unreadable"]
    if n_bad > config.max_bad_fraction * counts["records"]:
        raise ShardError(
            f"{n_bad} of {counts['records']} records are unreadable, more than max_bad_fraction "
            f"{config.max_bad_fraction}; see {folder / 'quarantine.csv'}"
        )
    if not counts["windows"]:
        raise ShardError(f"no window was kept of {counts['records']} records; see {folder / 'quarantine.csv'}")
    dropped = sum(n for what, n in counts.items() if what.startswith("records dropped"))
    assert counts["records"] == cohort.records.height == counts["records kept"] + dropped
    lost = sum(n for what, n in counts.items() if what.startswith("windows dropped"))
    assert counts["windows cut"] == counts["windows kept"] + lost
    assert counts["windows kept"] == counts["windows"]
    in_order = [described[number] for number in sorted(described)]
    head = {"stage_hash": stage_hash, "cohort_hash": cohort.hash, "counts": dict(sorted(counts.items()))}
    write_index(folder, in_order, head, may_overlap=cohort.may_overlap)
