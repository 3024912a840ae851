"""Write shards: windows, draws and pairs of whole visits in one HDF5 file each, by MPI ranks, restartable."""

import csv
import json
import logging
import zlib
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from pydantic import Field

from anyecg.kernels.prepare import prepare, preset_hash
from anyecg.kernels.resample import resample
from anyecg.kernels.segment import (
    DROPPED,
    FLAG_NAMES,
    FLAT,
    GAP_FILLED,
    NONFINITE,
    PADDED,
    fill_gaps,
    grid,
    quality,
    quantise,
)
from anyecg.loaders.cohort import SPLITS
from anyecg.loaders.errors import AnyECGError, RecordError, ShardError
from anyecg.loaders.files import FORMATS, check_format, code_version, digest, file_hash, replacing, write_quarantine
from anyecg.loaders.index import write_index
from anyecg.loaders.progress import Progress
from anyecg.loaders.ranks import share_error
from anyecg.loaders.records import open_record
from anyecg.loaders.settings import Section

log = logging.getLogger(__name__)
SECONDS = 10
CHUNK_WINDOWS = 64
ALL_HORIZONS = 0b111
SETS = {
    "windows/scale": np.float32,
    "windows/visit": np.int32,
    "windows/start": np.int64,
    "windows/flags": np.uint8,
    "draws/labels": np.int8,
    "draws/values": np.float32,
    "draws/time": np.int64,
    "draws/visit": np.int32,
    "pairs/window": np.int32,
    "pairs/draw": np.int32,
    "pairs/offset": np.float32,
    "pairs/horizons": np.uint8,
    "visits/patient": np.uint64,
    "visits/visit": np.uint64,
    "visits/split": np.int8,
    "visits/age": np.float32,
    "visits/sex": np.int8,
}


class ShardConfig(Section):
    """How recordings become windows, and windows shards."""

    preset: str = Field(
        "ecgfounder",
        pattern="^(ecgfounder|ecgfounder-paper|none)$",
        description="filters of each window: ecgfounder, ecgfounder-paper or none",
    )
    fs: int = Field(500, ge=101, le=10_000, description="sampling rate of the stored windows in Hz")
    lead: str = Field("", description="name of the lead to take; empty for the first")
    pad_short: bool = Field(False, description="zero-pad recordings shorter than a window instead of dropping them")
    windows_per_shard: int = Field(50_000, ge=1, description="about how many windows a shard holds (10 kB each)")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="stop when more than this share of records is bad")
    ranks: int = Field(2, ge=1, description="MPI ranks that shard, started on this machine")


def plan(cohort, config):
    """Return the visit rows of each shard, by split and pseudonymous key: a function of cohort and config alone."""
    seconds = np.zeros(cohort.visits.height)
    lengths = (cohort.records["n_samples"] / cohort.records["fs"]).to_numpy()
    np.add.at(seconds, cohort.records["visit_row"].to_numpy(), lengths)
    keys, splits = cohort.visits["visit"].to_numpy(), cohort.visits["split"].to_numpy()
    shards = []
    for split in range(len(SPLITS)):
        rows = np.flatnonzero(splits == split)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        n_before = np.concatenate([[0], np.cumsum(seconds[rows] // SECONDS)[:-1]])
        shard_of = n_before // config.windows_per_shard
        shards += [rows[shard_of == number] for number in np.unique(shard_of)]
    return shards


def cut_record(record, config, *, keep_all=False):
    """Cut one recording into stored windows, on one grid from its start.

    Parameters
    ----------
    record : anyecg.loaders.records.Record
    config : ShardConfig
    keep_all : bool
        Drop no window, store zeros for those that are flat or not finite, and pad a short recording (prediction).

    Returns
    -------
    (signal_WT int16, scale_W, start_W in seconds, flags_W uint8, counts)
        ``counts`` has windows cut, windows kept, and windows dropped by reason; cut = kept + dropped.

    Raises
    ------
    RecordError
        Unreadable, or a sampling rate that makes no rational ratio with ``config.fs``.
    """
    n_out = SECONDS * config.fs
    signal, was_filled = fill_gaps(record.read(), fs=record.fs)
    n_in = int(SECONDS * record.fs)
    start_in_W = grid(len(signal), fs=record.fs, seconds=SECONDS)
    padded = 0 < len(signal) < SECONDS * record.fs and (config.pad_short or keep_all)
    if padded:
        start_in_W, n_in = np.zeros(1, np.int64), len(signal)
    counts: Counter = Counter({"windows cut": len(start_in_W), "windows kept": 0})
    raw_WT = np.stack([signal[s : s + n_in] for s in start_in_W]) if len(start_in_W) else np.empty((0, n_in))
    flags_W = quality(raw_WT, fs=record.fs)
    flags_W[[was_filled[s : s + n_in].any() for s in start_in_W]] |= GAP_FILLED
    flags_W[:] |= PADDED if padded else 0
    good_W = (flags_W & (FLAT | NONFINITE if keep_all else DROPPED)) == 0
    stored_WT = np.zeros((len(good_W), n_out), np.float32)
    if good_W.any():
        try:
            # Beyond a long gap the filter sees zeros, as it does beyond the ends of the record.
            rate_T = resample(np.nan_to_num(signal, nan=0.0), fs_in=record.fs, fs_out=config.fs)
        except ValueError as cause:
            raise RecordError(f"{record.name}: {cause}") from None
        n_used = min(len(rate_T), n_out) if padded else n_out
        start_out_W = np.zeros(1, np.int64) if padded else grid(len(rate_T), fs=config.fs, seconds=SECONDS)
        window_WT = np.stack([rate_T[s : s + n_used] for s in start_out_W[: len(good_W)][good_W]])
        preset = config.preset if n_used >= config.fs else "none"
        stored_WT[good_W, :n_used] = prepare(window_WT, fs=config.fs, preset=preset, zscore=False)
    kept_W = np.ones_like(good_W) if keep_all else good_W
    for flags in flags_W[~kept_W]:
        reason = next(name for flag, name in FLAG_NAMES.items() if flags & flag & DROPPED)
        counts[f"windows dropped: {reason}"] += 1
    counts["windows kept"] = int(kept_W.sum())
    return (*quantise(stored_WT[kept_W]), start_in_W[kept_W] / record.fs, flags_W[kept_W], counts)


def _collect(cohort, rows, config):
    """Return the sets of one shard, its counts and its quarantine rows."""
    visits = cohort.visits[rows]
    records = cohort.records.filter(pl.col("visit_row").is_in(rows.tolist()))
    draws = cohort.draws.filter(pl.col("visit_row").is_in(rows.tolist()))
    local = {int(row): number for number, row in enumerate(rows)}
    counts: Counter = Counter()
    quarantine: list[tuple[str, str]] = []
    signals, columns = [], []
    by_visit = records.partition_by("visit_row", as_dict=True)
    for row in rows:
        for path, start in by_visit[(row,)].select("path", "start").iter_rows():
            counts["records"] += 1
            try:
                record = open_record(cohort.root / path, lead=config.lead or None, root=cohort.root)
                signal_WT, scale_W, start_W, flags_W, found = cut_record(record, config)
            except RecordError as cause:
                counts["records dropped: unreadable"] += 1
                quarantine.append((path, f"unreadable: {cause}"))
                continue
            counts.update(found)
            if not len(scale_W):
                reason = "every window dropped" if found["windows cut"] else "shorter than a window"
                counts[f"records dropped: {reason}"] += 1
                quarantine.append((path, reason))
                continue
            counts["records kept"] += 1
            signals.append(signal_WT)
            start_us = start + np.round(start_W * 1e6).astype(np.int64)
            columns.append((scale_W, np.full(len(scale_W), local[int(row)], np.int32), start_us, flags_W))
    n_samples = SECONDS * config.fs
    sets = {name: np.empty(0, dtype) for name, dtype in SETS.items()}
    sets["windows/signal"] = np.concatenate([np.empty((0, n_samples), np.int16), *signals])[:, None, :]
    if columns:
        names = ("windows/scale", "windows/visit", "windows/start", "windows/flags")
        sets.update(zip(names, (np.concatenate(column) for column in zip(*columns, strict=True)), strict=True))
    for flag, what in FLAG_NAMES.items():
        n_flagged = int(((sets["windows/flags"] & flag) > 0).sum())
        if n_flagged:
            counts[f"windows kept but flagged: {what}"] = n_flagged
    draws = draws.with_columns(pl.col("visit_row").replace_strict(local, return_dtype=pl.Int32).alias("local"))
    draws = draws.sort("local", "time", maintain_order=True)
    sets["draws/labels"] = draws.select(cohort.targets).to_numpy().astype(np.int8).reshape(-1, len(cohort.targets))
    sets["draws/values"] = np.empty((draws.height, 0), np.float32)
    sets["draws/time"], sets["draws/visit"] = draws["time"].to_numpy(), draws["local"].to_numpy()
    # A folder's record is its own draw: every window of the visit is a pair with every horizon.
    window, draw = np.nonzero(sets["windows/visit"][:, None] == sets["draws/visit"][None, :])
    sets["pairs/window"], sets["pairs/draw"] = window, draw
    sets["pairs/offset"] = (sets["windows/start"][window] - sets["draws/time"][draw]) / 1e6
    sets["pairs/horizons"] = np.full(len(window), ALL_HORIZONS)
    for name in ("patient", "visit", "split", "age", "sex"):
        sets[f"visits/{name}"] = visits[name].to_numpy()
    sets = {name: values.astype(SETS.get(name, np.int16), copy=False) for name, values in sets.items()}
    counts.update({name: len(sets[f"{name}/visit"]) for name in ("windows", "draws", "visits")})
    counts["pairs"] = len(window)
    return sets, counts, quarantine


def shard_attributes(cohort_targets, config, split, plan_hash):
    """Return the attributes of a shard: what it means, never where or by whom it was made."""
    return {
        "format": "anyecg-shard",
        "version": FORMATS["anyecg-shard"],
        "code_version": code_version(),
        "fs": config.fs,
        "samples": SECONDS * config.fs,
        "leads": json.dumps([config.lead or "first"]),
        "preset": config.preset,
        "preset_hash": preset_hash(config.preset, config.fs),
        "targets": json.dumps(list(cohort_targets)),
        "target_hash": digest(list(cohort_targets)),
        "split": SPLITS[split],
        "plan_hash": plan_hash,
    }


def _write_shard(path, sets, attributes, counts):
    """Write a shard, read it back whole, and describe it for the index."""
    with replacing(path) as temporary:
        with h5py.File(temporary, "w", libver=("v110", "v110")) as file:
            file.attrs.update(attributes)
            file.attrs["counts"] = json.dumps(counts, sort_keys=True)
            for name, values in sorted(sets.items()):
                n_rows = CHUNK_WINDOWS if name == "windows/signal" else 16_384
                file.create_dataset(
                    name, data=values, maxshape=(None,) * values.ndim, fletcher32=True,
                    chunks=(n_rows, *(max(1, n) for n in values.shape[1:])),
                )  # fmt: skip
        described = describe_shard(temporary)
    return {**described, "name": path.name}


def describe_shard(path):
    """Read a whole shard, every checksum verified, and describe it for the index.

    Raises
    ------
    ShardError
        Damaged, another version, a set that is missing, an external link or storage, an unknown filter.
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            check_format(path, "anyecg-shard", attributes.get("format"), int(attributes.get("version", -1)), ShardError)
            lengths = {name: _check_set(file, name, path) for name in (*SETS, "windows/signal")}
            signal = file["windows/signal"]
            chunks = []
            for number in range(signal.id.get_num_chunks()):
                info = signal.id.get_chunk_info(number)
                stored = signal.id.read_direct_chunk(info.chunk_offset)[1]
                n_rows = min(CHUNK_WINDOWS, len(signal) - info.chunk_offset[0])
                chunks.append((info.chunk_offset[0], n_rows, info.byte_offset, info.size, zlib.crc32(stored)))
    except (OSError, KeyError, ValueError, RuntimeError) as cause:
        raise ShardError(f"{path}: damaged ({cause}); remove it and run 'anyecg shard' again") from None
    return {
        "name": Path(path).name,
        "sha256": file_hash(path),
        "n_bytes": Path(path).stat().st_size,
        "split": attributes["split"],
        "plan_hash": attributes["plan_hash"],
        "counts": json.loads(attributes["counts"]),
        "chunks": sorted(chunks),
        "lengths": {name: lengths[f"{name}/visit"] for name in ("windows", "draws", "visits")}
        | {"pairs": lengths["pairs/window"]},
    }


def _check_set(file, name, path):
    """Refuse a set that is not stored in the file itself as this code stores it; read it, return its length."""
    group, leaf = name.split("/")
    if not isinstance(file.get(group, getlink=True), h5py.HardLink) or leaf not in file[group]:
        raise ShardError(f"{path}: {name} is missing or linked from elsewhere; make the shard again")
    if not isinstance(file[group].get(leaf, getlink=True), h5py.HardLink):
        raise ShardError(f"{path}: {name} is linked from elsewhere; refuse files from elsewhere")
    dataset = file[name]
    wanted = np.dtype(SETS.get(name, np.int16))
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ShardError(f"{path}: {name} is not stored in the file itself; refuse files from elsewhere")
    n_filters = dataset.id.get_create_plist().get_nfilters()
    if dataset.dtype != wanted or not dataset.fletcher32 or n_filters != 1:
        raise ShardError(f"{path}: {name} has type {dataset.dtype} or other filters; wanted {wanted} with Fletcher32")
    dataset[...]
    return len(dataset)


def _make_shard(folder, number, rows, cohort, config, plan_hash):
    path = folder / f"shard-{number:05d}.h5"
    if path.exists():
        try:
            kept = describe_shard(path)
            if kept["plan_hash"] == plan_hash:
                log.info("kept shard=%d", number)
                return kept
        except ShardError as cause:
            log.warning("made again shard=%d reason=%s", number, cause)
    sets, counts, quarantine = _collect(cohort, rows, config)
    split = int(cohort.visits["split"][int(rows[0])])
    write_quarantine(folder / f"shard-{number:05d}.quarantine.csv", quarantine)
    described = _write_shard(path, sets, shard_attributes(cohort.targets, config, split, plan_hash), counts)
    log.info("wrote shard=%d windows=%d", number, counts["windows"])
    return described


def _remove_leftovers(folder, n_shards):
    """Remove temporaries of a killed run and shards beyond the plan; the run folder's lock keeps writers apart."""
    stale = [path for path in folder.glob("shard-*") if int(path.name[6:11]) >= n_shards]
    for path in [*folder.glob(".*.tmp"), *stale]:
        path.unlink(missing_ok=True)


def write_shards(folder, cohort, config, comm, *, stage_hash):
    """Write every shard of the plan over the ranks of ``comm``, then the index.

    Finished shards of the same plan are kept, so the same command continues after a kill. Same cohort and config give
    the same bytes on any number of ranks.

    Raises
    ------
    ShardError
        More than ``max_bad_fraction`` of the records are bad, or the disk refuses a write.
    """
    folder = Path(folder)
    shards = plan(cohort, config)
    if comm.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder, len(shards))
        (folder / "index.json").unlink(missing_ok=True)
    comm.barrier()
    plan_hash = digest([cohort.hash, config.identity("ranks", "max_bad_fraction"), code_version()])
    described, error = {}, None
    with Progress("shard", len(shards), " shards", shown=comm.rank == 0) as progress:
        try:
            for number in range(comm.rank, len(shards), comm.size):
                described[number] = _make_shard(folder, number, shards[number], cohort, config, plan_hash)
                # Other ranks go at about the same pace; the bar ends exact because the last step is counted below.
                progress.advance(min(comm.size, len(shards) - progress.done))
        except AnyECGError as cause:
            error = cause
        except OSError as cause:
            error = ShardError(f"{folder}: {cause}; free space or mend the disk, then run again")
        share_error(comm, error)
    gathered = comm.gather(described)
    error = None
    if comm.rank == 0:
        try:
            _finish(folder, cohort, config, {n: d for part in gathered for n, d in part.items()}, stage_hash)
        except AnyECGError as cause:
            error = cause
        except OSError as cause:
            error = ShardError(f"{folder}: {cause}; free space or mend the disk, then run again")
    share_error(comm, error)


def _finish(folder, cohort, config, described, stage_hash):
    """Check the count of records, write the quarantine table and the index."""
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
    attributes = shard_attributes(cohort.targets, config, 0, "")
    del attributes["split"], attributes["plan_hash"], attributes["format"], attributes["version"]
    head = {**attributes, "stage_hash": stage_hash, "cohort_hash": cohort.hash, "counts": dict(sorted(counts.items()))}
    write_index(folder, [described[number] for number in sorted(described)], head)
